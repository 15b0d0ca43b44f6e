"""The one kind of expected failure of `tools/cluster` and `tools/image`."""

from __future__ import annotations


class ToolError(Exception):
    """An expected failure, told in one sentence: verb, object, reason, and what to do."""

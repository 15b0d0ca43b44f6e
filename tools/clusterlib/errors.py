"""The one kind of expected failure of these tools."""

from __future__ import annotations


class ClusterError(Exception):
    """An expected failure, told in one sentence: verb, object, reason, and what to do."""

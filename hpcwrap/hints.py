"""Hints for misspelt words."""

from __future__ import annotations

from typing import Iterable


def closest(word: str, known: Iterable[str]) -> str:
    """A hint for a word that is not known: ``did you mean image?``, or the words that there are."""
    import difflib

    words = list(known)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(words)}"

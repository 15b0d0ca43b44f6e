"""Hints for misspelt words."""

from __future__ import annotations

from typing import Iterable, Optional


def closest(word: str, known: Iterable[str], otherwise: Optional[str] = None) -> str:
    """A hint for a word that is not known: ``did you mean image?``, else `otherwise`.

    Without `otherwise` it lists the words that are known.
    """
    import difflib

    words = list(known)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(words)}" if otherwise is None else otherwise

"""What a benchmark returns: samples, never a single number, and what they are to be."""

from __future__ import annotations

from statistics import quantiles
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple


class Row(NamedTuple):
    """One thing that was measured, so many times; `unit` is of the samples."""

    what: str
    unit: str
    samples: Tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return self.percentile(50)

    def percentile(self, percent: int) -> float:
        """The sample below which so many per cent of them are, between two by proportion."""
        if len(self.samples) == 1:
            return self.samples[0]
        return quantiles(self.samples, n=100, method="inclusive")[percent - 1]

    def document(self) -> Dict[str, Any]:
        """The row as JSON has it."""
        return {
            "what": self.what,
            "unit": self.unit,
            "median": round(self.median, 4),
            "p10": round(self.percentile(10), 4),
            "p90": round(self.percentile(90), 4),
            "samples": [round(sample, 4) for sample in self.samples],
        }


class Goal(NamedTuple):
    """A number that has to be at most, or at least, a limit."""

    what: str
    value: float
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the number is on the right side of the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def document(self) -> Dict[str, Any]:
        """The goal as JSON has it."""
        return {**self._asdict(), "value": round(self.value, 4), "met": self.met}


class Result(NamedTuple):
    """What one benchmark came to.

    Every row's ratio is to the median of the row named in `baselines`, else of the first one.
    """

    title: str
    rows: Sequence[Row]
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = ()
    baselines: Optional[Dict[str, str]] = None

    def ratio(self, row: Row) -> Optional[float]:
        """Median ÷ median of the baseline; None for a baseline, and across units."""
        name = (self.baselines or {}).get(row.what, self.rows[0].what)
        base = next(other for other in self.rows if other.what == name)
        if base.what == row.what or base.unit != row.unit:
            return None
        return row.median / base.median

    def document(self) -> Dict[str, Any]:
        """The result as JSON has it."""
        return {
            "title": self.title,
            "notes": list(self.notes),
            "rows": [{**row.document(), "ratio": self.ratio(row)} for row in self.rows],
            "goals": [goal.document() for goal in self.goals],
        }


def row_of(samples: Dict[str, List[float]], name: str, unit: str = "ms") -> Row:
    """One row of what loop.py returned."""
    return Row(name, unit, tuple(samples[name]))

"""What a benchmark returns: samples, never a single number, and what they are to be."""

from __future__ import annotations

from statistics import median, quantiles
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple


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

    def over(self, base: Row) -> float:
        """This ÷ base: the median of the rounds' ratios, since a round has one sample of each.

        What disturbs the machine for longer than a round disturbs both, and not their ratio.
        """
        return median(mine / its for mine, its in self._pairs(base))

    def more_than(self, base: Row) -> float:
        """This minus base, likewise."""
        return median(mine - its for mine, its in self._pairs(base))

    def _pairs(self, base: Row) -> Iterable[Tuple[float, float]]:
        if len(self.samples) != len(base.samples):
            raise ValueError(f"{self.what} and {base.what} are not of the same rounds")
        return zip(self.samples, base.samples)

    def first(self, rounds: int) -> Row:
        """The samples of the first rounds, to compare with what is too slow for all of them."""
        return self._replace(samples=self.samples[:rounds])

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

    Every row's ratio is to the row named in `baselines`, whose first rounds count if it has more;
    else to the first row.
    """

    title: str
    rows: Sequence[Row]
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = ()
    baselines: Optional[Dict[str, str]] = None

    def ratio(self, row: Row) -> Optional[float]:
        """To the baseline; None for a baseline, across units, and of other rounds."""
        name = (self.baselines or {}).get(row.what, self.rows[0].what)
        base = next(other for other in self.rows if other.what == name)
        if row.what in (self.baselines or {}):
            base = base.first(len(row.samples))
        comparable = base.unit == row.unit and len(base.samples) == len(row.samples)
        return row.over(base) if comparable and base.what != row.what else None

    def document(self) -> Dict[str, Any]:
        """The result as JSON has it."""
        rows = []
        for row in self.rows:
            ratio = self.ratio(row)
            rows.append({**row.document(), "ratio": None if ratio is None else round(ratio, 4)})
        return {
            "title": self.title,
            "notes": list(self.notes),
            "rows": rows,
            "goals": [goal.document() for goal in self.goals],
        }


def row_of(samples: Dict[str, List[float]], name: str, unit: str = "ms") -> Row:
    """One row of what loop.py returned."""
    return Row(name, unit, tuple(samples[name]))

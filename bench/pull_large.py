"""The same as pull.py with an image of 3 GiB, 20 layers and 100 000 files (tools/imagelib)."""

from __future__ import annotations

from typing import Optional

from bench import pull
from bench.model import Result

IMAGE = "synthetic"
ROUNDS = 3


def measure(rounds: Optional[int]) -> Result:
    """A quarter of an hour, most of it apptainer's."""
    return pull.measure_image(IMAGE, rounds or ROUNDS, dict.fromkeys(pull.PEERS, 1))

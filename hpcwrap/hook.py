"""The edge of a process that a scheduler starts for a stage: quick to begin and quick to end.

python3 -I -c 'from hpcwrap.hook import main; main("prolog", "slurm")'
python3 -I -c 'from hpcwrap.hook import main; main("hooks.enter_lsf", "start")'
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import NoReturn


def main(module: str, word: str) -> NoReturn:
    """Run a stage for the scheduler `word`, or that part of a program in hooks/; end with its code.

    So short a life has no garbage worth collecting, and nothing to tidy up at its end that the
    kernel does not tidy up faster: together a sixth of a warm prolog.
    """
    gc.disable()
    code: int = importlib.import_module(f"hpcwrap.{module}").main(word)
    leave(code)


def leave(code: int) -> NoReturn:
    """End this process at once: taking the interpreter down would take 10 ms."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

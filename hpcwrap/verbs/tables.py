"""What schedulers' filters know of environments: tables on their hosts, in step with the store."""

from __future__ import annotations

import os
from typing import Optional

from hpcwrap import paths


def renew(config_file: Optional[str]) -> None:
    """Tell filters that run on this host of digests that have changed.

    Looks first whether there is any: a pull on a node that has none pays for no import.
    """
    if os.geteuid() == 0 and os.path.exists(paths.SLURM_TABLE):
        from hpcwrap.verbs import setup_slurm

        setup_slurm.renew_table(config_file)
    if os.geteuid() == 0 and os.path.exists(paths.GRIDENGINE_TABLE):
        from hpcwrap.verbs import setup_gridengine

        setup_gridengine.write_table(config_file)
    if os.geteuid() == 0 and os.path.exists(paths.PBS_CONF):
        from hpcwrap.verbs import setup_pbs

        setup_pbs.renew_table(config_file)

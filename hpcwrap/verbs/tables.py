"""What schedulers' filters know of environments: tables on their hosts, in step with the store."""

from __future__ import annotations

import os
from typing import Optional, Tuple

from hpcwrap import paths
from hpcwrap.config import Config
from hpcwrap.errors import HpcwrapError
from hpcwrap.image.source import parse_source
from hpcwrap.image.store import Store
from hpcwrap.schedulers.filtertable import Digests, digests_of


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


def find_digests(known: Config) -> Digests:
    """What each environment's image has been, for those whose image is in the store."""
    store = Store(known.settings.store)
    references = {environment.image for environment in known.environments.values()}
    return digests_of(known, {text: digests_of_image(store, text) for text in references})


def digests_of_image(store: Store, reference: str) -> Tuple[str, ...]:
    """Digests that a reference has had, newest first; none where its image is not in the store."""
    try:
        image, link = store.find(reference), store.find_link(str(parse_source(reference)))
    except HpcwrapError:
        return ()
    if image is None:
        return ()
    return (image.digest, *(link.history[1:] if link else ()))

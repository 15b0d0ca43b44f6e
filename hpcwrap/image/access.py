"""Access: what a transport needs to know to be let in, and how long it tries.

Plain data that crosses from who may read secrets and settings to the image user's worker.
"""

from __future__ import annotations

from typing import NamedTuple


class Access(NamedTuple):
    """How registries are spoken to in one pull.

    `auth` is a containers-auth.json with the one registry's entry, or empty: anonymous.  `policy`
    and `registries_conf` are paths, empty for the host's own.  `timeout` is in seconds without a
    byte.  `cache` is the directory of the layer cache, empty for none, and `cache_limit` its size
    in bytes.  What is `private` is taken from that cache, and never left in it.
    """

    auth: bytes = b""
    policy: str = ""
    registries_conf: str = ""
    timeout: float = 30.0
    retries: int = 4
    cache: str = ""
    cache_limit: int = 0
    private: bool = False

    def __repr__(self) -> str:
        # A password must not come into a traceback or a log.
        secret = "…" if self.auth else ""
        return f"Access(auth={secret!r}, timeout={self.timeout}, retries={self.retries})"


ANONYMOUS = Access()

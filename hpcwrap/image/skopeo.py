"""skopeo: the one program that speaks to registries, run with patience.

It reads the site's registries.conf, policy.json and certificates.  A run that does not get a byte
for too long is ended; one that failed of what may pass is started again, later each time.
skopeo itself waits where a registry says 429, as long as Retry-After asks for.
"""

from __future__ import annotations

import os
import random
import re
import tempfile
import time
from typing import IO, Callable, Dict, List, NamedTuple, Optional

from hpcwrap import run
from hpcwrap.image.access import Access
from hpcwrap.image.complaints import STALLED, failure, may_pass, translate
from hpcwrap.image.reference import Reference
from hpcwrap.image.worker import guarded

FIRST_DELAY = 0.5
MAX_DELAY = 30.0
"""Seconds before the second run, doubled for each that follows, and the most that they become."""

TICK = 0.005

_WAITS = re.compile(rb"sleeping for ([0-9.]+) seconds before next attempt")


class Errand(NamedTuple):
    """What skopeo is to do: its words after the options that are the same for all, and for whom.

    `moved` tells how many bytes have come so far, `whole` how many blobs, `busy` whether there is
    reason to be patient although nothing comes.
    """

    reference: Reference
    access: Access
    words: List[str]
    moved: Callable[[], int]
    whole: Callable[[], int] = lambda: 0
    busy: Callable[[], bool] = lambda: False
    stdout: Optional[IO[bytes]] = None


class Skopeo:
    """An errand on its way; `ended` is to be called again and again."""

    def __init__(self, errand: Errand, on_retry: Callable[[], None] = lambda: None) -> None:
        self.errand = errand
        self.on_retry = on_retry
        self.failures = 0
        self._whole = errand.whole()
        self._auth = _secret_file(errand.access.auth)
        self._run: Optional[_Run] = None
        self._next = 0.0
        self._pause = ""

    def ended(self) -> bool:
        """Whether skopeo has done it.

        Raises UserError or SiteError when it failed for good.
        """
        if self._run is None:
            if time.monotonic() >= self._next:
                self._run = _Run(self.errand, self._auth.fileno())
            return False
        code = self._run.code()
        if code is None:
            return False
        if code:
            self._failed(self._run.said())
            return False
        return True

    def processes(self) -> List[run.Process]:
        """The process that works on it now, if there is one."""
        return [self._run.child] if self._run else []

    def stop(self) -> None:
        """End it before its time."""
        if self._run is not None:
            self._run.stop()

    def notice(self) -> str:
        """Why nothing comes just now, for a person; "" while skopeo is at work."""
        return self._pause if self._run is None else self._run.notice()

    def _failed(self, stderr: str) -> None:
        """Plan the next run.  Raises the error where there is to be none."""
        self._run = None
        if self.errand.whole() > self._whole:
            self._whole, self.failures = self.errand.whole(), 0
        self.failures += 1
        text = failure(stderr)
        error = translate(self.errand.reference, self.errand.access, text, self.failures)
        if self.failures > self.errand.access.retries or not may_pass(self.errand.reference, text):
            raise error
        seconds = delay(self.failures)
        self._next = time.monotonic() + seconds
        self._pause = f"{error.message.rpartition(': ')[2]}: again in {max(1, round(seconds))} s"
        self.on_retry()


class _Run:
    """One process."""

    def __init__(self, errand: Errand, auth: int) -> None:
        self.errand = errand
        self._errors: IO[bytes] = tempfile.TemporaryFile(dir=".")  # noqa: SIM115
        if errand.stdout:
            errand.stdout.truncate(0)
            errand.stdout.seek(0)
        self.child = run.spawn(
            _argv(errand, auth),
            env=_environment(),
            stdout=errand.stdout,
            stderr=self._errors,
            pass_fds=[auth],
        )
        self._moved, self._read = -1, 0
        self._since = self._looked = time.monotonic()

    def code(self) -> Optional[int]:
        """The exit code, None while it runs; another than 0 when it had to be ended."""
        code = self.child.poll()
        if code is not None or not self._stalls():
            return code
        self.stop()
        self._errors.seek(0, os.SEEK_END)
        self._errors.write(STALLED.encode())
        return 1

    def stop(self) -> None:
        """Kill it."""
        self.child.kill()
        self.child.wait()

    def notice(self) -> str:
        """That it waits, while it does because the registry asked it to; else ""."""
        return "the registry asks us to wait" if self._since > time.monotonic() else ""

    def said(self) -> str:
        """What it wrote to its stderr."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def _stalls(self) -> bool:
        now = time.monotonic()
        timeout = self.errand.access.timeout
        if now - self._looked < timeout / 20:
            return False
        self._looked = now
        moved = self.errand.moved() + os.fstat(self._errors.fileno()).st_size
        if moved != self._moved:
            self._moved, self._since = moved, max(self._since, now, now + self._waits())
        return now - self._since > timeout and not self.errand.busy()

    def _waits(self) -> float:
        """Seconds that skopeo has just said it would wait, as the registry asked it to."""
        size = os.fstat(self._errors.fileno()).st_size
        fresh = os.pread(self._errors.fileno(), size - self._read, self._read)
        self._read = size
        return max((float(found) for found in _WAITS.findall(fresh)), default=0.0)


def delay(failures: int) -> float:
    """Seconds to wait after so many failures: jobs that failed together do not return together."""
    seconds: float = min(FIRST_DELAY * 2 ** (failures - 1), MAX_DELAY / 1.5)
    return seconds * random.uniform(0.5, 1.5)  # noqa: S311  nobody gains by guessing it


def finish(errand: Errand) -> None:
    """Do an errand to its end.

    Raises UserError or SiteError.
    """
    skopeo = Skopeo(errand)
    while not skopeo.ended():
        run.wait_for_any(skopeo.processes(), TICK)


def _argv(errand: Errand, auth: int) -> List[str]:
    access = errand.access
    options = ["--debug"]  # the only way to hear that it waits because of a 429
    if access.policy:
        options += ["--policy", access.policy]
        beside = os.path.join(os.path.dirname(access.policy), "registries.d")
        # Where signatures lie belongs to the policy that asks for them.
        options += ["--registries.d", beside] if os.path.isdir(beside) else []
    if access.registries_conf:
        options += ["--registries-conf", access.registries_conf]
    command, *rest = errand.words
    authfile = ["--authfile", f"/proc/self/fd/{auth}"]
    program = run.need_program("skopeo", "skopeo")
    return guarded([program, *options, command, *authfile, *rest])


def _environment() -> Dict[str, str]:
    # Passwords are looked for in XDG_RUNTIME_DIR and HOME, too; without these skopeo goes to
    # /run/containers, which root's skopeo makes with mode 0700 (containers-auth.json(5)).
    here = os.getcwd()
    # And where it may keep what it knows of blobs it makes a data base, which is of no use for one
    # run: 20 ms of fsync and of removing it; where it cannot, it remembers it without
    # (containers/image, pkg/blobinfocache).
    return run.base_environment(
        HOME=here, XDG_RUNTIME_DIR=here, XDG_DATA_HOME="/dev/null", TMPDIR=here
    )


def _secret_file(auth: bytes) -> IO[bytes]:
    """A file in memory for skopeo alone: a password must not come to a disk or a share."""
    file = open(os.memfd_create("auth"), "w+b", buffering=0)  # noqa: SIM115
    os.fchmod(file.fileno(), 0o600)
    file.write(auth or b"{}")
    return file

"""The slow front (limiter.py) before the tests' registry."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

from registries import Registry, free_port


class Front:
    """A front that runs, and what it was asked for."""

    def __init__(self, directory: Path, registry: Registry, rate: int, refuse: int = 0) -> None:
        port = free_port()
        self.host = f"127.0.0.1:{port}"
        self.log = directory / "front.log"
        program = Path(__file__).with_name("limiter.py")
        argv = [sys.executable, str(program), self.host, registry.host, "--rate", str(rate)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*argv, "--refuse", str(refuse)], stdout=log)
        while not answers(port):
            assert self.process.poll() is None, "the front has ended"
            time.sleep(0.02)

    def downloads(self, digest: str) -> int:
        """How often a blob was begun to be given out."""
        lines = self.log.read_text().splitlines()
        return sum(f"/blobs/{digest} 200" in line and " GET " in line for line in lines)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def answers(port: int) -> bool:
    """Whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

"""The running machine: qemu, and the channel over which scripts go in and results come out."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from typing import Any, NamedTuple, Optional

from clusterlib.errors import ToolError
from imagelib.commands import environment

from vmlib.files import HERE, Files

QEMU = "qemu-system-x86_64"
TREE = os.path.dirname(os.path.dirname(HERE))
PORT = "hpcwrap"
MEMORY = "2048"
PROCESSORS = 2
BOOT_SECONDS = 240.0
GRACE_SECONDS = 30.0
CONSOLE_END = 3000
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 mitigations=off cgroup_no_v1=all random.trust_cpu=on"


class Result(NamedTuple):
    """What a script said; a script that was ended after its time has the code 124."""

    code: int
    stdout: str
    stderr: str


class Machine:
    """A virtual machine, up from `start` to `stop`; it ends by itself when we are gone."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._console = tempfile.TemporaryFile()  # noqa: SIM115
        ours, self._theirs = socket.socketpair()
        self._channel = Lines(ours)
        self._qemu: Optional[subprocess.Popen[bytes]] = None

    def start(self) -> None:
        """Start qemu and wait until scripts can be run.  Raises ToolError."""
        if shutil.which(QEMU) is None:
            raise ToolError(f"cannot find {QEMU}: run tools/packages first")
        self._qemu = subprocess.Popen(
            self._command(),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
            pass_fds=[self._theirs.fileno()],
        )
        self._theirs.close()
        self._receive(BOOT_SECONDS, "cannot boot the virtual machine")

    def run(self, script: str, timeout: float = 60.0) -> Result:
        """Run a bash script as root in a session of its own; its processes end with it.

        Raises ToolError when the machine itself is gone or hangs.
        """
        self._channel.send({"script": script, "timeout": timeout})
        answer = self._receive(timeout + GRACE_SECONDS, "the virtual machine does not answer")
        return Result(answer["code"], answer["stdout"], answer["stderr"])

    def stop(self) -> None:
        """End the machine, as if its power were cut: nothing of it is kept."""
        self._channel.close()
        if self._qemu:
            self._qemu.kill()
            self._qemu.wait()
        self._console.close()

    def _receive(self, timeout: float, failure: str) -> dict[str, Any]:
        try:
            return self._channel.receive(timeout)
        except (TimeoutError, EOFError) as error:
            raise ToolError(
                f"{failure}: {error}; its console ends:\n{self._last_words()}"
            ) from None

    def _last_words(self) -> str:
        """The end of the console, which qemu writes through the same open file."""
        console = self._console.fileno()
        start = max(0, os.fstat(console).st_size - CONSOLE_END)
        return os.pread(console, CONSOLE_END, start).decode(errors="replace")

    def _command(self) -> list[str]:
        # No KVM: where tests run in a virtual machine themselves there is none that boots.  Page
        # tables of five levels (la57) would double the time of programs that are emulated.
        return [
            # When we are killed, so is it (prctl(2), PR_SET_PDEATHSIG).
            *("setpriv", "--pdeathsig", "KILL"),
            *(QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-machine", "q35", "-cpu", "max,la57=off", "-accel", "tcg,thread=multi"),
            *("-smp", str(PROCESSORS), "-m", MEMORY, "-serial", "stdio"),
            *("-kernel", self._files.kernel, "-initrd", self._files.initramfs),
            *("-append", KERNEL_OPTIONS),
            "-drive",
            f"file={self._files.root},if=virtio,format=raw,readonly=on,file.locking=off",
            "-virtfs",
            f"local,path={TREE},mount_tag=tree,security_model=none,readonly=on,multidevs=remap",
            *("-chardev", f"socket,id=channel,fd={self._theirs.fileno()}"),
            *("-device", "virtio-serial"),
            *("-device", f"virtserialport,chardev=channel,name={PORT}"),
        ]


class Lines:
    """One JSON document a line, over a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""

    def send(self, document: dict[str, Any]) -> None:
        """Send a document."""
        self._connection.sendall(json.dumps(document).encode() + b"\n")

    def receive(self, timeout: float) -> dict[str, Any]:
        """Wait for a document.  Raises TimeoutError, and EOFError when the other side is gone."""
        until = time.monotonic() + timeout
        while b"\n" not in self._received:
            ready, _, _ = select.select([self._connection], [], [], until - time.monotonic())
            if not ready:
                raise TimeoutError(f"nothing came within {timeout:.0f} s")
            self._received += self._read()
        line, _, self._received = self._received.partition(b"\n")
        document: dict[str, Any] = json.loads(line)
        return document

    def close(self) -> None:
        """Close our side."""
        self._connection.close()

    def _read(self) -> bytes:
        try:
            data = self._connection.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            raise EOFError("it has ended")
        return data

"""Process 1 of the virtual machine: what an init would mount, then one script after the other.

Runs from the work tree, by the machine's own Python; a change here needs no new image.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import BinaryIO

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PORT = "hpcwrap"
TIMED_OUT = 124

MOUNTS = (
    ("proc", "/proc", "proc", ""),
    ("sysfs", "/sys", "sysfs", ""),
    ("devpts", "/dev/pts", "devpts", "mode=620,gid=5,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "tmpfs", "mode=1777"),
    ("mqueue", "/dev/mqueue", "mqueue", ""),
    ("tmpfs", "/run", "tmpfs", "mode=755"),
    ("tmpfs", "/tmp", "tmpfs", "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", "nsdelegate"),
)
CONTROLLERS = "/sys/fs/cgroup/cgroup.subtree_control"


def main() -> None:
    """Set the machine up, serve, and reap what the scripts leave: that is process 1's part."""
    set_up()
    server = os.fork()
    if server == 0:
        serve()
        os._exit(0)
    while os.wait()[0] != server:
        pass
    power_off()


def set_up() -> None:
    """Mount what every Linux has, hand all controllers of cgroup v2 down, name the machine."""
    os.environ.clear()
    os.environ.update(PATH=PATH, HOME="/root", LANG="C.UTF-8")
    for source, target, kind, options in MOUNTS:
        os.makedirs(target, exist_ok=True)
        arguments = ["-o", options] if options else []
        subprocess.run(["mount", "-t", kind, *arguments, source, target], check=True)
    with open("/sys/fs/cgroup/cgroup.controllers", encoding="ascii") as file:
        wanted = " ".join(f"+{name}" for name in file.read().split())
    with open(CONTROLLERS, "w", encoding="ascii") as file:
        file.write(wanted)
    subprocess.run(["hostname", "vm"], check=True)
    with open("/etc/hosts", "w", encoding="ascii") as file:
        file.write("127.0.0.1 localhost vm\n")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def serve() -> None:
    """Answer requests until the other side is gone: one JSON document a line."""
    subprocess.run(["modprobe", "virtio_console"], check=True)
    with open(port(), "r+b", buffering=0) as channel:
        answer(channel, {"code": 0, "stdout": "", "stderr": ""})
        pending = b""
        while data := channel.read(1 << 16):
            pending += data
            while b"\n" in pending:
                line, _, pending = pending.partition(b"\n")
                answer(channel, run(**json.loads(line)))


def run(script: str, timeout: float) -> dict[str, object]:
    """Run one script in a session of its own, whose processes end with it."""
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
        code = process.returncode
    except subprocess.TimeoutExpired:
        end_session(process.pid)
        stdout, stderr = process.communicate()
        code = TIMED_OUT
    end_session(process.pid)
    return {"code": code if code >= 0 else 128 - code, "stdout": stdout, "stderr": stderr}


def end_session(session: int) -> None:
    """Kill the processes of a session, those that made a process group of their own, too."""
    for name in os.listdir("/proc"):
        if name.isdigit() and session_of(int(name)) == session:
            try:
                os.kill(int(name), signal.SIGKILL)
            except ProcessLookupError:
                continue


def session_of(process: int) -> int:
    """The session of a process; 0 when it is gone."""
    try:
        return os.getsid(process)
    except ProcessLookupError:
        return 0


def answer(channel: BinaryIO, document: dict[str, object]) -> None:
    """Send a document, however many writes it takes: the port takes a page or so at once."""
    data = memoryview(json.dumps(document).encode() + b"\n")
    while data:
        data = data[channel.write(data) :]


def port() -> str:
    """The device of the port, by its name in sysfs."""
    above = "/sys/class/virtio-ports"
    for device in os.listdir(above):
        with open(f"{above}/{device}/name", encoding="ascii") as file:
            if file.read().strip() == PORT:
                return f"/dev/{device}"
    raise FileNotFoundError(PORT)


def power_off() -> None:
    """End the machine: qemu runs with -no-reboot."""
    with open("/proc/sysrq-trigger", "w", encoding="ascii") as file:
        file.write("b")
    signal.pause()


if __name__ == "__main__":
    main()

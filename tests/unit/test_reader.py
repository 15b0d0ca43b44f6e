"""The reader of users' files: whose rights it has, what it refuses, and that it holds up nobody."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable, Iterator, List, Optional

import pytest

from hpcwrap.errors import HpcwrapError, SiteError, UserError
from hpcwrap.image.reader import Stream, _contained, open_as, stamp_as
from hpcwrap.image.source import Source, parse_source
from hpcwrap.run import Identity, output

REPOSITORY = Path(__file__).parents[2]
USER = Identity(65533, 65532, (65532, 65531))
BIG = 8 << 20
"""Bytes that no pipe holds, so that the child waits for its reader."""

privileged = pytest.mark.privileged


@pytest.fixture(name="place")
def make_place() -> Iterator[Path]:
    """A directory that other users can come to: pytest's are closed."""
    directory = tempfile.mkdtemp(prefix="hpcwrap-test-")
    os.chmod(directory, 0o755)
    yield Path(directory)
    shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def check_that_nothing_is_left() -> Iterator[None]:
    """No descriptor and no process."""
    before = os.listdir("/proc/self/fd")
    OTHERS.clear()
    OTHERS.extend(children())
    yield
    # Fewer there may be: other tests leave files to the garbage collector.
    assert set(os.listdir("/proc/self/fd")) <= set(before)
    assert children() == []


OTHERS: List[int] = []
"""Children that were there before the test: the registry of other tests may run beside these."""


def children() -> List[int]:
    path = f"/proc/self/task/{os.getpid()}/children"
    numbers = map(int, Path(path).read_text().split())
    return [number for number in numbers if number not in OTHERS]


def read(source: Source, user: Optional[Identity] = None) -> bytes:
    with open_as(user, source) as stream:
        return drained(stream)


def drained(stream: Stream) -> bytes:
    parts = []
    while True:
        data = os.read(stream.pipe, 1 << 20)
        if not data:
            return b"".join(parts)
        parts.append(data)


def refusal(text: str, user: Optional[Identity] = None) -> str:
    with pytest.raises(UserError) as caught:
        read(parse_source(text), user)
    with pytest.raises(UserError) as also:
        stamp_as(user, parse_source(text))
    assert caught.value.message == also.value.message
    return caught.value.message


def test_the_bytes_of_a_file_come_whole(place: Path) -> None:
    content = os.urandom(BIG + 7)
    (place / "file").write_bytes(content)
    (place / "link").symlink_to("file")
    with open_as(None, parse_source(f"{place}/link")) as stream:
        assert (stream.kind, stream.size) == ("file", len(content))
        assert drained(stream) == content


def test_a_directory_comes_as_tar(place: Path) -> None:
    (place / "etc").mkdir()
    with open_as(None, parse_source(str(place))) as stream:
        assert (stream.kind, stream.size, stream.stamp) == ("tar", 0, "")
        names = subprocess.run(
            ["tar", "-t"], input=drained(stream), capture_output=True, check=True
        ).stdout
    assert names == b"./\n./etc/\n"


def test_what_is_no_file_is_refused(place: Path) -> None:
    os.mkfifo(place / "fifo")
    (place / "empty").touch()
    (place / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "socket"))
    for name in ("fifo", "socket"):
        assert "a device, a pipe or a socket" in refusal(f"{place}/{name}")
    assert "a device" in refusal("/dev/zero")
    assert "it is empty" in refusal(f"{place}/empty")
    assert "No such file" in refusal(f"{place}/none")
    assert "symbolic links" in refusal(f"{place}/loop")
    assert "Not a directory" in refusal(f"{place}/empty/file")
    assert "the root of the host" in refusal("/proc/self/root")
    for path in ("/proc/self/environ", "/proc/self", "/sys/kernel"):
        assert "part of the kernel's" in refusal(path)


def test_what_is_said_to_be_a_file_is_one(place: Path) -> None:
    (place / "file").write_text("x")
    assert "is a directory, which tar: does not take" in refusal(f"tar:{place}")
    assert "is a file, which rootfs: does not take" in refusal(f"rootfs:{place}/file")
    assert "no such layout" in refusal(f"oci:{place}")
    assert "no root file system" in refusal(str(place))


@privileged
def test_a_user_reads_what_the_user_may(place: Path) -> None:
    (place / "mine").write_text("mine")
    (place / "theirs").write_text("theirs")
    (place / "group").write_text("group")
    os.chown(place / "mine", USER.uid, 0)
    os.chown(place / "group", 0, 65531)
    for name, mode in (("mine", 0o400), ("theirs", 0o600), ("group", 0o040)):
        (place / name).chmod(mode)
    assert read(parse_source(f"{place}/mine"), USER) == b"mine"
    assert read(parse_source(f"{place}/group"), USER) == b"group"
    assert "no permission" in refusal(f"{place}/theirs", USER)
    place.chmod(0o700)
    assert "no permission" in refusal(f"{place}/mine", USER)


@privileged
def test_a_file_in_a_directory_that_the_user_may_not_read_is_named(place: Path) -> None:
    (place / "etc").mkdir()
    for name in ("etc/a", "etc/b"):
        (place / name).write_text("x")
        (place / name).chmod(0o600)
    with pytest.raises(UserError, match=r"\./etc/a: Cannot open: Permission denied") as caught:
        read(parse_source(str(place)), USER)
    assert "your rights" in caught.value.hint


@privileged
def test_the_child_is_the_user_for_good(place: Path) -> None:
    (place / "big").write_bytes(bytes(BIG))
    with open_as(USER, parse_source(f"{place}/big")) as stream:
        status = Path(f"/proc/{children()[0]}/status").read_text()
        drained(stream)
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["65533"] * 4
    assert fields["Gid"].split() == ["65532"] * 4
    assert fields["Groups"].split() == ["65531", "65532"]
    assert {fields[f"Cap{kind}"].strip("0") for kind in ("Prm", "Eff", "Inh", "Amb")} == {""}


@privileged
def test_no_process_of_root_opens_a_users_path(place: Path) -> None:
    (place / "home").mkdir()
    (place / "home/image").write_bytes(bytes(4096))
    os.chown(place / "home", USER.uid, USER.gid)
    script = (
        "import os; from hpcwrap.image.reader import open_as, stamp_as;"
        "from hpcwrap.image.source import parse_source; from hpcwrap.run import Identity;"
        f"source, user = parse_source({str(place / 'home/image')!r}), Identity{tuple(USER)!r};"
        "stamp_as(user, source); stream = open_as(user, source);"
        "os.read(stream.__enter__().pipe, 1 << 20); stream.__exit__(None, None, None)"
    )
    log = place / "strace"
    argv = ["strace", "-f", "-o", str(log), "-e", "trace=%file,setresuid", sys.executable]
    subprocess.run([*argv, "-c", script], cwd=REPOSITORY, check=True)
    users = set()
    opened = 0
    for line in log.read_text().splitlines():
        process = line.split()[0]
        if f"setresuid({USER.uid}" in line:
            users.add(process)
        if "home/image" in line:
            assert process in users, line
            opened += "open" in line
    assert opened == 2


def test_a_file_that_changes_while_it_is_read(place: Path) -> None:
    (place / "file").write_bytes(bytes(BIG))

    def change(stream: Stream) -> None:
        os.read(stream.pipe, 1)
        with (place / "file").open("r+b") as file:
            file.write(b"x")
        drained(stream)

    with pytest.raises(UserError, match="it changed while it was read"):
        use(f"{place}/file", change)


def use(text: str, work: Callable[[Stream], object]) -> None:
    """What a pull does: it opens the source and works with its bytes."""
    with open_as(None, parse_source(text)) as stream:
        work(stream)


def test_a_stamp_changes_with_the_file(place: Path) -> None:
    file = place / "file"
    file.write_text("one")
    source = parse_source(str(file))
    stamps = [stamp_as(None, source), stamp_as(None, source)]
    assert len(set(stamps)) == 1
    found = file.stat()
    file.write_text("two")
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    stamps.append(stamp_as(None, source))
    shutil.copy2(file, place / "new")
    (place / "new").rename(file)
    stamps.append(stamp_as(None, source))
    assert len(set(stamps)) == 3
    with open_as(None, source) as stream:
        assert stream.stamp == stamps[-1]
        drained(stream)


@privileged
def test_why_reading_failed_explains_what_came_of_it(place: Path) -> None:
    (place / "etc").mkdir()
    (place / "etc/a").touch(0o600)

    def fail() -> None:
        with open_as(USER, parse_source(str(place))) as stream:
            drained(stream)
            raise UserError("the layer ends early")

    with pytest.raises(UserError, match="Permission denied"):
        fail()


def test_who_gives_up_is_heard(place: Path) -> None:
    (place / "big").write_bytes(bytes(BIG))

    def give_up(stream: Stream) -> None:
        raise SiteError("the store is full")

    with pytest.raises(SiteError, match="the store is full"):
        use(f"{place}/big", give_up)
    with pytest.raises(SiteError, match="the store is full"):
        use(f"rootfs:{place}", give_up)


def test_a_reader_that_is_killed_is_no_end_of_file(place: Path) -> None:
    (place / "big").write_bytes(bytes(BIG))

    def kill(stream: Stream) -> None:
        os.kill(children()[0], signal.SIGKILL)
        drained(stream)

    with pytest.raises(SiteError, match="was killed"):
        use(f"{place}/big", kill)


def test_the_child_ends_with_its_parent(place: Path) -> None:
    (place / "big").write_bytes(bytes(BIG))
    script = (
        "import os, time; from hpcwrap.image.reader import open_as;"
        "from hpcwrap.image.source import parse_source;"
        f"stream = open_as(None, parse_source({str(place / 'big')!r})); stream.__enter__();"
        "print(open(f'/proc/self/task/{os.getpid()}/children').read(), flush=True);"
        "time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    while is_alive(child):
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


def test_who_does_not_answer_is_not_waited_for(place: Path) -> None:
    (place / "file").write_text("x")
    with pytest.raises(SiteError, match="nothing answers"):
        open_it(None, parse_source(f"{place}/file"), 0)


@contextmanager
def silent_file_system(directory: Path) -> Iterator[None]:
    """A FUSE file system whose program says hello and then nothing more (linux/fuse.h)."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    mount = ["mount", "-i", "-t", "fuse", "-o", options, "silent", str(directory)]
    subprocess.run(mount, pass_fds=[device], check=True)
    request = os.read(device, 1 << 17)
    unique = struct.unpack_from("<IIQ", request)[2]
    hello = struct.pack("<IIIIHHIII", 7, 31, 0, 0, 12, 10, 1 << 16, 1, 0).ljust(64, b"\0")
    os.write(device, struct.pack("<IiQ", 16 + len(hello), 0, unique) + hello)
    listener = threading.Thread(target=swallow, args=(device,))
    listener.start()
    try:
        yield
    finally:
        subprocess.run(["umount", "-f", "-l", str(directory)], check=True)
        listener.join()
        os.close(device)


def swallow(device: int) -> None:
    """Take requests and answer none: from then on not even SIGKILL ends who waits for them."""
    with suppress(OSError):
        while os.read(device, 1 << 17):
            pass


@privileged
@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")
def test_a_file_system_that_hangs_holds_up_the_child_alone(place: Path) -> None:
    (place / "fuse").mkdir()
    with silent_file_system(place / "fuse"):
        for call in (open_it, stamp_as):
            with pytest.raises(HpcwrapError, match="nothing answers"):
                call(USER, parse_source(f"{place}/fuse/image"), 0.3)
    while children():
        with suppress(ChildProcessError):
            os.waitpid(-1, 0)


def open_it(user: Optional[Identity], source: Source, seconds: float) -> None:
    with open_as(user, source, seconds):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads as another user")
def test_programs_of_a_users_storage_end_with_its_reading() -> None:
    """A program that storage.conf names (mount_program) may leave its process group."""
    mark = f"{100000 + os.getpid()}"
    words = _contained(Identity(12001, 12002, (12002, 12003)))
    script = f"setsid sleep {mark} </dev/null >/dev/null 2>&1 & id -u; id -G; sleep 0.2"
    said = output([*words, "/bin/sh", "-c", script])
    assert said.split() == [b"12001", b"12002", b"12003"]
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            commands.append(path.read_bytes())
    assert not [command for command in commands if mark.encode() in command]
    assert _contained(None) == []

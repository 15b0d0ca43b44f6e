"""The worker process: what it returns, how it fails, and that it leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import psutil
import pytest

from hpcwrap.errors import SiteError, UserError
from hpcwrap.image.worker import Progress, Report, guarded, hold, work_as
from hpcwrap.run import Identity, output

Called = Tuple[Dict[str, Any], List[Progress]]


def call(
    work: Any, directory: Path, seconds: float = 20.0
) -> tuple[Dict[str, Any], List[Progress]]:
    seen: List[Progress] = []
    return work_as(None, str(directory), work, seen.append, seconds), seen


def test_the_result_and_the_progress_come_back(tmp_path: Path) -> None:
    def work(report: Report) -> Dict[str, Any]:
        report(Progress("download", "x", 1, 2))
        return {"pid": os.getpid(), "directory": os.getcwd(), "big": "x" * 200_000}

    result, seen = call(work, tmp_path)
    assert result["pid"] != os.getpid()
    assert result["directory"] == str(tmp_path)
    assert len(result["big"]) == 200_000
    assert seen == [Progress("download", "x", 1, 2)]


def test_what_is_told_is_fit_for_a_terminal(tmp_path: Path) -> None:
    def work(report: Report) -> Dict[str, Any]:
        report(Progress("notice", "\x1b]0;x\x07 says\n\u202ethe registry", 0, 0))
        raise UserError("it is \x1b[2J broken", "ask\x07")

    seen: List[Progress] = []
    with pytest.raises(UserError) as caught:
        work_as(None, str(tmp_path), work, seen.append, 20.0)
    assert seen[0].item.isprintable()
    assert caught.value.sentence() == "it is ?[2J broken (ask?)"


@pytest.mark.parametrize("kind", [UserError, SiteError])
def test_errors_keep_their_kind_and_hint(tmp_path: Path, kind: Any) -> None:
    def work(report: Report) -> Dict[str, Any]:
        raise kind("it is broken", "mend it")

    with pytest.raises(kind) as caught:
        call(work, tmp_path)
    assert (caught.value.message, caught.value.hint) == ("it is broken", "mend it")


def test_a_bug_is_no_expected_failure(tmp_path: Path) -> None:
    def work(report: Report) -> Dict[str, Any]:
        return {"never": 1 // 0}

    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        call(work, tmp_path)


def test_a_killed_worker_is_the_sites_error(tmp_path: Path) -> None:
    def work(report: Report) -> Dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with pytest.raises(SiteError, match="was killed"):
        call(work, tmp_path)


def test_a_worker_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    def work(report: Report) -> Dict[str, Any]:
        (tmp_path / "pid").write_text(str(os.getpid()))
        output(guarded(["sh", "-c", f"echo $$ > {tmp_path}/child; exec sleep 60"]))
        return {}

    with pytest.raises(SiteError, match="longer than the site allows"):
        call(work, tmp_path, seconds=1.0)
    for name in ("pid", "child"):
        assert ended(int((tmp_path / name).read_text()))


def test_a_worker_whose_parent_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    def work(report: Report) -> Dict[str, Any]:
        (tmp_path / "pid").write_text(str(os.getpid()))
        output(
            ["sh", "-c", f"echo $$ > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/child; read x"]
        )
        return {}

    parent = os.fork()
    if parent == 0:
        call(work, tmp_path, seconds=60.0)
        os._exit(0)
    while not (tmp_path / "child").exists():
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    for name in ("pid", "child"):
        assert ended(int((tmp_path / name).read_text()))


def test_a_worker_keeps_the_descriptors_that_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with (tmp_path / "file").open("rb") as file:
        told = work_as(
            None,
            str(tmp_path),
            lambda _: {"read": os.read(file.fileno(), 9).decode()},
            lambda _: None,
            20.0,
            keep=(file.fileno(),),
        )
    assert told == {"read": "text"}


def ended(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_the_worker_holds_no_descriptor_of_its_parent(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w"):
        result, _ = call(lambda _: {"open": os.listdir("/proc/self/fd")}, tmp_path)
    assert len(result["open"]) <= 6  # 0, 1, 2, two pipes and the listing itself


def test_a_directory_that_cannot_be_reached() -> None:
    nobody = Identity(65534, 65534) if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as closed:
        os.chmod(closed, 0o500)
        with pytest.raises(SiteError, match="cannot work in"):
            work_as(nobody, closed, lambda _: {}, lambda _: None, 10)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_worker_keeps_nothing_of_root() -> None:
    def work(report: Report) -> Dict[str, Any]:
        with open("/proc/self/status") as status:
            told = dict(line.strip("\n").split(":\t", 1) for line in status if ":\t" in line)
        return {key: told[key] for key in ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "Umask")}

    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, 65534, 65534)
        found = work_as(Identity(65534, 65534), directory, work, lambda _: None, 10)
    assert found["Uid"].split() == found["Gid"].split() == ["65534"] * 4
    assert found["Groups"].strip() == ""
    assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == 0
    assert found["Umask"] == "0077"


def test_guarded_commands_can_gain_no_rights() -> None:
    status = output(guarded(["cat", "/proc/self/status"])).decode()
    assert "NoNewPrivs:\t1" in status


def test_the_parents_rubbish_closes_no_file_of_the_worker(tmp_path: Path) -> None:
    rubbish: List[Any] = [(tmp_path / "file").open("w")]
    number = rubbish[0].fileno()

    def work(_: Report) -> Dict[str, Any]:
        while os.open("/dev/null", os.O_RDONLY) < number:
            pass
        gc.collect()
        os.fstat(number)
        return {}

    gc.disable()
    try:
        rubbish.append(rubbish)
        del rubbish
        assert call(work, tmp_path) == ({}, [])
    finally:
        gc.enable()


UNREADABLE = """
import sys
from hpcwrap import run
from hpcwrap.image import convert
from hpcwrap.image.digest import digest_of
from hpcwrap.image.puller import work_as
from hpcwrap.image.checksum import checksum

class Closed:
    def find_spec(self, name, path=None, target=None):
        raise PermissionError(name)

def work(report):
    sys.meta_path.insert(0, Closed())
    run.output(["/bin/true"])
    with open("/bin/true", "rb") as file:
        return {"digest": digest_of(b""), "checksum": checksum(file.fileno())}

print(work_as(None, ".", work, print, 20.0)["digest"])
"""


def test_a_worker_needs_no_module_that_its_parent_has_not_read(tmp_path: Path) -> None:
    """The interpreter may lie where the image user cannot come to."""
    done = subprocess.run(
        [sys.executable, "-c", UNREADABLE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("sha256:"), done.stderr


def test_what_holds_a_workers_files_ends_soon_after_it(tmp_path: Path) -> None:
    def work(_: Report) -> Dict[str, Any]:
        hold()
        return {"group": os.getpgid(0)}

    told, _ = call(work, tmp_path)
    deadline = time.monotonic() + 20
    while any(alive_in(told["group"])):
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.01)


def alive_in(group: int) -> Iterator[psutil.Process]:
    """Processes of a process group; one that nobody has waited for yet holds nothing."""
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                yield process

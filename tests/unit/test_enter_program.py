"""The compiled hpcwrap-enter, joining namespaces that a child of the test holds.

Runs without root where the kernel lets users make user namespaces.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
from typing import Dict, Iterator, List, NamedTuple, Optional

import pytest

NATIVE = pathlib.Path(__file__).parents[2] / "native"
NAME = "debian-12@sha256:" + "a" * 64
IMAGE_PATH = "/opt/app/bin:/usr/local/bin:/usr/bin:/bin"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Holder(NamedTuple):
    pid: int
    user: bool

    def namespaces(self) -> List[str]:
        user = ["user-namespace", f"/proc/{self.pid}/ns/user"] if self.user else []
        return [*user, "mount-namespace", f"/proc/{self.pid}/ns/mnt"]


@pytest.fixture(scope="session")
def program() -> Iterator[str]:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    with tempfile.TemporaryDirectory(prefix="hpcwrap-native-") as build:
        subprocess.run(["make", "-s", "-C", NATIVE, f"BUILD={build}", "program"], check=True)
        yield f"{build}/hpcwrap-enter"


@contextlib.contextmanager
def namespaces(*options: str) -> Iterator[int]:
    """A mount namespace that has a directory /srv/inside, and no other change."""
    inside = "mount -t tmpfs none /srv && mkdir /srv/inside && echo ready && exec sleep 600"
    child = subprocess.Popen(
        ["unshare", *options, "--mount", "--propagation", "private", "sh", "-c", inside],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    assert child.stderr
    try:
        if child.stdout.readline() != "ready\n":
            pytest.skip(f"cannot make namespaces here: {child.stderr.read().strip()}")
        yield child.pid
    finally:
        child.kill()
        child.wait()


@pytest.fixture(scope="module")
def holder() -> Iterator[Holder]:
    """What `hpcwrap run` makes: a user namespace and a mount namespace in it."""
    with namespaces("--user", "--map-root-user") as pid:
        yield Holder(pid, user=True)


class Enter:
    def __init__(self, program: str, directory: pathlib.Path, holder: Holder) -> None:
        self.program = program
        self.directory = directory
        self.holder = holder

    def write(self, *instructions: str, container: str = NAME) -> None:
        self.write_raw("container", container, *self.holder.namespaces(), *instructions, "end")

    def write_raw(self, *words: str) -> None:
        text = "".join(word + "\0" for word in ["hpcwrap-entry-1", *words])
        (self.directory / "entry").write_bytes(text.encode())

    def run(
        self, *command: str, env: Optional[Dict[str, str]] = None, cwd: str = "/"
    ) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": SYSTEM_PATH} if env is None else env
        return subprocess.run(
            [self.program, self.directory, *command],
            capture_output=True,
            text=True,
            env=environment,
            cwd=cwd,
            check=False,
        )

    def environment(
        self, *instructions: str, env: Optional[Dict[str, str]] = None
    ) -> Dict[str, str]:
        """What a command inside gets of `env`, less the mark that hpcwrap leaves."""
        self.write(*instructions)
        done = self.run("/usr/bin/env", "-0", env={} if env is None else env)
        assert done.returncode == 0, done.stderr
        found = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
        assert found.pop("HPCWRAP_CONTAINER") == NAME
        return found


@pytest.fixture
def enter(program: str, tmp_path: pathlib.Path, holder: Holder) -> Enter:
    made = Enter(program, tmp_path, holder)
    made.write()
    return made


def test_command_runs_in_the_namespaces(enter: Enter) -> None:
    done = enter.run("readlink", "/proc/self/ns/mnt", "/proc/self/ns/user")
    held = [os.readlink(f"/proc/{enter.holder.pid}/ns/{name}") for name in ("mnt", "user")]
    assert done.stdout.split() == held


def test_the_mount_namespace_as_a_descriptor(enter: Enter) -> None:
    """In a copy of the host's mounts the pin is an empty file.  The command does not get it."""
    pin = enter.directory / "mnt"
    pin.touch()
    user = enter.holder.namespaces()[:-2]
    enter.write_raw("container", NAME, *user, "mount-namespace", str(pin), "end")
    namespace = f"/proc/{enter.holder.pid}/ns/mnt"
    held = os.open(namespace, os.O_RDONLY)

    def run(number: str) -> subprocess.CompletedProcess[str]:
        look = "readlink /proc/self/ns/mnt; ls /proc/self/fd"
        words = ["--mount-namespace", number, str(enter.directory), "--", "sh", "-c", look]
        command = [enter.program, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=[held])

    try:
        assert run(str(held)).stdout.split() == [os.readlink(namespace), "0", "1", "2", "3"]
        for number in ("", "x", "99"):
            assert (run(number).returncode, run(number).stdout) == (125, "")
    finally:
        os.close(held)
    assert "cannot join the container's mount namespace" in enter.run("true").stderr


def test_no_new_privileges_in_a_user_namespace(enter: Enter) -> None:
    done = enter.run("grep", "NoNewPrivs", "/proc/self/status")
    assert done.stdout.split() == ["NoNewPrivs:", "1"]


def test_mount_namespace_alone_gives_no_new_privileges(
    program: str, tmp_path: pathlib.Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("joining a mount namespace alone needs root")
    with namespaces() as pid:
        enter = Enter(program, tmp_path, Holder(pid, user=False))
        enter.write()
        done = enter.run("grep", "NoNewPrivs", "/proc/self/status")
    assert done.stdout.split() == ["NoNewPrivs:", "1"]


def test_exit_code_and_arguments_are_the_commands(enter: Enter) -> None:
    done = enter.run("--", "sh", "-c", 'printf "%s|" "$@"; exit 7', "sh", "a b", "", "--")
    assert (done.returncode, done.stdout) == (7, "a b||--|")


def test_missing_command_is_explained(enter: Enter) -> None:
    done = enter.run("no-such-command")
    assert done.returncode == 127
    assert done.stderr == (
        "hpcwrap-enter: cannot find the command no-such-command in the container debian-12 "
        "(it must exist in the image)\n"
    )


def test_missing_interpreter_is_explained(enter: Enter, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    done = enter.run(str(script))
    assert done.returncode == 126
    assert "the interpreter or loader that it names is not in the image" in done.stderr


def test_command_that_is_no_program(enter: Enter) -> None:
    done = enter.run("/etc/passwd")
    assert done.returncode == 126
    assert "cannot execute /etc/passwd in the container debian-12: Permission denied" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--"]])
def test_usage(enter: Enter, arguments: List[str]) -> None:
    done = enter.run(*arguments)
    assert done.returncode == 125
    assert done.stderr.startswith(
        "usage: hpcwrap-enter [--mount-namespace DESCRIPTOR] JOB_DIRECTORY"
    )


# ---- working directory ----


def test_callers_directory_is_kept_by_its_path(enter: Enter) -> None:
    assert enter.run("pwd", "-P", cwd="/usr/bin").stdout == "/usr/bin\n"


def test_callers_directory_goes_before_the_environments(enter: Enter) -> None:
    enter.write("workdir", "/srv/inside")
    assert enter.run("pwd", "-P", cwd="/usr").stdout == "/usr\n"


@pytest.mark.parametrize(
    ("workdir", "found"), [("/srv/inside", "/srv/inside"), ("/no/such/directory", "/")]
)
def test_environments_directory_or_the_root_stands_in(
    enter: Enter, workdir: str, found: str
) -> None:
    enter.write("workdir", workdir)
    with tempfile.TemporaryDirectory(dir="/srv" if os.access("/srv", os.W_OK) else None) as gone:
        if not gone.startswith("/srv"):
            pytest.skip("needs a directory that the namespace hides, which root can make in /srv")
        assert enter.run("pwd", "-P", cwd=gone).stdout == f"{found}\n"


# ---- the environment ----


def test_default_gives_way_to_the_job(enter: Enter) -> None:
    found = enter.environment("default", "A", "image", "default", "B", "image", env={"A": "job"})
    assert found == {"A": "job", "B": "image"}


def test_default_gives_way_to_an_empty_variable(enter: Enter) -> None:
    assert enter.environment("default", "A", "image", env={"A": ""}) == {"A": ""}


def test_set_and_unset_win_over_the_job(enter: Enter) -> None:
    found = enter.environment("set", "A", "site", "unset", "B", env={"A": "job", "B": "job"})
    assert found == {"A": "site"}


def test_unset_of_nothing(enter: Enter) -> None:
    assert enter.environment("unset", "B", env={"A": "1"}) == {"A": "1"}


@pytest.mark.parametrize(
    ("verb", "old", "new"),
    [
        ("prepend", None, "/x"),
        ("prepend", "", "/x"),
        ("prepend", "/a", "/x:/a"),
        ("prepend", "/x", "/x"),
        ("prepend", "/x:/a", "/x:/a"),
        ("prepend", "/xy:/a", "/x:/xy:/a"),
        ("prepend", "/a:/x", "/x:/a:/x"),
        ("append", None, "/x"),
        ("append", "/a", "/a:/x"),
        ("append", "/x", "/x"),
        ("append", "/a:/x", "/a:/x"),
        ("append", "/a/x", "/a/x:/x"),
        ("append", "/x:/a", "/x:/a:/x"),
        ("append", "x", "x:/x"),
    ],
)
def test_prepend_and_append(enter: Enter, verb: str, old: Optional[str], new: str) -> None:
    env = {} if old is None else {"V": old}
    assert enter.environment(verb, "V", "/x", env=env) == {"V": new}


@pytest.mark.parametrize(
    ("table", "old", "new"),
    [
        ("2=0,3=1", "2", "0"),
        ("2=0,3=1", "3,2", "1,0"),
        ("2=0,3=1", "7,GPU-2,3", "7,GPU-2,1"),
        ("10=0,1=1", "1,10,100", "1,0,100"),
        ("1=0,2=1", "1,2", "0,1"),
        ("1=10", "1,1,1", "10,10,10"),
        ("1=0", ",1,", ",0,"),
        ("1=0", "", ""),
        ("", "1", "1"),
        ("1", "1,2", ",2"),
    ],
)
def test_renumber(enter: Enter, table: str, old: str, new: str) -> None:
    assert enter.environment("renumber", "V", table, env={"V": old}) == {"V": new}


def test_a_note_is_for_who_starts_steps_and_changes_nothing(enter: Enter) -> None:
    words = ("note", "A", "b", "a sentence", "set", "C", "1")
    assert enter.environment(*words, env={"A": "b"}) == {"A": "b", "C": "1"}


def test_renumber_makes_no_variable(enter: Enter) -> None:
    assert enter.environment("renumber", "V", "1=0", env={"A": "1"}) == {"A": "1"}


def test_a_step_from_inside_is_numbered_too(enter: Enter) -> None:
    """The scheduler sets these numbers anew for each step, wherever it is started."""
    env = {"HPCWRAP_CONTAINER": NAME, "A": "kept", "V": "3"}
    found = enter.environment("set", "A", "site", "renumber", "V", "3=0", env=env)
    assert found == {"A": "kept", "V": "0"}


@pytest.mark.parametrize(
    ("job", "inside"),
    [
        (None, IMAGE_PATH),
        ("", IMAGE_PATH),
        (SYSTEM_PATH, IMAGE_PATH),
        (SYSTEM_PATH + ":/usr/local/games:/usr/games", IMAGE_PATH),
        ("/home/a/bin:" + SYSTEM_PATH, "/home/a/bin:" + IMAGE_PATH),
        (SYSTEM_PATH + ":/home/a/bin", IMAGE_PATH + ":/home/a/bin"),
        ("/home/a/bin", "/home/a/bin:" + IMAGE_PATH),
        ("/bin:/home/a/bin:/usr/bin:.", IMAGE_PATH + ":/home/a/bin:."),
        ("/opt/app/bin:/home/a/bin", "/home/a/bin:" + IMAGE_PATH),
        ("/bin/../bin:/usr/bin/", "/bin/../bin:/usr/bin/:" + IMAGE_PATH),
        (":/usr/bin:", ":" + IMAGE_PATH + ":"),
    ],
)
def test_path_rule(enter: Enter, job: Optional[str], inside: str) -> None:
    env = {} if job is None else {"PATH": job}
    assert enter.environment("path", IMAGE_PATH, env=env) == {"PATH": inside}
    again = enter.environment("path", IMAGE_PATH, env={"PATH": inside})
    assert again == {"PATH": inside}, "the rule must be idempotent"


def test_instructions_apply_in_their_order(enter: Enter) -> None:
    found = enter.environment(
        "default", "PATH", "/kept", "path", "/usr/bin", "prepend", "PATH", "/site/bin", env={}
    )
    assert found == {"PATH": "/site/bin:/kept:/usr/bin"}


def test_environment_from_inside_is_passed_on_untouched(enter: Enter) -> None:
    enter.write("set", "A", "site", "path", IMAGE_PATH)
    env = {"HPCWRAP_CONTAINER": NAME, "A": "mine", "PATH": "/mine:/bin:/usr/bin"}
    done = enter.run("env", env=env)
    assert sorted(done.stdout.split()) == sorted(f"{key}={value}" for key, value in env.items())


def test_environment_from_another_container_is_not(enter: Enter) -> None:
    env = {"HPCWRAP_CONTAINER": "other@sha256:00", "A": "theirs"}
    assert enter.environment("set", "A", "site", env=env) == {"A": "site"}


def test_long_values(enter: Enter) -> None:
    value = "x" * 100_000
    assert enter.environment("set", "A", value)["A"] == value


def test_command_is_looked_up_in_the_path_of_inside(enter: Enter, tmp_path: pathlib.Path) -> None:
    tool = tmp_path / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    enter.write("prepend", "PATH", str(tool.parent))
    assert enter.run("tool").stdout == "found\n"


# ---- limits ----


def limits_inside(enter: Enter) -> Dict[str, List[str]]:
    done = enter.run("cat", "/proc/self/limits")
    assert done.returncode == 0, done.stderr
    return {line[:26].strip(): line[26:].split()[:2] for line in done.stdout.splitlines()}


def test_limits_of_the_record_and_no_other(enter: Enter) -> None:
    before = limits_inside(enter)
    enter.write("rlimit", "nofile", "200", "300", "rlimit", "core", "0", "unlimited")
    after = limits_inside(enter)
    assert after.pop("Max open files") == ["200", "300"]
    assert after.pop("Max core file size")[0] == "0"
    assert after.items() <= before.items()


def test_hard_limits_are_roots_to_raise(
    program: str, tmp_path: pathlib.Path, holder: Holder
) -> None:
    enter = Enter(program, tmp_path, holder)
    enter.write("rlimit", "nofile", "200", "300")
    (tmp_path / "first").mkdir()
    (tmp_path / "entry").rename(tmp_path / "first" / "entry")
    enter.write("rlimit", "nofile", "200", "400")
    command = [program, str(tmp_path / "first"), program, str(tmp_path), "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert done.stderr == (
        "hpcwrap-enter: cannot raise the limit nofile from 300 to 400, as the site's settings say: "
        "only root may raise a hard limit, and nofile only up to /proc/sys/fs/nr_open (the "
        "scheduler's daemon must start with more)\n"
    )


# ---- broken records ----


def test_missing_directory(enter: Enter, tmp_path: pathlib.Path) -> None:
    enter.directory = tmp_path / "no-such-job"
    done = enter.run("true")
    assert done.returncode == 125
    assert "cannot open the job's directory" in done.stderr


def test_missing_entry(enter: Enter) -> None:
    (enter.directory / "entry").unlink()
    done = enter.run("true")
    assert done.returncode == 125
    assert "cannot read the record of the container: No such file" in done.stderr


def test_error_of_the_prolog_is_told(enter: Enter) -> None:
    (enter.directory / "error").write_text("cannot find the image foo (see hpcwrap images)\n\n")
    done = enter.run("true")
    assert (done.returncode, done.stderr) == (
        125,
        "hpcwrap-enter: cannot find the image foo (see hpcwrap images)\n",
    )


def test_empty_error_of_the_prolog(enter: Enter) -> None:
    (enter.directory / "error").write_text("")
    done = enter.run("true")
    assert done.returncode == 125
    assert "without a reason" in done.stderr


def broken_entries(enter: Enter) -> Dict[str, bytes]:
    enter.write("set", "A", "1")
    good = (enter.directory / "entry").read_bytes()
    head = b"\0".join([b"hpcwrap-entry-1", b"container", NAME.encode(), b""])
    joins = "\0".join([*enter.holder.namespaces(), ""]).encode()
    return {
        "empty": b"",
        "another version": good.replace(b"entry-1", b"entry-2", 1),
        "no final NUL": good[:-1],
        "no end": good[: -len(b"end\0")],
        "something after end": good + b"end\0",
        "unknown verb": good.replace(b"\0set\0", b"\0sez\0"),
        "argument missing": head + joins + b"set\0A\0",
        "no container": good[: len("hpcwrap-entry-1") + 1] + joins + b"end\0",
        "no namespace": head + b"end\0",
        "two namespaces": head + joins + joins + b"end\0",
        "bad variable name": head + joins + b"set\0A=B\0C\0end\0",
        "empty variable name": head + joins + b"unset\0\0end\0",
        "unknown limit": head + joins + b"rlimit\0locks\0001\0002\0end\0",
        "limit without a number": head + joins + b"rlimit\0nofile\0\0002\0end\0",
        "limit that is negative": head + joins + b"rlimit\0nofile\0-1\0-1\0end\0",
        "namespace gone": head + b"mount-namespace\0/no/such/namespace\0end\0",
        "not a namespace": head + b"mount-namespace\0/dev/null\0end\0",
        "too large": good[:-4] + b"set\0A\0" + b"x" * (1 << 20) + b"\0end\0",
        "binary": bytes(range(256)) * 4 + b"\0",
    }


def test_every_broken_record_fails_and_runs_nothing(enter: Enter, tmp_path: pathlib.Path) -> None:
    for name, content in broken_entries(enter).items():
        (enter.directory / "entry").write_bytes(content)
        done = enter.run("touch", str(tmp_path / "ran"))
        assert done.returncode == 125, name
        assert done.stderr.startswith("hpcwrap-enter: cannot "), name
        assert done.stderr.count("\n") == 1, name
        assert not (tmp_path / "ran").exists(), name


def test_entry_must_not_be_a_link(enter: Enter) -> None:
    entry = enter.directory / "entry"
    entry.rename(enter.directory / "elsewhere")
    entry.symlink_to("elsewhere")
    assert enter.run("true").returncode == 125


def test_cut_at_every_byte(enter: Enter) -> None:
    enter.write("default", "A", "1", "path", IMAGE_PATH, "append", "B", "2")
    whole = (enter.directory / "entry").read_bytes()
    for length in range(len(whole)):
        (enter.directory / "entry").write_bytes(whole[:length])
        assert enter.run("true").returncode == 125, length

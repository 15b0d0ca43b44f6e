"""Grid Engine's files and its filter, on recordings of a real 8.1.9 (Debian 12)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Dict, List, Optional

import pytest

from hpcwrap.config import Config, Settings
from hpcwrap.environment import Environment
from hpcwrap.errors import SiteError, UserError
from hpcwrap.hooks import submit_gridengine as jsv
from hpcwrap.job import NO_LIMITS
from hpcwrap.schedulers import gridengine, gridengine_table
from hpcwrap.verbs import setup_gridengine

DIGEST = "sha256:" + 64 * "0"
CONFIG = {
    "add_grp_id": "65401",
    "stdout_path": "/home/alice",
    "stderr_path": "/home/alice",
    "merge_stderr": "0",
    "tmpdir": "/tmp/8.1.all.q",
    "h_vmem": "300M",
    "h_vmem_is_consumable_job": "0",
    "h_rss": "INFINITY",
    "script_file": "QRSH",
    "job_owner": "root",
    "cwd": "/home/alice",
    "starter_method": "NONE",
    "pe": "mpi",
    "host_slots": "2",
    "queue": "all.q",
    "job_name": "env",
    "job_id": "8",
    "ja_task_id": "0",
    "acct_project": "none",
}


def spool(tmp_path: Path, more: str = "", variables: str = "", **changes: str) -> gridengine.Spool:
    """A shepherd's directory, as execd leaves it."""
    directory = tmp_path / "active_jobs" / "8.1"
    directory.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{name}={value}\n" for name, value in {**CONFIG, **changes}.items())
    (directory / "config").write_text(lines + more)
    (directory / "environment").write_bytes(b"A=B\nQRSH_COMMAND=env\xffX=1\n" + variables.encode())
    (directory / "pe_hostfile").write_text("n1 2 all.q@n1 UNDEFINED\nn2 2 all.q@n2 UNDEFINED\n")
    return gridengine.read_spool(str(directory))


def test_the_job_of_a_shepherd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = spool(tmp_path, variables="HPCWRAP_REQUEST=debian-12\n", acct_project="physics")
    monkeypatch.chdir(made.directory)
    job, request = gridengine.read_prolog({"HPCWRAP_SHEPHERD": "17"})
    assert (job.id, job.user.name, job.workdir, job.nodes) == (
        "gridengine-8-0",
        "root",
        "/home/alice",
        2,
    )
    assert job.places == (("queue", "all.q"), ("project", "physics"))
    assert job.owners == (17,)
    assert job.limits.memory == 600 << 20
    assert (request.container, request.origin) == ("debian-12", "-l container")


def test_a_line_of_the_users_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="job_owner twice"):
        spool(tmp_path, cwd="/home/alice/x\njob_owner=bob")
    with pytest.raises(UserError, match="queue twice"):
        spool(tmp_path, stdout_path="/home/alice/x\nqueue=none")
    with pytest.raises(UserError, match="qlogin_daemon where execd writes none"):
        spool(tmp_path, stdout_path="/home/alice/x\nqlogin_daemon=/home/alice/y")
    with pytest.raises(UserError, match="job_owner twice"):
        spool(tmp_path, cwd="/home/alice/x\n =job_owner bob")
    with pytest.raises(UserError, match="a line where execd writes none"):
        spool(tmp_path, cwd="/home/alice/x\n\ny")
    with pytest.raises(UserError, match="a line of job_arg1 that shepherds take for two"):
        spool(tmp_path, job_arg1=f"{'x' * 99_990}job_owner=bob")
    # execd itself writes this one twice.
    twice = "pe_task_id=1.n2\npe_task_id=1.n2\n"
    assert spool(tmp_path, twice).is_task


@pytest.mark.parametrize("number", ["", "..", "8/../9", "8 ", "٣", "-1"])
def test_only_numbers_name_a_directory(tmp_path: Path, number: str) -> None:
    with pytest.raises(SiteError, match="job_id"):
        _ = spool(tmp_path, job_id=number).job_id


@pytest.mark.parametrize(
    ("changes", "memory"),
    [
        ({"h_vmem": "INFINITY"}, None),
        ({"h_vmem": "1G", "host_slots": "1"}, 1 << 30),
        ({"h_vmem": "1g", "host_slots": "1"}, 10**9),
        ({"h_vmem": "300M", "h_vmem_is_consumable_job": "1"}, 300 << 20),
        ({"h_vmem": "300M", "h_rss": "100M"}, 200 << 20),
        ({"h_vmem": "4096", "host_slots": "junk"}, 4096),
    ],
)
def test_memory(changes: Dict[str, str], memory: Optional[int]) -> None:
    limits = gridengine.read_limits({**CONFIG, **changes})
    assert limits == NO_LIMITS._replace(memory=memory)


@pytest.mark.parametrize(
    ("changes", "path", "name"),
    [
        ({}, "/home/alice", "env.e8"),
        ({"ja_task_id": "3"}, "/home/alice", "env.e8.3"),
        ({"merge_stderr": "1", "stdout_path": "/home/alice/x"}, "/home/alice/x", "env.o8"),
        ({"stderr_path": "/dev/null"}, "", "env.e8"),
    ],
)
def test_where_the_errors_of_a_job_go(
    tmp_path: Path, changes: Dict[str, str], path: str, name: str
) -> None:
    assert gridengine.output(spool(tmp_path, **changes)) == (path, name)


def test_the_starter_takes_the_place_of_the_queues(tmp_path: Path) -> None:
    made = spool(tmp_path)
    gridengine.set_starter(made, "/opt/hpcwrap/libexec/hpcwrap/hpcwrap-starter")
    changed = gridengine.read_spool(made.directory).config
    starter = changed["starter_method"]
    assert starter == "/opt/hpcwrap/libexec/hpcwrap/hpcwrap-starter"
    assert {**changed, "starter_method": "NONE"} == made.config


def test_a_login_becomes_a_command(tmp_path: Path) -> None:
    """As execd would have written it: qrsh_starter has the starter start a shell."""
    made = spool(tmp_path, "queue_tmpdir=/tmp\nrlogin_daemon=builtin\n", **login())
    gridengine.set_starter(made, "/opt/starter")
    changed = gridengine.read_spool(made.directory).config
    assert {name: changed[name] for name in changed if changed[name] != made.config.get(name)} == {
        "script_file": "QRSH",
        "rsh_daemon": "builtin",
        "qrsh_tmpdir": "/tmp/8.1.all.q",
        "qrsh_pid_file": "/tmp/8.1.all.q/pid",
        "pty": "1",
        "starter_method": "/opt/starter",
    }
    lines = (Path(made.directory) / "environment").read_bytes().splitlines()
    assert lines[0] == b"A=B"
    assert len(lines) == 2
    assert lines[1].startswith(b"QRSH_COMMAND=SHELL=/")


def login(**changes: str) -> Dict[str, str]:
    return {"script_file": "QRLOGIN", "pty": "2", **changes}


@pytest.mark.parametrize(
    ("more", "changes"),
    [
        ("rlogin_daemon=/usr/sbin/sshd -i\n", login()),
        ("", login()),
        ("", {"script_file": "interactive"}),
        ("", {"script_file": "qlogin"}),
    ],
)
def test_what_cannot_be_brought_inside(tmp_path: Path, more: str, changes: Dict[str, str]) -> None:
    assert spool(tmp_path, f"queue_tmpdir=/tmp\n{more}", **changes).is_outside
    assert not spool(tmp_path).is_outside


def test_where_a_login_wants_no_terminal_it_gets_none(tmp_path: Path) -> None:
    made = spool(tmp_path, "queue_tmpdir=/tmp\nrlogin_daemon=builtin\n", **login(pty="0"))
    gridengine.set_starter(made, "/opt/starter")
    assert gridengine.read_spool(made.directory).config["pty"] == "0"


def test_no_wrapper_takes_the_starters_place(tmp_path: Path) -> None:
    made = spool(tmp_path, variables="QRSH_WRAPPER=/usr/bin/env\nB=C\n")
    gridengine.set_starter(made, "/opt/starter")
    environment = Path(made.directory) / "environment"
    assert environment.read_bytes() == b"A=B\nQRSH_COMMAND=env\xffX=1\nB=C\n"


@pytest.mark.parametrize("shell", ["/bin/bash", "/no/such/shell", "/bin/sh;id", ""])
def test_the_shell_of_a_login(tmp_path: Path, shell: str) -> None:
    """One that the image does not have, or of an odd name, is /bin/sh."""
    words = ["/bin/sh", "-c", gridengine.login_command(shell)]
    done = subprocess.run(words, input="echo $SHELL", capture_output=True, text=True, check=True)
    assert done.stdout == ("/bin/bash\n" if shell == "/bin/bash" else "/bin/sh\n")


# ---- the filter ----


def environment(name: str, *users: str) -> Environment:
    return Environment(name, "", "", (), (), None, users, (), "")


@pytest.fixture
def reader(tmp_path: Path) -> gridengine_table.Reader:
    """A table with an environment for everyone, one for nobody here, and a broken one."""
    known = [environment("debian-12"), environment("bobs", "bob")]
    settings = Settings()._replace(
        allow_none=False, defaults={"gridengine": {"queue": {"long.q": "bobs"}, "project": {}}}
    )
    made = Config(
        path="x",
        settings=settings,
        environments={each.name: each for each in known},
        broken={"odd": SiteError("it is odd")},
        origins={},
        environment_origins={},
        partial={},
    )
    path = tmp_path / "table.json"
    path.write_text(gridengine_table.render(made, {"debian-12": DIGEST}, 0.0))
    return gridengine_table.Reader(str(path))


def answer(reader: gridengine_table.Reader, *lines: str) -> List[str]:
    """The filter's answer to lines of the protocol."""
    (submission,) = told("START", "PARAM USER root", *lines, "BEGIN")
    return jsv.answer(submission, reader)


def told(*lines: str) -> List[jsv.Submission]:
    """The submissions that the filter finds, where the server writes a line when it has to."""
    reading, writing = os.pipe()
    found: List[jsv.Submission] = []
    try:
        waiting = jsv.submissions(jsv.Lines(reading))
        for line in lines:
            os.write(writing, f"{line}\n".encode())
            if line == "BEGIN":
                found += [each for each in [next(waiting, None)] if each]
        os.close(writing)
        return [*found, *waiting]
    finally:
        os.close(reading)


@pytest.mark.parametrize(
    "value",
    ["x\nBEGIN\nSTART", "x\nBEGIN\ny", "x\nSTART\nPARAM l_hard container=bobs", "x\nQUIT"],
)
def test_a_line_feed_gives_nobody_anothers_answer(value: str) -> None:
    assert told("START", f"PARAM o {value}", "PARAM l_hard container=debian-12", "BEGIN") == []


def test_after_an_early_begin_nothing_more_is_answered() -> None:
    early = told("START", "PARAM o x", "BEGIN", "PARAM l_hard container=debian-12", "BEGIN")
    assert len(early) == 1


def test_a_line_feed_in_a_variable_is_none_of_our_business(reader: gridengine_table.Reader) -> None:
    assert answer(reader, "ENV ADD A one\n two() {", "PARAM b y") == ["RESULT STATE ACCEPT"]


def test_the_request_becomes_a_variable(reader: gridengine_table.Reader) -> None:
    lines = ("PARAM l_hard h_vmem=1G,container=debian-12,mem_free=2G", "PARAM ac k=v,hpcwrap=old")
    assert answer(reader, *lines) == [
        f"ENV ADD HPCWRAP_REQUEST debian-12@{DIGEST}",
        "PARAM l_hard h_vmem=1G,mem_free=2G",
        f"PARAM ac k=v,hpcwrap=debian-12@{DIGEST}",
        "RESULT STATE CORRECT",
    ]


def test_what_a_clients_filter_has_done_is_not_lost(reader: gridengine_table.Reader) -> None:
    variable = "ENV ADD HPCWRAP_REQUEST debian-12"
    assert answer(reader, variable)[0] == f"ENV MOD HPCWRAP_REQUEST debian-12@{DIGEST}"


def test_a_job_without_a_container_is_as_it_was(reader: gridengine_table.Reader) -> None:
    assert answer(reader, "PARAM l_hard h_vmem=1G") == ["RESULT STATE ACCEPT"]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["PARAM l_hard container=debain-12"], "did you mean debian-12"),
        (["PARAM l_hard container=bobs"], "root may not use the environment bobs"),
        (["PARAM l_hard container=odd"], "its description has a mistake"),
        (["PARAM l_hard container=none"], "this site does not allow it"),
        (["PARAM l_hard container="], "there is no environment"),
        (["PARAM l_hard container=/home/x.sqsh"], "this site allows its environments only"),
        (["PARAM l_soft container=debian-12"], "as a soft request"),
        (
            ["PARAM l_hard container=debian-12", "PARAM CMDNAME NONE", "PARAM N INTERACTIVE"],
            "cannot log in",
        ),
        (["PARAM q_hard long.q@n1"], "root may not use the environment bobs"),
        (["ENV ADD HPCWRAP_REQUEST bobs"], "root may not use the environment bobs"),
    ],
)
def test_what_is_refused(reader: gridengine_table.Reader, lines: List[str], why: str) -> None:
    (line,) = answer(reader, *lines)
    assert line.startswith("RESULT STATE REJECT hpcwrap: ")
    assert why in line


def test_a_login_is_taken(reader: gridengine_table.Reader) -> None:
    """The node brings it inside."""
    lines = ("PARAM l_hard container=debian-12", "PARAM CMDNAME NONE", "PARAM N QLOGIN")
    assert answer(reader, *lines)[-1] == "RESULT STATE CORRECT"


def test_without_a_table_only_containers_are_refused(tmp_path: Path) -> None:
    reader = gridengine_table.Reader(str(tmp_path / "none.json"))
    assert answer(reader, "PARAM q_hard long.q") == ["RESULT STATE ACCEPT"]
    (line,) = answer(reader, "PARAM l_hard container=debian-12")
    assert "hpcwrap setup gridengine --table" in line


def test_a_new_table_is_read(reader: gridengine_table.Reader) -> None:
    assert "debian-12" in reader.read().environments
    path = Path(reader.path)
    new = path.with_suffix(".new")
    new.write_text(path.read_text().replace("debian-12", "debian-13"))
    new.rename(path)
    assert "debian-13" in reader.read().environments


# ---- qconf ----


def test_the_attribute_of_the_complex() -> None:
    lines = "#name shortcut type relop requestable consumable default urgency\n"
    assert setup_gridengine.has_attribute(lines + setup_gridengine.ATTRIBUTE)
    assert not setup_gridengine.has_attribute(lines + "container ctr BOOL == YES NO 0 0\n")
    assert not setup_gridengine.has_attribute(lines + "container ctr RESTRING == NO NO NONE 0\n")

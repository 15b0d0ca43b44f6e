"""HTCondor's words, literally as the starter has them, in ours and back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any, Dict, List, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcwrap import helper
from hpcwrap.config import NO_DEFAULTS, Config, Settings
from hpcwrap.environment import Environment
from hpcwrap.errors import UserError
from hpcwrap.gpus import Gpus
from hpcwrap.hooks import enter_htcondor, session_htcondor
from hpcwrap.job import Limits, User
from hpcwrap.request import Request
from hpcwrap.schedulers import htcondor, htcondor_files

ALICE = User("alice", 2001, 2001, (2001,), "/home/alice")
SCRATCH = "/var/lib/condor/execute/dir_265"
SHARED = (
    f"-s exec -S /tmp -S /var/tmp -B /home/alice -W {SCRATCH} --pwd /home/alice -B {SCRATCH} "
    "-C /home/alice/debian-12 /bin/hostname a -s"
)
TRANSFER = (
    f"-s exec -S /tmp -S /var/tmp -W {SCRATCH} --pwd {SCRATCH} -B {SCRATCH} --home {SCRATCH} "
    "--nv -C docker://registry:5000/debian-12:latest ./condor_exec.exe"
)
PROGRAMS = htcondor_files.Programs("/job", "/release", "/session")
AD = 'ClusterId = 12\nProcId = 3\ncontainer = "debian-12"\nContainerImage = "x\\"y"\n'


def environment(name: str, **more: Any) -> Environment:
    found = Environment(name, f"registry/{name}", "", (), (), None, (), (), f"{name}.yaml")
    return found._replace(**more)


def config(settings: Settings, *known: Environment) -> Config:
    return Config("hpcwrap.yaml", settings, {}, {each.name: each for each in known}, {}, {}, {})


# ---- the command line ----


def test_a_job_of_a_shared_file_system() -> None:
    call = enter_htcondor.parse(SHARED.split())
    assert call == enter_htcondor.Call(
        "exec",
        "/home/alice/debian-12",
        ("/bin/hostname", "a", "-s"),
        ("/home/alice", SCRATCH),
        ("/tmp", "/var/tmp"),
        SCRATCH,
        "/home/alice",
    )


def test_a_job_with_file_transfer() -> None:
    call = enter_htcondor.parse(TRANSFER.split())
    assert (call.directory, call.home, call.scratch) == (SCRATCH, SCRATCH, ("/tmp", "/var/tmp"))
    assert call.command == ("./condor_exec.exe",)


def test_the_version_says_which_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    assert enter_htcondor.start(["--version"]) == 0
    assert "apptainer" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", ["", "-s", "shell -C x", "exec", "exec --fakeroot x y", "exec -S", "instance list"]
)
def test_what_is_not_known_runs_nothing(words: str) -> None:
    with pytest.raises(UserError):
        enter_htcondor.parse(words.split())


def test_a_probe_fails_where_no_helper_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_helper(_message: object) -> None:
        raise UserError("no helper")

    monkeypatch.setattr(enter_htcondor.helperclient, "ask", no_helper)
    assert enter_htcondor.start(["exec", "-C", "/usr/libexec/x", "/exit_37"]) == htcondor.FAILED


@pytest.mark.parametrize(
    ("image", "ad", "asked"),
    [
        ("/home/alice/debian-12", {"containerimage": "debian-12"}, "debian-12"),
        ("/home/alice/docker://debian-12", {"containerimage": "docker://debian-12"}, "debian-12"),
        ("debian-12", {"container": "debian-12", "containerimage": "docker://x"}, "debian-12"),
        ("/home/alice/none", {"container": "none"}, "none"),
        ("/home/alice/hpcwrap:default", {}, "hpcwrap:default"),
        ("/home/alice/debian-12", {}, "debian-12"),
        (
            "/home/alice/debian-12",
            {"containerimage": "/home/alice/debian-12"},
            "/home/alice/debian-12",
        ),
        ("/home/alice/my.sif", {"containerimage": "my.sif"}, "/home/alice/my.sif"),
        ("docker://r:5000/a/b:c", {}, "r:5000/a/b:c"),
        ("/cvmfs/some/where", {}, "/cvmfs/some/where"),
    ],
)
def test_the_starter_puts_the_directory_before_names(
    image: str, ad: Dict[str, str], asked: str
) -> None:
    assert enter_htcondor.asked_image(image, "/home/alice", ad) == asked


def test_ads_are_read_by_names_in_small_letters(tmp_path: Any) -> None:
    (tmp_path / "ad").write_text(AD)
    ad = enter_htcondor.read_ad(str(tmp_path / "ad"))
    assert (ad["clusterid"], ad["procid"], ad["container"]) == ("12", "3", "debian-12")


def test_variables_come_twice_and_the_inner_one_counts() -> None:
    environ = {
        "TMPDIR": SCRATCH,
        "APPTAINERENV_TMPDIR": "/tmp",
        "APPTAINERENV_LD_LIBRARY_PATH": "/mine",
        "APPTAINER_CACHEDIR": SCRATCH,
        "APPTAINERENV_APPTAINER_CACHEDIR": SCRATCH,
        "LC_CTYPE": "C.UTF-8",
        "_CONDOR_ANCESTOR_7": "8:9:10",
    }
    assert enter_htcondor.job_variables(environ, "/scratch") == {
        "TMPDIR": "/tmp",
        "LD_LIBRARY_PATH": "/mine",
        "HOME": "/scratch",
        "_CONDOR_ANCESTOR_7": "8:9:10",
    }


@pytest.mark.parametrize(
    ("cgroup", "has"),
    [
        ("0::/htcondor/condor_var_lib_condor_execute_slot1_1@vm\n", True),
        ("0::/system.slice/htcondor/condor_var_lib_condor_execute_slot1_1@n1.x\n", True),
        ("0::/system.slice/condor.service\n", False),
        ("4:memory:/\n0::/\n", False),
    ],
)
def test_the_starters_cgroup_is_known_by_its_name(cgroup: str, *, has: bool) -> None:
    assert bool(enter_htcondor.IN_A_CGROUP.search(cgroup)) is has


# ---- a session in a job ----


@pytest.fixture
def session(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Dict[str, str]:
    """The variables of a session in a job that came by the knob; what it becomes is only told."""
    (tmp_path / ".docker_sock").touch()
    (tmp_path / ".job.ad").write_text(AD)
    monkeypatch.chdir("/")
    monkeypatch.setattr(session_htcondor, "execute_on_host", lambda *words: ("host", *words))
    monkeypatch.setattr(session_htcondor.run, "execute", lambda *words: ("inside", *words))
    names = {"IWD": str(tmp_path), "PIDS": "", "AD": str(tmp_path / ".job.ad")}
    return {
        **{f"_CONDOR_JOB_{name}": value for name, value in names.items()},
        "_CONDOR_SCRATCH_DIR": str(tmp_path),
        "_CONDOR_SLOT": "slot1_1",
        "HOME": "/home/alice",
        "SHELL": "/bin/zsh",
    }


def let_helper_say(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> List[Dict[str, Any]]:
    asked: List[Dict[str, Any]] = []
    left = list(answers)

    def ask(message: Dict[str, Any]) -> Any:
        asked.append(message)
        return {"directory": left.pop(0), "descriptors": [7]}

    monkeypatch.setattr(session_htcondor.helperclient, "ask", ask)
    monkeypatch.setattr(session_htcondor, "PAUSE_S", 0)
    return asked


def test_a_session_goes_to_the_jobs_container(
    session: Dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job, whose process is there, had not yet asked for its container."""
    session = {**session, "_CONDOR_JOB_PIDS": str(os.getpid()), "SSH_ORIGINAL_COMMAND": "a  b"}
    asked = let_helper_say(monkeypatch, None, "/jobs/mine")
    kind, words, variables = cast(Any, session_htcondor.open_session("env.sh", session))
    assert (kind, words[1:5]) == ("inside", ["--mount-namespace", "7", "/jobs/mine", "--"])
    assert words[-2:] == ["/bin/zsh", "a  b"]
    assert (variables["HOME"], os.getcwd()) == (session["_CONDOR_SCRATCH_DIR"],) * 2
    assert [each["do"] for each in asked] == ["find"] * 2
    assert asked[0]["variables"] == {"job": "12.3", "slot": "slot1_1"}


@pytest.mark.parametrize("process", ["", "4194305"])
def test_a_session_without_the_container_is_refused(
    session: Dict[str, str], monkeypatch: pytest.MonkeyPatch, process: str
) -> None:
    let_helper_say(monkeypatch, None)
    with pytest.raises(UserError, match="cannot open a session"):
        session_htcondor.open_session("env.sh", {**session, "_CONDOR_JOB_PIDS": process})


def name_image(session: Dict[str, str], text: str) -> None:
    with open(session["_CONDOR_JOB_AD"], "w", encoding="utf-8") as ad:
        ad.write(f"ClusterId = 12\nProcId = 3\n{text}\n")


@pytest.mark.parametrize("text", ["", 'Container = "none"'])
def test_a_session_of_a_job_on_the_host_is_htcondors(session: Dict[str, str], text: str) -> None:
    name_image(session, text)
    words = session_htcondor.open_session("env.sh", {**session, "_CONDOR_SCRATCH_DIR": "/no"})
    kind, words, variables = cast(Any, words)
    assert (kind, words) == ("host", [session_htcondor.HOST_SETUP, "env.sh"])
    assert variables["HOME"] == "/home/alice"


@pytest.mark.parametrize("change", [{"_CONDOR_SCRATCH_DIR": "/no"}, {"_CONDOR_JOB_AD": "/no"}])
def test_nothing_that_is_not_there_leads_to_the_host(
    session: Dict[str, str], monkeypatch: pytest.MonkeyPatch, change: Dict[str, str]
) -> None:
    """The job names a container, and one of ContainerImage's is not the one that counts."""
    name_image(session, 'Container = "debian-12"\nContainerImage = "none"')
    let_helper_say(monkeypatch, None)
    with pytest.raises(UserError, match="cannot open a session"):
        session_htcondor.open_session("env.sh", {**session, **change})


def test_a_session_of_a_job_that_wants_no_container(session: Dict[str, str]) -> None:
    """In a pool with a default it comes by the knob, too."""
    name_image(session, 'Container = "none"')
    kind, words, _ = cast(Any, session_htcondor.open_session("env.sh", session))
    assert (kind, words[-2:]) == ("host", ["/bin/zsh", ""])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/bin/sh", "echo $((6 * 7))"], "42\n"),
        (["/no/such/shell", "echo $((6 * 7)); exit 0"], "42\n"),
        (["/bin/echo", ""], "-l\n"),
    ],
)
def test_the_users_own_shell_where_there_is_one(words: List[str], said: str) -> None:
    command = ["/bin/sh", "-c", session_htcondor.SHELL, "sh", *words]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == said


@pytest.mark.parametrize(
    ("interactive", "ends"), [("InteractiveJob = true\n", True), ("x = true\n", False)]
)
def test_the_placeholder_of_an_interactive_job_ends(
    session: Dict[str, str], monkeypatch: pytest.MonkeyPatch, interactive: str, *, ends: bool
) -> None:
    with open(session["_CONDOR_JOB_AD"], "a", encoding="utf-8") as ad:
        ad.write(interactive)
    let_helper_say(monkeypatch, "/jobs/mine")
    with subprocess.Popen(["sleep", "60"]) as placeholder:
        session_htcondor.open_session(
            "env.sh", {**session, "_CONDOR_JOB_PIDS": str(placeholder.pid)}
        )
        if not ends:
            placeholder.kill()
        assert placeholder.wait() == (-signal.SIGTERM if ends else -signal.SIGKILL)


# ---- what the helper reads ----


def test_a_job_as_the_helper_reads_it() -> None:
    words = {"job": "12.3", "slot": "slot1_1", "container": "debian-12", "workdir": "/home/alice"}
    job, request = htcondor.read_caller(words, ALICE)
    assert (job.id, job.workdir, job.places) == (
        "htcondor-12.3-slot1_1",
        "/home/alice",
        (("pool", "default"),),
    )
    assert request == Request("debian-12", "container_image")
    assert (
        htcondor.read_caller({**words, "container": htcondor.DEFAULT}, ALICE)[1].container is None
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"job": "12"},
        {"job": "12.x"},
        {"job": "1.0/.."},
        {"slot": ""},
        {"slot": "a/b"},
        {"container": "a b"},
    ],
)
def test_what_no_starter_says(wrong: Dict[str, str]) -> None:
    words = {"job": "12.3", "slot": "slot1_1", "container": "debian-12"}
    with pytest.raises(UserError):
        htcondor.read_caller({**words, **wrong}, ALICE)


def test_gpus_that_the_starter_gave() -> None:
    none = {"CUDA_VISIBLE_DEVICES": "10000", "GPU_DEVICE_ORDINAL": "10000"}
    assert htcondor.read_gpus(none) is None
    assert htcondor.read_gpus({}) is None
    given = {**none, "CUDA_VISIBLE_DEVICES": "GPU-6e3f,GPU-77aa"}
    assert htcondor.read_gpus(given) == Gpus(("GPU-6e3f", "GPU-77aa"), ("nvidia.com",))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from([*helper.KEYS, "user"]) | st.text(max_size=4), inner, max_size=6
            )
        ),
    )
)
def test_any_message_is_read_or_refused(document: Any) -> None:
    try:
        asked = helper.read_message(json.dumps(document).encode() + b"\n")
    except UserError:
        return
    assert asked.do in helper.VERBS
    assert all(isinstance(value, str) for value in (*asked.variables.values(), *asked.mounts))
    assert 0 <= asked.above <= helper.GENERATIONS


@given(st.binary(max_size=200))
def test_any_line_is_read_or_refused(line: bytes) -> None:
    with pytest.raises(UserError):
        helper.read_message(line)


def test_limits_only_get_lower() -> None:
    site = Limits(memory=100, cpus=2.0)
    assert helper.lower(site, Limits(memory=200, pids=7)) == Limits(memory=100, cpus=2.0, pids=7)
    assert helper.lower(site, Limits(memory=50)).memory == 50


# ---- what is written ----


def test_without_a_default_only_jobs_that_name_one_come_to_hpcwrap() -> None:
    text = htcondor_files.render_node(Settings(), PROGRAMS)
    assert "\nSINGULARITY = /job\n" in text
    assert """\nSSH_TO_JOB_SSHD_ARGS = "-i -e -f %f -o 'ForceCommand=/session %f'"\n""" in text
    assert 'isnt "none"' in text
    assert "\nSINGULARITY_JOB = True\n" not in text


def test_with_a_default_every_job_does() -> None:
    defaults = {**NO_DEFAULTS, "htcondor": {"pool": {"default": "debian-12"}}}
    settings = Settings(defaults=defaults)
    assert "\nSINGULARITY_JOB = True\n" in htcondor_files.render_node(settings, PROGRAMS)
    assert "JOB_TRANSFORM_HpcwrapDefault" in htcondor_files.render_submit(config(settings), {})


def rules(known: Config, members: Any) -> List[str]:
    return [rule.name for rule in htcondor_files.make_rules(known, members)]


def test_what_is_refused_at_submission_follows_the_settings() -> None:
    own = environment("own", users=("bob",))
    group = environment("group", groups=("chem",))
    strict = config(Settings(allow_none=False), own, group)
    names = ["HpcwrapImages", "HpcwrapKnown", "HpcwrapNone", "HpcwrapUsers0", "HpcwrapUsers1"]
    assert rules(strict, {"chem": ["alice"]}) == names
    assert rules(strict, {"chem": None}) == [*names[:3], "HpcwrapUsers1"]
    assert rules(config(Settings(user_images=True)), {}) == ["HpcwrapKnown"]


def test_texts_of_the_site_stay_texts() -> None:
    assert htcondor_files.quote('a"b\\c$(d)') == '"a\\"b\\\\c(d)"'


def test_only_jobs_of_several_nodes_have_a_launcher() -> None:
    assert htcondor.launcher(Settings(), {"CUDA_VISIBLE_DEVICES": "10000"}) is None
    made = htcondor.launcher(Settings(), {"_CONDOR_NPROCS": "2"})
    assert made is not None
    assert made.words == ("/.hpcwrap/bin/hpcwrap-mpi", "--start", "%h", "%c")


def test_the_number_of_nodes_is_no_gpu() -> None:
    assert htcondor.read_gpus({"_CONDOR_NPROCS": "2"}) is None

"""The same jobs on every scheduler: inside from the first to the last process, or not at all."""

from __future__ import annotations

import re
from collections import Counter
from typing import Dict, Iterator, List, NamedTuple

import pytest
from cluster_site import NODES
from driver import LONG, Ask, Batch, Driver, Ended

OUTSIDE = "/home/alice/ran-outside"
WRONG = f"echo outside >>{OUTSIDE}\n"
LOOK = (
    'echo "@ $(uname -n) $(readlink /proc/self/ns/mnt) $(cat /etc/demo-image) $HPCWRAP_CONTAINER"'
)
HOST = "echo in=$HPCWRAP_CONTAINER; test -e /etc/demo-image || echo host\n"
FILL = "dd if=/dev/zero of=/dev/null bs=400M count=1 && echo survived\n"
RANKS = (1, 2, 32)
CODES = (0, 1, 77)


class Look(NamedTuple):
    """What a process saw of where it is."""

    node: str
    namespace: str
    image: str
    container: str


def looks(text: str) -> List[Look]:
    return [Look(*words) for words in re.findall(r"^@ (\S+) (\S+) (\S+) (\S+)$", text, re.M)]


def every_job(driver: Driver) -> Dict[str, Ask]:
    """The jobs of the suite by name, those that the scheduler cannot have left out."""
    asks = {
        "directive": Ask(f"{LOOK}; id -un; pwd\n", "debian-12"),
        "command line": Ask(f"{LOOK}\n", "busybox-1", on_line=True),
        "without": Ask(HOST),
        "default": Ask(f"{LOOK}\n", queue=driver.DEFAULT_QUEUE),
        "default: none": Ask(HOST, "none", queue=driver.DEFAULT_QUEUE),
        "array": Ask(f"{LOOK}\n", "busybox-1", array=3),
        "mpi": Ask(
            driver.mpirun(f"/bin/sh -c '{LOOK}; exec mpi-hello'"), "debian-12", nodes=2, ranks=2
        ),
        "memory": Ask(FILL, "busybox-1", memory=64),
        "stdin": Ask("cat\n", "busybox-1", stdin="of the user's\n"),
        "workdir": Ask("pwd\n", "busybox-1", workdir="deep/below"),
        "variables": Ask(
            "echo $MINE-$EMPTY-\n", "busybox-1", variables=(("MINE", "a b"), ("EMPTY", ""))
        ),
        "signal": Ask("kill -KILL $$\n", "busybox-1"),
        "no command": Ask("no-such-command\n", "busybox-1"),
        "unpullable": Ask(WRONG, "unpullable"),
        "mountless": Ask(WRONG, "mountless"),
    }
    for ranks in RANKS:
        asks[f"ranks: {ranks}"] = Ask(
            driver.each_rank(LOOK, ranks), "debian-12", nodes=2, ranks=ranks
        )
    for code in CODES:
        asks[f"exit {code}"] = Ask(f"exit {code}\n", "busybox-1")
    return {name: ask for name, ask in asks.items() if name.partition(":")[0] not in driver.CANNOT}


@pytest.fixture(scope="session")
def jobs(driver: Driver) -> Batch:
    """All of them, at once."""
    driver.alice("rm", "-f", OUTSIDE)
    return Batch(driver, every_job(driver))


@pytest.fixture(scope="session")
def outside(driver: Driver) -> Dict[str, str]:
    """The mount namespace of each node."""
    return driver.host_namespaces()


@pytest.fixture(scope="module", autouse=True)
def told_afterwards(driver: Driver) -> Iterator[None]:
    """Have the filter forget what is not there: a doctor of the same cluster's would see it."""
    yield
    driver.forget()


def is_inside(look: Look, image: str, outside: Dict[str, str]) -> bool:
    named = look.container.startswith(f"{image}@sha256:")
    return named and look.image == image and look.namespace != outside[look.node]


# ---- how a container is named ----


@pytest.mark.feature("directive")
def test_the_directive_in_a_script(jobs: Batch, outside: Dict[str, str]) -> None:
    job = jobs["directive"]
    (look,) = looks(job.output)
    assert is_inside(look, "debian-12", outside)
    assert job.output.splitlines()[1:] == ["alice", "/home/alice"]
    assert job.code == 0


@pytest.mark.feature("command line")
def test_the_option_of_the_command_line(jobs: Batch, outside: Dict[str, str]) -> None:
    (look,) = looks(jobs["command line"].output)
    assert is_inside(look, "busybox-1", outside)


def test_a_job_that_names_none_runs_on_the_host(jobs: Batch) -> None:
    assert jobs["without"].output == "in=\nhost\n"


@pytest.mark.feature("default")
def test_the_default_of_the_queue(jobs: Batch, outside: Dict[str, str]) -> None:
    (look,) = looks(jobs["default"].output)
    assert is_inside(look, "busybox-1", outside)


@pytest.mark.feature("default")
def test_none_opts_out_of_the_default(jobs: Batch) -> None:
    assert jobs["default: none"].output == "in=\nhost\n"


# ---- how it is refused ----


def refusal(driver: Driver, container: str, *, on_line: bool) -> str:
    """What the user is told: at submission, or in the job's output, which did not run."""
    submission = driver.submit(Ask(WRONG, container, on_line=on_line))
    if "refused at submission" not in driver.CANNOT:
        assert submission.id == ""
        return submission.said
    ended = driver.wait(submission)
    assert ended.code != 0
    return ended.said


@pytest.mark.parametrize("on_line", [False, True], ids=["directive", "command line"])
def test_a_name_that_there_is_not(driver: Driver, *, on_line: bool) -> None:
    assert re.search(driver.UNKNOWN, refusal(driver, "debain-12", on_line=on_line))


def test_an_environment_of_another_user(driver: Driver) -> None:
    assert re.search(driver.FORBIDDEN, refusal(driver, "bobs", on_line=True))


def sentences(ended: Ended) -> List[str]:
    """What hpcwrap says of a job that did not run."""
    assert ended.code != 0
    return re.findall(r"hpcwrap[a-z-]*: (.*)", ended.said)


def test_who_goes_round_the_filter_gets_nothing(driver: Driver) -> None:
    said = sentences(driver.wait(driver.go_round(WRONG)))
    assert said, "the user is told in a sentence"


@pytest.mark.parametrize(
    ("name", "why"), [("unpullable", "no-such-image"), ("mountless", "/no/such/place")]
)
def test_a_container_that_the_node_cannot_make(jobs: Batch, name: str, why: str) -> None:
    said = sentences(jobs[name])
    assert any(why in sentence for sentence in said)


# ---- what is inside ----


@pytest.mark.feature("array")
def test_every_element_of_an_array(jobs: Batch, outside: Dict[str, str]) -> None:
    for output in jobs["array"].outputs:
        (look,) = looks(output)
        assert is_inside(look, "busybox-1", outside)


@pytest.mark.feature("ranks")
@pytest.mark.parametrize("number", RANKS)
def test_every_rank_on_every_node(jobs: Batch, outside: Dict[str, str], number: int) -> None:
    seen = looks(jobs[f"ranks: {number}"].output)
    assert Counter(look.node for look in seen) == dict.fromkeys(NODES, number)
    assert all(is_inside(look, "debian-12", outside) for look in seen)
    assert len({(look.node, look.namespace) for look in seen}) == len(NODES), "one container a node"


@pytest.mark.feature("mpi")
def test_mpirun_over_both_nodes(jobs: Batch, outside: Dict[str, str]) -> None:
    job = jobs["mpi"]
    seen = looks(job.output)
    assert Counter(look.node for look in seen) == dict.fromkeys(NODES, 2)
    assert all(is_inside(look, "debian-12", outside) for look in seen)
    assert "the ranks of 4 processes add up to 6: right" in job.output


@pytest.mark.feature("interactive")
def test_an_interactive_job(driver: Driver, outside: Dict[str, str]) -> None:
    ran = driver.interactive("debian-12", f"{LOOK}\nexit 7\n")
    (look,) = looks(ran.stdout.replace("\r", ""))
    assert is_inside(look, "debian-12", outside)


# ---- a job is as without a container ----


@pytest.mark.parametrize("code", CODES)
def test_the_exit_code_is_the_scripts(jobs: Batch, code: int) -> None:
    assert jobs[f"exit {code}"].code == code


@pytest.mark.feature("signal")
def test_the_signal_is_the_scripts(jobs: Batch) -> None:
    assert jobs["signal"].code == -9


def test_a_command_that_the_image_does_not_have(jobs: Batch) -> None:
    assert jobs["no command"].code == 127


@pytest.mark.feature("stdin")
def test_standard_input(jobs: Batch) -> None:
    assert jobs["stdin"].output == "of the user's\n"


@pytest.mark.feature("workdir")
def test_the_working_directory(jobs: Batch) -> None:
    assert jobs["workdir"].output == "/home/alice/deep/below\n"


@pytest.mark.feature("variables")
def test_variables_of_the_user(jobs: Batch) -> None:
    assert jobs["variables"].output == "a b--\n"


@pytest.mark.feature("memory")
def test_too_much_memory(jobs: Batch) -> None:
    job = jobs["memory"]
    assert "survived" not in job.output
    assert re.search(r"hpcwrap[a-z-]*: the job reached its memory limit of 64 MiB", job.said)


# ---- what it leaves ----


def test_a_job_that_is_killed_leaves_nothing(driver: Driver) -> None:
    mark = driver.new_name()
    script = f"touch {mark}.begun; sleep 98765 & wait\n"
    submission = driver.submit(Ask(script, "busybox-1"))
    assert driver.eventually(lambda: driver.alice("ls", f"{mark}.begun").code == 0, LONG)
    driver.cancel(submission)
    assert driver.eventually(lambda: driver.has_ended(submission), LONG)
    assert_nothing_is_left(driver)
    for node in NODES:
        assert driver.eventually(lambda node=node: not sleepers(driver, node))


def sleepers(driver: Driver, node: str) -> str:
    return driver.root(node, "pgrep", "-f", "sleep 98765").stdout


def assert_nothing_is_left(driver: Driver) -> None:
    for node in NODES:
        assert driver.eventually(lambda node=node: not driver.leftovers(node), 30), (
            driver.leftovers(node)
        )


@pytest.fixture
def quiet(driver: Driver, jobs: Batch) -> None:
    """No job of the suite is left: what a test breaks now breaks its own job only."""
    submissions = [jobs.submission(name) for name in every_job(driver)]
    assert driver.eventually(lambda: all(map(driver.has_ended, submissions)), LONG)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("settings", "why"),
    [("nonsense: 1\n", "broken.yaml:1"), ("store: /proc/gone\n", "/proc/gone")],
    ids=["unreadable", "no store"],
)
def test_settings_of_the_site_that_are_wrong(driver: Driver, settings: str, why: str) -> None:
    """The job fails and says why: nothing of it runs, and the next test finds all in service."""
    driver.add_settings("broken", settings)
    try:
        submission = driver.submit(Ask(WRONG, "busybox-1"))
        said = driver.wait(submission).said if submission.id else submission.said
    finally:
        driver.remove_settings("broken")
    assert why in said


@pytest.mark.usefixtures("quiet")
def test_after_all_this_the_next_job_runs(driver: Driver) -> None:
    """Nothing ran outside, every node and queue is in service, and nothing is left."""
    assert driver.alice("ls", OUTSIDE).code != 0, "a job ran although its container was not there"
    assert driver.eventually(lambda: driver.trouble() == "", 30), driver.trouble()
    after = driver.run(Ask(f"{LOOK}\n", "busybox-1", on_line=True))
    assert (after.code, len(looks(after.output))) == (0, 1)
    assert_nothing_is_left(driver)

"""The helper, on a node: whoever calls gets a container of his own, and nobody else's."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from cluster_site import TOOLS
from driver_htcondor import HtCondor

pytestmark = pytest.mark.htcondor

NODE = "n1"
CLIENT = "/shared/client.py"
UIDS = {"alice": 2001, "bob": 2002}
ENTER = "/opt/hpcwrap/libexec/hpcwrap/hpcwrap-enter"


def message(job: str = "7.0", container: str = "busybox-1", **more: Any) -> Dict[str, Any]:
    variables = {"job": job, "slot": "slot1_1", "container": container, "workdir": "/"}
    return {"do": "prepare", "scheduler": "htcondor", "variables": variables, **more}


@pytest.fixture(scope="module", autouse=True)
def client(pool: HtCondor) -> None:
    pool.need(
        "cluster",
        "exec",
        "ctl",
        "tee",
        CLIENT,
        stdin=Path(__file__).with_name("client.py").read_text(),
    )


@pytest.fixture(scope="module", autouse=True)
def silent(pool: HtCondor, client: None) -> Iterator[None]:
    """Somebody who connects and says nothing: nobody waits for him, and he is let go."""
    command = [str(TOOLS / "cluster"), *words("bob", "python3", CLIENT, "silent")]
    environment = {**os.environ, "HPCWRAP_CLUSTER": pool.state}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        yield
        assert process.communicate()[0] == b""


@pytest.fixture(autouse=True)
def nothing_left(pool: HtCondor) -> Iterator[None]:
    """Whatever a test leaves has no owner, and a sweep ends it."""
    yield
    pool.need("cluster", "exec", NODE, "hpcwrap", "sweep")
    assert pool.eventually(lambda: not pool.leftovers(NODE)), pool.leftovers(NODE)


def words(user: str, *command: str) -> List[str]:
    """Words for `tools/cluster exec`: a command of a user's on the node, under a process of root's.

    As under a scheduler's; without the shell its parent would be outside of the node.
    """
    under = ["sh", "-c", '"$@"; exit $?', "sh"]
    number = str(UIDS[user])
    identity = ["--reuid", number, "--regid", number, "--init-groups"]
    return ["exec", NODE, *under, "setpriv", *identity, *command]


def send(pool: HtCondor, user: str, verb: str, text: str) -> Dict[str, Any]:
    answer = pool.tool("cluster", *words(user, "python3", CLIENT, verb, text)).stdout
    found: Dict[str, Any] = json.loads(answer)
    return found


def ask(pool: HtCondor, user: str, document: Dict[str, Any]) -> Dict[str, Any]:
    return send(pool, user, "ask", json.dumps(document))


class Held:
    """A process of a user's that owns a container for as long as the block lasts."""

    def __init__(self, pool: HtCondor, user: str, document: Dict[str, Any]) -> None:
        command = words(user, "python3", CLIENT, "hold", json.dumps(document))
        self._process = subprocess.Popen(
            [str(TOOLS / "cluster"), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HPCWRAP_CLUSTER": pool.state},
        )
        assert self._process.stdout
        self.answer: Dict[str, Any] = json.loads(self._process.stdout.readline())

    def __enter__(self) -> Dict[str, Any]:
        return self.answer

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")


def test_a_container_for_the_caller_by_the_callers_own_name(pool: HtCondor) -> None:
    with Held(pool, "alice", message()) as answer:
        place = answer["directory"]
        assert place == "/run/hpcwrap/jobs/htcondor-7.0-slot1_1-u2001"
        inside = pool.tool("cluster", *words("alice", ENTER, place, "--", "cat", "/etc/demo-image"))
        assert inside.stdout == "busybox-1\n"


def test_of_two_callers_none_gets_at_the_others(pool: HtCondor) -> None:
    with Held(pool, "alice", message()) as answer:
        place = answer["directory"]
        entered = pool.tool("cluster", *words("bob", ENTER, place, "--", "id"))
        assert entered.code == 125
        assert "uid" not in entered.stdout
        assert ask(pool, "bob", {**message(), "do": "release"})["released"] is False
        assert ask(pool, "bob", {**message(), "do": "find"})["directory"] is None
        assert ask(pool, "alice", {**message(), "do": "find"})["directory"] == place
        with Held(pool, "bob", message()) as other:
            assert other["directory"] == place.replace("-u2001", "-u2002")
        again = pool.tool("cluster", *words("alice", ENTER, place, "--", "id", "-u"))
        assert again.stdout == "2001\n"
        assert ask(pool, "alice", {**message(), "do": "release"})["released"] is True
        assert pool.root(NODE, "ls", place).code != 0


def test_an_environment_of_anothers_is_not_given(pool: HtCondor) -> None:
    answer = ask(pool, "alice", message(container="bobs"))
    assert "alice may not use the environment bobs" in answer["error"]
    with Held(pool, "bob", message(container="bobs")) as given:
        assert given["directory"].endswith("-u2002")


GARBAGE = (
    "",
    "\n",
    "no JSON\n",
    "[]\n",
    "7\n",
    '{"do": "prepare"',
    '{"do": "rm -rf"}\n',
    '{"do": "prepare"}\n',
    '{"do": ["prepare"]}\n',
    '{"do": "prepare", "user": "root"}\n',
    '{"do": "prepare", "scheduler": "slurm"}\n',
    '{"do": "prepare", "scheduler": "../../x"}\n',
    '{"do": "prepare", "scheduler": "htcondor", "variables": {"job": "../1.0"}}\n',
    '{"do": "release", "scheduler": "htcondor", "variables": {"job": "1.0", "slot": "../a"}}\n',
    '{"do": "prepare", "scheduler": "htcondor", "variables": {"job": 1}}\n',
    "[" * 30000 + "\n",
    '{"do": "' + "x" * 60000 + '"}\n',
    "\udcff\udcfe\n",
)


def test_garbage_is_answered_with_a_sentence(pool: HtCondor) -> None:
    """Each in a connection of its own; the last is a request as it should be."""
    texts = [*GARBAGE, json.dumps(message(job="8.0")) + "\n"]
    said = pool.tool("cluster", *words("alice", "python3", CLIENT, "raw", json.dumps(texts))).stdout
    *answers, last = map(json.loads, said.splitlines())
    assert len(answers) == len(GARBAGE)
    assert all(set(answer) == {"error", "who"} for answer in answers)
    assert "please report" not in said
    assert last["directory"]


def test_root_needs_no_helper(pool: HtCondor) -> None:
    answer = pool.root(NODE, "python3", CLIENT, "ask", json.dumps(message())).stdout
    assert "for jobs of users" in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("/root/.bashrc /mine", "Permission denied"),
        ("/shared/leads-to-roots /mine", "Permission denied"),
        ("/proc/1/root /mine", "ermission denied|Too many levels"),
        ("/home/alice /proc", "hpcwrap needs it"),
        ("/home/alice /.hpcwrap/bin", "hpcwrap needs it"),
        ("none /tmp tmpfs size=1g", "binds"),
        ("/home/alice /x none dev", "unknown option"),
        ("/home/alice/$USER /x", "binds"),
        ("/home/alice /../x", "holds .."),
    ],
)
def test_mounts_are_the_users_own(pool: HtCondor, line: str, why: str) -> None:
    pool.root("ctl", "ln", "-sfn", "/root/.bashrc", "/shared/leads-to-roots")
    answer = ask(pool, "alice", message(mounts=[line]))
    assert any(each in answer["error"] for each in why.split("|")), answer


def test_a_mount_of_ones_own(pool: HtCondor) -> None:
    pool.tool(
        "cluster",
        *words("alice", "sh", "-c", "mkdir -p /home/alice/own; echo mine >/home/alice/own/file"),
    )
    with Held(pool, "alice", message(mounts=["/home/alice/own /given none ro"])) as answer:
        enter = words("alice", ENTER, answer["directory"], "--", "cat", "/given/file")
        assert pool.tool("cluster", *enter).stdout == "mine\n"


def test_limits_are_for_the_caller_and_what_it_starts(pool: HtCondor) -> None:
    with Held(pool, "alice", message(limits={"memory": 64 << 20})) as answer:
        name = os.path.basename(answer["directory"])
        note = json.loads(pool.root(NODE, "cat", f"{answer['directory']}/cgroups").stdout)
        paths = [path for path, _ in note["cgroups"]]
        assert paths
        assert all(name in path for path in paths)
        assert all(pool.root(NODE, "cat", f"{path}/cgroup.procs").stdout.strip() for path in paths)
    assert "limit memory" in ask(pool, "alice", message(limits={"memory": -1}))["error"]


def test_who_connected_and_ended_gets_nothing(pool: HtCondor) -> None:
    """Its number may be another's process, which would be moved into a cgroup that gets killed."""
    for limits in ({}, {"memory": 64 << 20}):
        answer = send(pool, "alice", "heir", json.dumps(message(limits=limits)))
        assert "is not there any more" in answer["error"]
    assert pool.leftovers(NODE) == []


def test_limits_are_no_way_out_of_a_cgroup(pool: HtCondor) -> None:
    """A process that somebody has put into a cgroup stays there, whatever it asks for."""
    made = pool.root(NODE, "sh", "-c", CONFINE)
    before, answer, after = made.stdout.splitlines()
    assert "confine" in before
    assert json.loads(answer)["directory"]
    assert after == before


CONFINE = f"""\
cgroup=$(findmnt -t cgroup2 -n -o TARGET | head -n 1)/confine-$$
mkdir $cgroup && trap 'sleep 0.2; rmdir $cgroup' EXIT
(
    echo 0 >$cgroup/cgroup.procs
    setpriv --reuid 2001 --regid 2001 --init-groups sh -c '
        grep ^0:: /proc/self/cgroup
        python3 {CLIENT} ask "$1"
        grep ^0:: /proc/self/cgroup
    ' x '{json.dumps({**message(), "limits": {"memory": 1 << 40}})}'
)
"""


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_a_helper_that_is_killed_leaves_nothing(pool: HtCondor, delay: float) -> None:
    """Whoever called gets no container; the next call does, and all of the first is gone."""
    command = [
        str(TOOLS / "cluster"),
        *words("alice", "python3", CLIENT, "ask", json.dumps(message())),
    ]
    environment = {**os.environ, "HPCWRAP_CLUSTER": pool.state}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment):
        time.sleep(delay)
        pool.root(NODE, "pkill", "-KILL", "-f", "^[^ ]*python3 -I -c from hpcwrap.helper")
    with Held(pool, "alice", message()) as answer:
        inside = words("alice", ENTER, answer["directory"], "--", "cat", "/etc/demo-image")
        assert pool.tool("cluster", *inside).stdout == "busybox-1\n"

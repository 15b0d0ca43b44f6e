"""`hpcwrap show` and `enter` on any scheduler: a job by its scheduler's own word."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional

from driver import LONG, Driver


def show(driver: Driver, node: str, job: str, user: str = "root") -> Optional[Dict[str, Any]]:
    """The record of a job on a node, as a user sees it there; None where it is not shown."""
    told = driver.root(node, *become(user), "hpcwrap", "show", "record", job, "--json")
    return dict(json.loads(told.stdout)[-1]) if told.code == 0 else None


def enter(driver: Driver, node: str, job: str, user: str = "root") -> str:
    """What a command says that a user puts into a job's container there."""
    command = ("--", "sh", "-c", "id -un; echo ${HPCWRAP_CONTAINER%@*}")
    return driver.root(node, *become(user), "hpcwrap", "enter", job, *command).stdout


def become(user: str) -> List[str]:
    """Words before a command of a user's."""
    return ["setpriv", "--reuid", user, "--regid", user, "--init-groups"]


def test_a_job_is_shown_to_its_user_and_to_root_and_entered(driver: Driver) -> None:
    submission, node, mark = driver.begin()
    runs = show(driver, node, submission.id)
    assert runs is not None
    assert (runs["user"], runs["environment"]) == ("alice", "busybox-1")
    assert show(driver, node, runs["job"], "alice") is not None
    assert show(driver, node, runs["job"], "bob") is None
    assert enter(driver, node, submission.id) == "alice\nbusybox-1\n"
    assert enter(driver, node, runs["job"], "alice") == "alice\nbusybox-1\n"
    assert enter(driver, node, runs["job"], "bob") == ""
    driver.alice("rm", mark)
    assert driver.wait(submission).code == 0
    assert driver.eventually(lambda: "ended" in (show(driver, node, submission.id) or ()), LONG)
    ended = show(driver, node, runs["job"], "alice")
    assert ended is not None
    assert (ended["digest"], ended["started"]) == (runs["digest"], runs["started"])
    assert show(driver, node, runs["job"], "bob") is None

"""`hpcwrap show` on any scheduler: a job by its scheduler's own word, running and ended."""

from __future__ import annotations

import json
from typing import Any, Dict, Optional

from driver import LONG, Ask, Driver


def show(driver: Driver, node: str, job: str, user: str = "root") -> Optional[Dict[str, Any]]:
    """The record of a job on a node, as a user sees it there; None where it is not shown."""
    words = ["--reuid", user, "--regid", user, "--init-groups", "hpcwrap", "show", "record"]
    told = driver.root(node, "setpriv", *words, job, "--json")
    return dict(json.loads(told.stdout)[-1]) if told.code == 0 else None


def test_a_job_is_shown_to_its_user_and_to_root(driver: Driver) -> None:
    mark = driver.new_name()
    script = f"uname -n >{mark}.on; while [ -e {mark}.on ]; do sleep 0.2; done\n"
    submission = driver.submit(Ask(script, "busybox-1"))
    assert driver.eventually(lambda: driver.alice("cat", f"{mark}.on").stdout != "", LONG)
    node = driver.alice("cat", f"{mark}.on").stdout.strip()
    runs = show(driver, node, submission.id)
    assert runs is not None
    assert (runs["user"], runs["environment"]) == ("alice", "busybox-1")
    assert show(driver, node, runs["job"], "alice") is not None
    assert show(driver, node, runs["job"], "bob") is None
    driver.alice("rm", f"{mark}.on")
    assert driver.wait(submission).code == 0
    assert driver.eventually(lambda: "ended" in (show(driver, node, submission.id) or ()), LONG)
    ended = show(driver, node, runs["job"], "alice")
    assert ended is not None
    assert (ended["digest"], ended["started"]) == (runs["digest"], runs["started"])
    assert show(driver, node, runs["job"], "bob") is None

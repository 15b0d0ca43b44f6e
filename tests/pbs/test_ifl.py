"""The binding of libpbs: its structures against the header, its calls against the server."""

from __future__ import annotations

import json
import os
import subprocess
from ctypes import Structure, sizeof
from pathlib import Path
from typing import Type

import pytest
from driver_pbs import Pbs

from hpcwrap.schedulers.pbs_ifl import Attribute, BatchStatus

pytestmark = pytest.mark.pbs

INSTALLATION = os.environ.get("HPCWRAP_TEST_PBS", "/opt/pbs")
CALLS = """
import json, sys
from hpcwrap.errors import HpcwrapError
from hpcwrap.schedulers.pbs_ifl import Server

def refused(call):
    try:
        call()
    except HpcwrapError as error:
        return error.sentence()

with Server() as server:
    print(json.dumps({node.name: node.attributes["state"] for node in server.nodes()}))
    wanted = {
        "Resource_List.select": "1:ncpus=1",
        "Hold_Types": "u",
        "Job_Name": "made",
        "Output_Path": "made.out",
    }
    job = server.submit(sys.argv[1], wanted)
    wanted = {"Job_Name": "changed", "Resource_List.walltime": "00:01:40"}
    server.alter(job, {**wanted, "Error_Path": "made.err"})
    (status,) = server.jobs(job)
    print(json.dumps([status.name == job, status.attributes]))
    server.delete(job)
    now, ended = server.jobs(job), server.jobs(job, history=True)
    print(json.dumps([len(now), ended[0].attributes["job_state"], server.jobs("99999.ctl")]))
    print(json.dumps([
        refused(lambda: server.submit(sys.argv[1], {"Resource_List.container": "debain-12"})),
        refused(lambda: server.alter(job, {"Job_Name": "again"})),
        refused(lambda: server.delete("99999.ctl")),
    ]))
"""


def layout(name: str, structure: Type[Structure]) -> str:
    places = " ".join(
        f"{each[0]}={getattr(structure, each[0]).offset}" for each in structure._fields_
    )
    return f"{name} {sizeof(structure)} {places}"


def test_the_structures_are_the_headers(tmp_path: Path) -> None:
    program = tmp_path / "layout"
    source = Path(__file__).with_name("layout.c")
    subprocess.run(["cc", f"-I{INSTALLATION}/include", "-o", program, source], check=True)
    told = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    ours = [layout(name, Attribute) for name in ("attrl", "attropl")]
    assert told.splitlines() == [*ours, layout("batch_status", BatchStatus)]


def test_a_users_calls(pbs: Pbs) -> None:
    pbs.alice("tee", "made.sh", stdin="true\n")
    ran = pbs.alice("/opt/hpcwrap/bin/python3", "-c", CALLS, "/home/alice/made.sh")
    assert ran.code == 0, ran.stderr
    nodes, job, gone, refusals = map(json.loads, ran.stdout.splitlines())
    assert set(nodes) == {"n1", "n2"}
    same, attributes = job
    assert same
    assert attributes["Job_Name"] == "changed"
    assert attributes["Resource_List.walltime"] == "00:01:40"
    assert attributes["Hold_Types"] == "u"
    assert gone == [0, "F", []]
    assert refusals == [
        (
            "cannot submit a job: hpcwrap: there is no environment 'debain-12' "
            "(did you mean debian-12?)"
        ),
        f"cannot change job {job_of(pbs)}: Job has finished",
        "cannot delete job 99999.ctl: Unknown Job Id",
    ]


def job_of(pbs: Pbs) -> str:
    """The id of the last job that was made."""
    return pbs.alice("qselect", "-x", "-N", "changed").stdout.split()[-1]

"""Which devices a container gets, and what is said when that cannot be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import pytest

from hpcwrap import machine
from hpcwrap.config import Settings
from hpcwrap.container import devices
from hpcwrap.container.addition import Addition
from hpcwrap.container.injection import Hidden
from hpcwrap.environment import Environment, Machine, Variable
from hpcwrap.errors import SiteError
from hpcwrap.gpus import NUMBERED, Gpus
from hpcwrap.schedulers import slurm

PLAIN = Environment("test", "test", "", (), (), None, (), (), "environments.d/test.yaml")
CUDA = ("nvidia.com",)


class Node:
    """A node with specs of some kinds, each device a file below /dev."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings = Settings(cdi_directories=(str(directory),))

    def kind(self, kind: str, *names: str) -> Node:
        self.directory.mkdir(exist_ok=True)
        made: List[Dict[str, Any]] = [
            {"name": name, "containerEdits": {"deviceNodes": [{"path": f"/dev/{kind}/{name}"}]}}
            for name in names
        ]
        spec = {"cdiVersion": "0.6.0", "kind": kind, "devices": made}
        (self.directory / f"{kind.replace('/', '-')}.json").write_text(json.dumps(spec))
        return self

    def add(self, given: Optional[Gpus], **wanted: Any) -> Addition:
        machine_wanted = Machine(gpus=wanted.pop("gpus", "scheduler"), **wanted)
        return machine.device_addition(machine_wanted, given, self.settings)

    def nodes(self, given: Optional[Gpus], **wanted: Any) -> List[str]:
        """What a job gets, by path."""
        operations = self.add(given, **wanted).operations
        return [node.path[5:] for each in operations for node in getattr(each, "nodes", ())]

    def hidden(self, given: Optional[Gpus], **wanted: Any) -> List[str]:
        operations = self.add(given, **wanted).operations
        return [path[5:] for each in operations if isinstance(each, Hidden) for path in each.host]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "cdi")


NVIDIA = ("nvidia.com/gpu", "0", "1", "2", "GPU-8932f937", "GPU-89aa", "MIG-17", "2:0", "all")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["0"], ["0"]),
        (["2", "0"], ["2", "0"]),
        (["GPU-8932f937"], ["GPU-8932f937"]),
        (["GPU-8932"], ["GPU-8932f937"]),
        (["gpu-89AA"], ["GPU-89aa"]),
        (["MIG-17"], ["MIG-17"]),
        (["2:0"], ["2:0"]),
    ],
)
def test_a_schedulers_names_are_the_specs(
    node: Node, names: Sequence[str], found: Sequence[str]
) -> None:
    node.kind(*NVIDIA)
    assert node.nodes(Gpus(tuple(names), CUDA)) == [f"nvidia.com/gpu/{name}" for name in found]


def test_numbers_of_other_namings(node: Node) -> None:
    node.kind("nvidia.com/gpu", "gpu0", "gpu1", "mig1:0")
    assert node.nodes(Gpus(("1",))) == ["nvidia.com/gpu/gpu1"]


def test_cards_count_from_the_first_one(node: Node) -> None:
    """Intel's are named as in /dev/dri, where card0 may be the display of the node's BMC."""
    node.kind("intel.com/gpu", "card10", "card1", "card2")
    given = Gpus(("2",), ("intel.com",), renumber=True)
    assert node.nodes(given) == ["intel.com/gpu/card10"]
    assert renumbering(node.add(given))["ZE_AFFINITY_MASK"] == "2=0"


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["7"], r"the job's GPU 7 into .*: no CDI spec of this node has it for nvidia\.com/gpu"),
        (["0", "7"], "GPU 0, 7 into its container: no CDI spec"),
        (["GPU-89"], "no CDI spec of this node has it"),
        (["1", "GPU-0"], "no CDI spec of this node has it"),
    ],
)
def test_a_gpu_that_no_spec_has(node: Node, names: Sequence[str], complaint: str) -> None:
    node.kind(*NVIDIA)
    with pytest.raises(SiteError, match=complaint):
        node.add(Gpus(tuple(names), CUDA))


def test_a_node_without_specs_says_how_to_make_one(node: Node) -> None:
    for _ in range(2):
        with pytest.raises(SiteError) as raised:
            node.add(Gpus(("0",), CUDA))
        assert "this node has no CDI spec of a GPU" in raised.value.message
        assert "`hpcwrap cdi generate nvidia --output /etc/cdi/nvidia.yaml`" in raised.value.hint
        node.kind("vendor.example/nic", "0")


def test_the_vendors_variable_chooses_among_kinds(node: Node) -> None:
    node.kind("nvidia.com/gpu", "0").kind("amd.com/gpu", "0", "1")
    assert node.nodes(Gpus(("0",), CUDA)) == ["nvidia.com/gpu/0"]
    assert node.nodes(Gpus(("0",), ("amd.com",))) == ["amd.com/gpu/0"]
    assert node.nodes(Gpus(("1",), ("nvidia.com", "amd.com"))) == ["amd.com/gpu/1"]
    for vendors in ((), ("nvidia.com", "amd.com")):
        with pytest.raises(SiteError, match=r"one of (nvidia|amd)\.com/gpu, (nvidia|amd)\.com"):
            node.add(Gpus(("0",), vendors))


def test_a_vendor_of_its_own_is_found_by_the_number(node: Node) -> None:
    node.kind("vendor.example/gpu", "0")
    assert node.nodes(Gpus(("0",), CUDA)) == ["vendor.example/gpu/0"]


def test_what_is_not_given_is_hidden(node: Node) -> None:
    node.kind("nvidia.com/gpu", "0", "1").kind("amd.com/gpu", "0").kind("v.example/nic", "0")
    assert node.hidden(Gpus(("1",), CUDA)) == ["amd.com/gpu/0", "nvidia.com/gpu/0"]
    assert node.hidden(None) == ["amd.com/gpu/0", "nvidia.com/gpu/0", "nvidia.com/gpu/1"]
    assert node.hidden(None, gpus="all") == []
    assert len(node.hidden(Gpus(("1",), CUDA), gpus="none")) == 3
    asked = node.hidden(Gpus(("1",), CUDA), devices=("amd.com/gpu=0", "v.example/nic=0"))
    assert asked == ["nvidia.com/gpu/0"]


def test_all_takes_the_device_of_that_name(node: Node) -> None:
    node.kind("nvidia.com/gpu", "0", "all").kind("amd.com/gpu", "0", "1")
    found = node.nodes(None, gpus="all")
    assert sorted(found) == ["amd.com/gpu/0", "amd.com/gpu/1", "nvidia.com/gpu/all"]


def test_a_list_of_ones_own(node: Node) -> None:
    node.kind(*NVIDIA)
    assert node.nodes(None, gpus="0,2") == ["nvidia.com/gpu/0", "nvidia.com/gpu/2"]


def renumbering(added: Addition) -> Dict[str, str]:
    return {each.name: each.value for each in added.variables if each.action == "renumber"}


def test_numbers_of_steps_are_counted_anew(node: Node) -> None:
    node.kind("nvidia.com/gpu", "0", "1", "2", "3", "10")
    given = Gpus(("10", "2"), CUDA, renumber=True)
    assert renumbering(node.add(given)) == dict.fromkeys(NUMBERED, "2=0,10=1")
    assert renumbering(node.add(given._replace(renumber=False))) == {}
    assert renumbering(node.add(given, gpus="all")) == {}
    assert renumbering(node.add(Gpus(("0", "1"), CUDA, renumber=True))) == {}
    more = node.add(given, devices=("nvidia.com/gpu=0",))
    assert set(renumbering(more).values()) == {"0=0,2=1,10=2"}


def test_nothing_is_looked_at_where_there_is_nothing(node: Node, tmp_path: Path) -> None:
    assert node.add(None) == Addition()
    assert node.add(None, gpus="none") == Addition()
    assert devices.addition(Machine(gpus="scheduler"), None, node.settings) == Addition()


def test_what_a_job_asks_for_itself_counts(node: Node) -> None:
    settings = node.settings._replace(gpus="none")
    environment = PLAIN._replace(machine=Machine(devices=("a.b/c=1",)))
    asked = Machine(gpus="all", devices=("a.b/c=2",))
    found = machine.of_machine(environment, settings, asked)
    assert (found.gpus, found.devices) == ("all", ("a.b/c=1", "a.b/c=2"))


def test_all_gpus_of_a_job_that_insists_are_there_or_it_ends(node: Node) -> None:
    wanted, settings = Machine(gpus="all"), Settings(gpus="all", cdi_directories=("/nowhere",))
    with pytest.raises(SiteError, match="cannot bring all GPUs into the container") as raised:
        machine.additions(PLAIN, settings, asked=wanted)
    assert "hpcwrap cdi generate nvidia" in str(raised.value.hint)
    node.kind("vendor.example/nic", "0")
    with pytest.raises(SiteError, match="no CDI spec of a GPU"):
        machine.additions(PLAIN, node.settings, asked=wanted)


def test_all_gpus_of_a_site_may_be_none(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site may say `gpus: all` for nodes with and without any."""
    monkeypatch.setattr(devices, "DRIVER_NODES", (f"{tmp_path}/nvidia[0-9]*",))
    (tmp_path / "nvidiactl").touch()
    assert node.add(None, gpus="all") == Addition()
    (tmp_path / "nvidia0").touch()
    assert "no CDI spec of a GPU" in node.add(None, gpus="all").warnings[0]
    assert node.add(None).warnings == ()
    assert node.kind("nvidia.com/gpu", "0").add(None, gpus="all").warnings == ()


def test_a_device_by_name_and_no_fabric_exclude_each_other(node: Node) -> None:
    """The device would be there, and nobody could open it."""
    kind = "infiniband/uverbs"
    node.kind(kind, "0").kind("vendor.example/tape", "0")
    with pytest.raises(SiteError, match=r"of `devices` .* `fabric: none` hides its /dev/infini"):
        node.add(None, fabric="none", devices=(f"{kind}=0",))
    assert node.nodes(None, fabric="image", devices=(f"{kind}=0",)) == [f"{kind}/0"]
    assert node.nodes(None, fabric="none", devices=("vendor.example/tape=0",))


def test_variables_of_a_spec_are_set(node: Node) -> None:
    node.directory.mkdir()
    edits = {"env": ["A=1=2"]}
    spec = {
        "cdiVersion": "0.6.0",
        "kind": "a.b/c",
        "devices": [{"name": "x", "containerEdits": edits}],
    }
    (node.directory / "x.json").write_text(json.dumps(spec))
    assert node.add(None, devices=("a.b/c=x",)).variables == (Variable("set", "A", "1=2", "CDI"),)


# Slurm


@pytest.mark.parametrize(
    ("slurm_conf", "cgroup_conf", "counted"),
    [
        ("TaskPlugin=task/none\n", "", True),
        ("TaskPlugin=affinity,cgroup\n", "", True),
        ("TaskPlugin=affinity,cgroup\n", "ConstrainDevices=no\n", True),
        ("TaskPlugin=affinity\n", "ConstrainDevices=yes\n", True),
        ("TaskPlugin=task/cgroup,task/affinity\n", "ConstrainDevices=yes\n", False),
        ("taskplugin = task/affinity,task/cgroup # x\n", " constraindevices = YES # y\n", False),
        ("#TaskPlugin=task/cgroup\n", "ConstrainDevices=yes\n", True),
    ],
)
def test_where_slurm_counts_the_nodes_gpus(
    tmp_path: Path, slurm_conf: str, cgroup_conf: str, counted: bool
) -> None:
    (tmp_path / "slurm.conf").write_text(slurm_conf)
    (tmp_path / "cgroup.conf").write_text(cgroup_conf)
    environ = {"SLURM_JOB_GPUS": "3", "SLURM_CONF": str(tmp_path / "slurm.conf")}
    assert slurm.read_gpus(environ) == Gpus(("3",), renumber=counted)


def test_a_job_without_gpus_reads_no_file() -> None:
    assert slurm.read_gpus({"SLURM_JOB_ID": "7", "SLURM_CONF": "/nowhere"}) is None

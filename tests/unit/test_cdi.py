"""CDI specs: reading, checking, choosing, and what is kept of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Dict, List

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpcwrap import cli, snapshot
from hpcwrap.container import cdi, cdifile
from hpcwrap.container.cdi import Catalogue, Hook, Node
from hpcwrap.environment import Mount
from hpcwrap.errors import SiteError

# As nvidia-ctk 1.18 writes it, less the libraries.
NVIDIA = """\
---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
    - name: "1"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia1
              hostPath: /host/nvidia1
              type: c
              major: 195
              minor: 1
              permissions: rw
    - name: all
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
            - path: /dev/nvidia1
containerEdits:
    env:
        - NVIDIA_VISIBLE_DEVICES=void
    deviceNodes:
        - path: /dev/nvidiactl
    hooks:
        - hookName: createContainer
          path: /usr/bin/nvidia-cdi-hook
          args: [nvidia-cdi-hook, create-symlinks, --link, "libcuda.so.1::/lib/libcuda.so"]
          env: [NVIDIA_CTK_DEBUG=false]
    mounts:
        - hostPath: /lib/libcuda.so.999.88.77
          containerPath: /lib/libcuda.so.999.88.77
          options: [ro, nosuid, nodev, rbind, rprivate]
"""


def write(directory: Path, name: str, text: str) -> str:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)
    return str(directory / name)


def document(**changes: Any) -> Dict[str, Any]:
    """A small spec, some of it changed; None takes a key away."""
    edits = {"deviceNodes": [{"path": "/dev/null"}]}
    made = {
        "cdiVersion": "1.0.0",
        "kind": "vendor.example/class",
        "devices": [{"name": "one", "containerEdits": edits}],
        **changes,
    }
    return {key: value for key, value in made.items() if value is not None}


def with_edits(version: str = "1.1.0", **edits: Any) -> Dict[str, Any]:
    return document(cdiVersion=version, containerEdits=edits)


def read(tmp_path: Path, made: Dict[str, Any]) -> cdi.Spec:
    return cdifile.read_spec(write(tmp_path / "cdi", "x.yaml", json.dumps(made, indent=1)))


def test_nvidias_spec(tmp_path: Path) -> None:
    file = write(tmp_path, "nvidia.yaml", NVIDIA)
    spec = cdifile.read_spec(file)
    assert (spec.kind, spec.file) == ("nvidia.com/gpu", file)
    assert [device.name for device in spec.devices] == ["0", "1", "all"]
    assert spec.devices[1].edits.nodes == (Node("/dev/nvidia1", "/host/nvidia1", "c", 195, 1),)
    assert spec.devices[1].origin == f"{file}:9"
    assert spec.common.variables == ("NVIDIA_VISIBLE_DEVICES=void",)
    link = ("nvidia-cdi-hook", "create-symlinks", "--link", "libcuda.so.1::/lib/libcuda.so")
    assert spec.common.hooks == (Hook("/usr/bin/nvidia-cdi-hook", link, f"{file}:29"),)
    library, options = "/lib/libcuda.so.999.88.77", ("ro", "nosuid", "nodev", "rbind", "rprivate")
    assert spec.common.mounts == (Mount(library, library, "bind", options, f"{file}:34"),)


def test_json_is_read_with_its_lines(tmp_path: Path) -> None:
    text = json.dumps(yaml.safe_load(NVIDIA), indent="\t").replace("/dev", "\\/dev")
    spec = cdifile.read_spec(write(tmp_path, "nvidia.json", text))
    assert spec.devices[0].edits.nodes == (Node("/dev/nvidia0", "/dev/nvidia0"),)
    line = text.splitlines()[int(spec.devices[1].origin.rpartition(":")[2]) - 1]
    assert line.strip() == "{"
    with pytest.raises(SiteError, match=r"x\.json:2: cannot read the JSON"):
        cdifile.read_spec(write(tmp_path, "x.json", "{\n  nonsense"))


ONE = {"name": "one", "containerEdits": {"env": ["A=1"]}}


# As amd-ctk 1.2 writes it.
AMD = """\
{
  "cdiVersion": "0.6.0",
  "kind": "amd.com/gpu",
  "devices": [
    {
      "name": "0",
      "containerEdits": {
        "deviceNodes": [
          {
            "path": "/dev/dri/card1",
            "type": "c",
            "major": 226,
            "minor": 1,
            "fileMode": 432,
            "permissions": "rwm",
            "uid": 0,
            "gid": 44
          },
          {"path": "/dev/kfd", "type": "c", "major": 235, "fileMode": 432, "permissions": "rw"}
        ]
      }
    }
  ],
  "containerEdits": {}
}
"""

# As Intel's guide to Docker and CDI has it.
INTEL = """\
---
cdiVersion: 0.5.0
kind: intel.com/gpu
devices:
    - name: gpu0
      containerEdits:
        deviceNodes:
            - path: /dev/dri/card0
              hostPath: /dev/dri/card0
              type: c
        mounts:
            - hostPath: /dev/dri/by-path
              containerPath: /dev/dri/by-path
              options:
                - rw
                - rbind
              type: bind
"""


def test_specs_of_other_vendors(tmp_path: Path) -> None:
    (amd,) = cdifile.read_spec(write(tmp_path, "amd.json", AMD)).devices
    assert amd.edits.nodes[0] == Node("/dev/dri/card1", "/dev/dri/card1", "c", 226, 1)
    (intel,) = cdifile.read_spec(write(tmp_path, "intel.yaml", INTEL)).devices
    assert intel.edits.mounts[0].options == ("rw", "rbind")


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (document(cdiVersion=None), "the spec has no cdiVersion"),
        (document(cdiVersion="0.2.0"), "cannot use a spec of version '0.2.0'"),
        (document(cdiVersion="2.0.0"), "known are 0.3.0, .*1.1.0"),
        (document(cdiVersion=1.0), "cdiVersion must be text"),
        (document(kind=None), "the spec has no kind"),
        (document(kind="class"), "kind must be vendor/class"),
        (document(kind="a/b/c"), "kind must be vendor/class"),
        (document(kind="1a/b"), "kind must be vendor/class"),
        (document(devices=[]), "the spec has no devices"),
        (document(devices=None), "the spec has no devices"),
        (document(colour="red"), "unknown key colour"),
        (document(devices=[{"name": "x"}]), "the device x changes nothing"),
        (document(devices=[{"name": "-x"}]), "'-x' cannot be the name of a device"),
        (document(devices=[{"containerEdits": {}}]), "has no name"),
        (document(devices=[ONE, dict(ONE)]), "the device one is described twice"),
        (with_edits(env=["PATH"]), "'PATH' is no NAME=VALUE"),
        (with_edits(env=["=x"]), "'=x' is no NAME=VALUE"),
        (with_edits(deviceNodes=[{"hostPath": "/dev/null"}]), "has no path"),
        (with_edits(deviceNodes=[{"path": "dev/null"}]), "must be an absolute path"),
        (with_edits(deviceNodes=[{"path": "/dev/../x"}]), "without .."),
        (with_edits(deviceNodes=[{"path": "/dev/x", "type": "char"}]), "is no type of a device"),
        (with_edits(deviceNodes=[{"path": "/dev/x", "permissions": "x"}]), "are no permissions"),
        (with_edits(deviceNodes=[{"path": "/dev/x", "major": "1"}]), "must be a whole number"),
        (with_edits(mounts=[{"hostPath": "/x"}]), "has no containerPath"),
        (with_edits(mounts=[{"hostPath": "/x", "containerPath": "/x", "type": "nfs"}]), "a nfs"),
        (
            with_edits(mounts=[{"hostPath": "/x", "containerPath": "/x", "options": ["idmap"]}]),
            "cannot mount with the option 'idmap'",
        ),
        (with_edits(hooks=[{"hookName": "createContainer"}]), "has no path"),
        (with_edits(hooks=[{"hookName": "later", "path": "/x"}]), "hookName must be one of"),
        (
            with_edits(hooks=[{"hookName": "poststop", "path": "/x", "timeout": 0}]),
            "at least 1 second",
        ),
        (with_edits(hooks=[{"hookName": "poststop", "path": "x"}]), "must be an absolute path"),
        (with_edits(intelRdt={"colour": "red"}), "unknown key containerEdits.intelRdt.colour"),
    ],
)
def test_mistakes_are_told_with_file_and_line(
    tmp_path: Path, made: Dict[str, Any], complaint: str
) -> None:
    with pytest.raises(SiteError) as raised:
        read(tmp_path, made)
    assert re.match(r"/.*/x\.yaml:\d+: ", raised.value.message)
    assert re.search(complaint, raised.value.sentence())


NODE = {"path": "/dev/null", "hostPath": "/dev/null"}
MOUNT = {"hostPath": "/x", "containerPath": "/x", "type": "none"}


@pytest.mark.parametrize(
    ("since", "changes"),
    [
        ("0.4.0", {"containerEdits": {"mounts": [MOUNT]}}),
        ("0.5.0", {"containerEdits": {"deviceNodes": [NODE]}}),
        ("0.5.0", {"devices": [{"name": "0", "containerEdits": {"env": ["A=1"]}}]}),
        ("0.6.0", {"annotations": {"a": "b"}}),
        ("0.6.0", {"kind": "vendor.example/a.b"}),
        ("0.7.0", {"containerEdits": {"intelRdt": {"closID": "x"}}}),
        ("0.7.0", {"containerEdits": {"additionalGids": [44]}}),
        ("0.7.0", {"containerEdits": {"additionalGIDs": [44]}}),
        ("1.1.0", {"containerEdits": {"intelRdt": {"schemata": ["x"]}}}),
        ("1.1.0", {"containerEdits": {"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}}),
    ],
)
def test_fields_came_with_versions(tmp_path: Path, since: str, changes: Dict[str, Any]) -> None:
    before = cdifile.VERSIONS[cdifile.VERSIONS.index(since) - 1]
    read(tmp_path, document(**{"cdiVersion": since, **changes}))
    with pytest.raises(SiteError, match=f"came with CDI {since}"):
        read(tmp_path, document(**{"cdiVersion": before, **changes}))


def test_a_v_before_the_version_is_no_mistake(tmp_path: Path) -> None:
    assert read(tmp_path, document(cdiVersion="v0.6.0")).kind == "vendor.example/class"


def test_what_is_not_done_is_noted(tmp_path: Path) -> None:
    spec = read(tmp_path, with_edits(additionalGids=[44], intelRdt={"closID": "x"}))
    assert [re.sub(r".*:\d+: (\w+) .*", r"\1", note) for note in spec.common.notes] == [
        "additionalGids",
        "intelRdt",
    ]


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*cdifile.EDIT_KEYS, "path", "name"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*cdifile.SPEC_KEYS, "x"]), TREES, max_size=4))
def test_whatever_a_file_holds_is_a_spec_or_an_error(changes: Dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(SiteError):
        read(Path(directory), document(**changes))


def load(tmp_path: Path, *directories: str) -> Catalogue:
    return cdi.load([str(tmp_path / name) for name in directories], str(tmp_path / "kept.json"))


def simple(name: str, node: str, kind: str = "vendor.example/gpu") -> str:
    edits = {"deviceNodes": [{"path": node}]}
    devices = [{"name": name, "containerEdits": edits}]
    return json.dumps(document(kind=kind, devices=devices))


def test_the_later_directory_wins(tmp_path: Path) -> None:
    write(tmp_path / "etc", "a.json", simple("x", "/dev/zero"))
    write(tmp_path / "run", "a.json", simple("x", "/dev/null"))
    for order, node in ((("etc", "run"), "/dev/null"), (("run", "etc"), "/dev/zero")):
        found = load(tmp_path, *order).find("vendor.example/gpu=x")
        assert found.device.edits.nodes[0].path == node


def test_one_name_twice_in_a_directory_is_a_conflict(tmp_path: Path) -> None:
    write(tmp_path / "etc", "a.json", simple("x", "/dev/zero"))
    write(tmp_path / "etc", "b.json", simple("x", "/dev/null"))
    with pytest.raises(SiteError, match=r"b\.json:\d+ and .*a\.json:\d+ both describe it"):
        load(tmp_path, "etc").find("vendor.example/gpu=x")
    write(tmp_path / "run", "c.json", simple("x", "/dev/full"))
    found = load(tmp_path, "etc", "run").find("vendor.example/gpu=x")
    assert found.device.edits.nodes[0].path == "/dev/full"


def test_an_unknown_device_names_its_kin(tmp_path: Path) -> None:
    write(tmp_path / "etc", "a.json", simple("x", "/dev/zero"))
    catalogue = load(tmp_path, "etc", "nowhere")
    with pytest.raises(SiteError) as raised:
        catalogue.find("vendor.example/gpu=y")
    assert raised.value.hint == "there are vendor.example/gpu=x"
    with pytest.raises(SiteError, match=r"cannot find the device other\.example/nic=y"):
        catalogue.find("other.example/nic=y")


def test_a_broken_spec_is_told_of_before_anything_is_hidden(tmp_path: Path) -> None:
    write(tmp_path / "etc", "a.yaml", simple("x", "/dev/zero"))
    write(tmp_path / "etc", "b.yaml", "cdiVersion: 9.9.9\n")
    write(tmp_path / "etc", "c.yaml~", "nonsense: [")
    catalogue = load(tmp_path, "etc")
    assert len(catalogue.specs) == 1
    with pytest.raises(SiteError, match=r"cannot tell which devices .*b\.yaml:1"):
        cdi.check_usable(catalogue)


def test_common_edits_come_once_for_each_spec(tmp_path: Path) -> None:
    write(tmp_path / "etc", "nvidia.yaml", NVIDIA)
    catalogue = load(tmp_path, "etc")
    chosen = [catalogue.find(f"nvidia.com/gpu={name}") for name in ("0", "all")]
    edits = cdi.chosen_edits(chosen)
    nodes = [node.path for node in edits.nodes]
    assert nodes == ["/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia1"]
    assert len(edits.hooks) == len(edits.mounts) == len(edits.variables) == 1


def test_what_was_read_is_kept_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "RACY_NS", -(10**10))
    write(tmp_path / "etc", "nvidia.yaml", NVIDIA)
    reads: List[str] = []
    read_catalogue = cdifile.read_catalogue
    monkeypatch.setattr(
        cdifile, "read_catalogue", lambda each: (reads.append("x"), read_catalogue(each))[1]
    )
    first = load(tmp_path, "etc")
    assert load(tmp_path, "etc") == first
    assert reads == ["x"]
    os.utime(tmp_path / "etc" / "nvidia.yaml", (1, 1))
    assert load(tmp_path, "etc") == first
    assert reads == ["x"] * 2
    write(tmp_path / "etc", "b.json", simple("x", "/dev/null"))
    assert len(load(tmp_path, "etc").specs) == 2
    (tmp_path / "kept.json").write_text("{nonsense")
    assert len(load(tmp_path, "etc").specs) == 2


def test_a_node_without_specs_is_told_how_to_have_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "hpcwrap.yaml"
    settings.write_text(f"cdi_directories: [{tmp_path}/cdi]\n")
    assert cli.run(["--config", str(settings), "cdi", "list"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert f"no devices in {tmp_path}/cdi; for NVIDIA's, root runs `hpcwrap cdi gen" in said.err
    assert cli.run(["--config", str(settings), "cdi", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"devices": [], "broken": []}

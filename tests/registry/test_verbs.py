"""hpcwrap pull, images and rm, as a person or a script runs them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tars import Member, make_layer

pytestmark = pytest.mark.registry

LAYER = make_layer([Member("a", content=b"x" * 5000)])


def test_from_pull_to_rm(push: Any, cli: Any) -> None:
    pushed = push("verbs:1", [LAYER])
    (cli.environments / "tool.yaml").write_text(f"image: {pushed.reference}\n")
    pulled = cli("pull", "tool")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout.startswith(f"{pushed.reference} is ready after ")
    assert "downloading 1 layers" not in pulled.stderr
    assert "downloading 1 layer, " in pulled.stderr
    again = cli("pull", "tool")
    assert again.stdout.startswith(f"{pushed.reference} is in the store: {pushed.digest[7:19]}")
    table = cli("images").stdout.splitlines()
    headings = ["REFERENCE", "DIGEST", "SIZE", "FOR", "USED", "PULLED", "ENVIRONMENTS", "JOBS"]
    assert table[0].split() == headings
    assert table[1].split()[:2] == [pushed.reference, pushed.digest[7:19]]
    assert table[1].split()[-2:] == ["tool", "-"]
    removed = cli("rm", "tool")
    assert removed.stdout == f"removed {pushed.digest} ({pushed.reference})\n"
    assert cli("images").stdout == ""
    gone = cli("rm", "tool")
    assert (gone.returncode, gone.stdout) == (2, "")
    assert "cannot find the image" in gone.stderr


def test_results_for_programs(push: Any, cli: Any) -> None:
    pushed = push("programs:1", [LAYER])
    result = cli("pull", "--json", pushed.reference)
    document = json.loads(result.stdout)
    assert result.stderr == ""
    assert document["digest"] == pushed.digest
    assert document["new"] is True
    assert os.path.getsize(document["squashfs"]) == document["size"]
    assert cli("pull", "--quiet", pushed.reference).stdout == ""
    (listed,) = json.loads(cli("images", "--json").stdout)
    assert (listed["reference"], listed["digest"]) == (pushed.reference, pushed.digest)
    assert listed["environments"] == []


def test_if_missing_does_not_ask_the_registry(push: Any, cli: Any, registry: Any) -> None:
    pushed = push("asked:1", [LAYER])
    cli("pull", pushed.reference)
    before = len(registry.log.read_text())
    result = cli("pull", "--if-missing", pushed.reference)
    assert result.stdout.startswith(f"{pushed.reference} is in the store")
    assert len(registry.log.read_text()) == before


def test_damage_is_a_warning_for_images(push: Any, cli: Any) -> None:
    pushed = push("warning:1", [LAYER])
    cli("pull", pushed.reference)
    Path(cli.store, "images", "0" * 64 + ".json").touch()
    Path(cli.store, "refs", "rubbish").write_text("{")
    result = cli("images")
    assert result.returncode == 0
    assert pushed.digest[7:19] in result.stdout
    assert result.stderr.count("warning: cannot read") == 2


@pytest.mark.parametrize(
    ("reference", "code", "reason"),
    [
        ("{host}/No:1", 2, "repositories are lower-case"),
        ("{host}/nothing:1", 2, "the registry does not have it"),
        ("127.0.0.1:1/a:1", 3, "the registry cannot be reached"),
        ("oci:/some/where", 2, "No such file or directory"),
    ],
)
def test_failures_are_one_sentence(
    cli: Any, registry: Any, reference: str, code: int, reason: str
) -> None:
    result = cli("pull", "--quiet", reference.format(host=registry.host))
    assert result.returncode == code
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1

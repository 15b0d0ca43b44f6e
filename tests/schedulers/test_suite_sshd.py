"""hpcwrap-sshd where the job's user owns the container; the rest is in tests/slurm/test_sshd.py."""

from __future__ import annotations

import re
from typing import Iterator

import pytest
from cluster_site import NODES
from driver import Ask, Driver

SCHEDULERS = [
    pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("gridengine", "pbs", "lsf")
]
IMAGES = {"mpirun-12": "image", "debian-12": "host"}
"""Images, and whose sshd it is; the latter has none."""

SSHD = "/usr/sbin/sshd"
LIBRARY = "/usr/lib/x86_64-linux-gnu/libwrap.so.0"
THERE = 'echo "@ $(uname -n) ${HPCWRAP_CONTAINER%@*}"; cat; exit 7'
SCRIPT = f"""\
cat >inner.sh <<'END'
for node in {" ".join(NODES)}; do
    echo "typed to $node" | ssh $node '{THERE}'; echo "code $?"
done
ssh n2 ssh n1 ssh n2 uname -n
ssh -o ConnectTimeout=5 nobody.invalid true; echo "code $?"
exit 9
END
hpcwrap-sshd sh inner.sh; echo "code $?"
find /.hpcwrap/ssh -mindepth 1
"""


@pytest.fixture(scope="module")
def ready(driver: Driver) -> Iterator[Driver]:
    """Both environments; on the nodes, as the host's, the sshd of the one that has it."""
    driver.need("image", "build", "mpirun-12")
    driver.need("image", "push", "mpirun-12")
    driver.add_environment("mpirun-12", "image: registry:5000/mpirun-12:latest\n")
    wanted = [path for path in (SSHD, LIBRARY) if driver.root("n1", "ls", path).code != 0]
    copied = driver.run(Ask(f"cp -v {SSHD} {LIBRARY} /home/alice\n", "mpirun-12"))
    assert copied.code == 0, copied.said
    for node in NODES:
        for path in wanted:
            copy = f"/home/alice/{path.rpartition('/')[2]}"
            assert driver.root(node, "install", "-m", "755", copy, path).code == 0
    yield driver
    for node in NODES:
        driver.root(node, "rm", "-f", *wanted)
    driver.remove_environment("mpirun-12")
    driver.tell_scheduler()


@pytest.mark.parametrize("driver", SCHEDULERS, indirect=True)
@pytest.mark.parametrize("image", IMAGES, ids=IMAGES.values())
def test_ssh_leads_into_the_container_of_each_node(ready: Driver, image: str) -> None:
    ended = ready.run(Ask(SCRIPT, image, nodes=2))
    assert re.findall(r"^@ (\S+) (\S+)\n(.*)\ncode 7$", ended.output, re.M) == [
        (node, image, f"typed to {node}") for node in NODES
    ]
    assert ended.output.endswith("n2\ncode 255\ncode 9\n"), ended.said

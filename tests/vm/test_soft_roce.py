"""InfiniBand for real: soft-RoCE (rdma_rxe) over a pair of veths, used from inside containers."""

from typing import Iterator

import pytest
from vm import Slurm, Vm

pytestmark = pytest.mark.vm

PROGRAMS = ("ibv_devices", "ibv_devinfo", "ibv_rc_pingpong", "rping")
THREADS = "/usr/lib/x86_64-linux-gnu/libgcc_s.so.1"  # which the C library loads to end threads
VERBS = "/usr/lib/x86_64-linux-gnu/libibverbs"
FABRIC = ("libfabric.so", "libibverbs.so", "librdmacm.so", "libnl-", "libpsm", "libnuma.so")

DEVICES = """
modprobe rdma_rxe && modprobe rdma_ucm
ip link add fab0 type veth peer name fab1
for n in 0 1; do
    ip addr add 10.9.$n.1/24 dev fab$n
    ip link set fab$n up
    rdma link add rxe$n type rxe netdev fab$n
done
"""


@pytest.fixture(scope="module", autouse=True)
def fabric(vm: Vm) -> Iterator[None]:
    """Two devices, an image with drivers of its own, and one without."""
    vm.need(DEVICES)
    programs = [*(f"/usr/bin/{name}" for name in PROGRAMS), THREADS]
    vm.add_image("drivers", *programs, VERBS, "/etc/libibverbs.d")
    vm.add_image("bare", *programs)
    for kind in ("image", "host"):
        vm.add_environment(kind, image="drivers", fabric=kind)
    vm.add_environment("without", image="drivers", fabric="none")
    vm.add_environment("bare-image", image="bare", fabric="image")
    vm.add_environment("bare-host", image="bare", fabric="host")
    vm.add_image("no-libraries", "/usr/bin/fi_pingpong", THREADS, without=FABRIC)
    vm.add_environment("libfabric", image="no-libraries", fabric="host")
    yield
    vm.need("rdma link delete rxe0; rdma link delete rxe1; ip link delete fab0")


def inside(environment: str, command: str) -> str:
    return f"hpcwrap run --user alice {environment} -- sh -c '{command}'"


@pytest.mark.parametrize("environment", ["image", "host", "bare-host"])
def test_devices_are_seen_and_work(vm: Vm, environment: str) -> None:
    said = vm.need(inside(environment, "ibv_devices && ibv_devinfo && ls /sys/class/infiniband"))
    assert said.count("PORT_ACTIVE") == 2
    assert said.endswith("rxe0\nrxe1\n")


@pytest.mark.parametrize("environment", ["image", "host"])
def test_two_containers_talk_over_verbs(vm: Vm, environment: str) -> None:
    """Both use one device: the kernel's soft-RoCE serves the first network namespace only."""
    serve = inside(environment, "ibv_rc_pingpong -d rxe0 -g 1 -n 100")
    ask = inside(environment, "ibv_rc_pingpong -d rxe0 -g 1 -n 100 127.0.0.1")
    wait = "until ss -ltn | grep -q :18515; do sleep 0.1; done"
    said = vm.need(f"{serve} & {wait}; {ask} && wait $!")
    assert said.count("100 iters in") == 2


@pytest.mark.parametrize("environment", ["image", "host"])
def test_two_containers_talk_by_the_connection_manager(vm: Vm, environment: str) -> None:
    serve = inside(environment, "rping -s -a 10.9.0.1 -C 3")
    ask = inside(environment, "rping -c -a 10.9.0.1 -C 3 -v")
    wait = "until rdma resource show cm_id | grep -q LISTEN; do sleep 0.1; done"
    said = vm.need(f"{serve} & {wait}; {ask} && wait $!")
    assert said.count("ping data") == 3


def test_two_containers_talk_by_the_hosts_libfabric(vm: Vm) -> None:
    """The image has a program of libfabric, and none of the libraries for it."""
    program = "fi_pingpong -p verbs -d rxe0 -e msg -I 10 -S 4096"
    serve, ask = inside("libfabric", program), inside("libfabric", f"{program} 10.9.0.1")
    wait = "until ss -ltn | grep -q :47592; do sleep 0.1; done"
    said = vm.need(f"{serve} & {wait}; {ask} && wait $!")
    assert said.count("4k") == 2


def test_without_a_fabric_there_is_no_device(vm: Vm) -> None:
    done = vm.run(inside("without", "ls /dev/infiniband; ibv_devinfo"))
    assert "No IB devices found" in done.stdout + done.stderr
    assert "uverbs" not in done.stdout


def test_an_image_without_drivers_says_so(vm: Vm) -> None:
    done = vm.run(inside("bare-image", "ibv_devices; ibv_devinfo"))
    listed = [line.split() for line in done.stdout.splitlines()]
    assert listed[:2] == [["device", "node", "GUID"], ["------", "-" * 16]]
    said = "\n".join(map(" ".join, listed[2:])) + done.stderr
    assert "couldn't open config directory '/etc/libibverbs.d'" in said
    assert "No IB devices found" in said
    assert "rxe" not in said


def test_the_hosts_libraries_are_the_ones_in_use(vm: Vm) -> None:
    said = vm.need(inside("bare-host", "ibv_devinfo >/dev/null; cat /proc/self/mountinfo"))
    assert f" {VERBS}/librxe-rdmav34.so " in said


def test_little_memory_to_lock_is_noticed(vm: Vm) -> None:
    said = vm.run("ulimit -l 64; hpcwrap plan --user alice --scheduler local image")
    assert "warning: ranks may lock only 64 KiB" in said.stderr
    run = "hpcwrap run --user alice image -- sleep 60 & run=$!"
    record = "/run/hpcwrap/jobs/*/record.json"
    wait = f"until ls {record} 2>/dev/null; do sleep 0.1; done"
    job = vm.need(f"ulimit -l 64; {run}; {wait}; cat {record}; kill $run; wait $run; true")
    assert "ranks may lock only 64 KiB" in job


@pytest.mark.parametrize("environment", ["image", "host"])
def test_a_job_of_slurm_has_the_devices(slurm: Slurm, environment: str) -> None:
    done = slurm.srun(environment, "ibv_devinfo")
    assert (done.code, done.stdout.count("PORT_ACTIVE")) == (0, 2), done.stderr


def test_a_job_of_slurm_without_a_fabric_has_no_way_to_one(slurm: Slurm) -> None:
    done = slurm.srun("without", "ibv_devinfo; ls /.host/dev/infiniband; echo listed")
    assert "No IB devices found" in done.stdout + done.stderr
    assert done.stdout.endswith("listed\n")
    assert "uverbs" not in done.stdout

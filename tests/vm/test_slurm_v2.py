"""A real Slurm with task/cgroup on cgroup v2: its limits hold inside, and no cgroup is ours."""

from typing import Iterator

import pytest
from vm import Vm

pytestmark = pytest.mark.vm

SLURM_CONF = """\
ClusterName=vm
SlurmctldHost=vm(10.99.0.1)
AuthType=auth/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PrologFlags=Alloc
Prolog=/opt/hpcwrap/share/hpcwrap/prolog/slurm.sh
Epilog=/opt/hpcwrap/share/hpcwrap/epilog/slurm.sh
PlugStackConfig=/etc/slurm/plugstack.conf
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2
MessageTimeout=60
NodeName=vm NodeAddr=10.99.0.1 CPUs=2 RealMemory=800 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
CGROUP_CONF = """\
CgroupPlugin=cgroup/v2
IgnoreSystemd=yes
ConstrainCores=yes
ConstrainRAMSpace=yes
"""
ENVIRONMENT = {"image": "held", "rlimits": ["memlock=unlimited", "nofile=2k:64k"]}

# The scope is made beforehand, with one controller more than Slurm asks for: 22.05 overlooks the
# last name in cgroup.controllers, for it takes the line's end as a part of it (cgroup_v2.c,
# _get_controllers), which on other machines is a controller that it does not need.
START = r"""
hostname vm
grep -q 10.99.0.1 /etc/hosts || sed -i '1i 10.99.0.1 vm' /etc/hosts
ip link set lo up
ip link add slurm0 type dummy && ip addr add 10.99.0.1/24 dev slurm0 && ip link set slurm0 up
install -d -o munge -m 700 /etc/munge /var/lib/munge /var/log/munge
install -d -o munge -m 755 /run/munge
head -c 1024 /dev/urandom >/etc/munge/munge.key
chown munge /etc/munge/munge.key
chmod 400 /etc/munge/munge.key
setpriv --reuid=munge --regid=munge --clear-groups munged
mkdir -p /var/spool/slurmd /var/spool/slurmctld /opt/hpcwrap/bin /opt/hpcwrap/share/hpcwrap
ln -sf /usr/bin/python3 /opt/hpcwrap/bin
cp -r /hpcwrap/prolog /hpcwrap/epilog /opt/hpcwrap/share/hpcwrap
echo /hpcwrap >/usr/lib/python3/dist-packages/hpcwrap.pth
echo "required /hpcwrap/native/build/spank_hpcwrap.so" >/etc/slurm/plugstack.conf
slice=/sys/fs/cgroup/system.slice
mkdir -p $slice/vm_slurmstepd.scope
for each in $slice $slice/vm_slurmstepd.scope; do
    echo +cpuset +cpu +memory +pids >$each/cgroup.subtree_control
done
slurmctld && slurmd
for count in $(seq 60); do
    sinfo -h -o %t 2>/dev/null | grep -q idle && exit 0
    sleep 0.5
done
cat /var/log/slurm*.log >&2
exit 1
"""
STOP = r"""
kill $(cat /run/slurmd.pid /run/slurmctld.pid) $(pidof munged)
while pidof slurmd slurmctld munged >/dev/null; do sleep 0.1; done
find /sys/fs/cgroup/system.slice -depth -type d -exec rmdir {} +
ip link del slurm0
rm /usr/lib/python3/dist-packages/hpcwrap.pth
"""
ALICE = "cd /tmp; setpriv --reuid=alice --regid=alice --init-groups env HOME=/tmp"
OWN = "cd /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)"
FILL = "dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null"


@pytest.fixture(scope="module", autouse=True)
def slurm(vm: Vm) -> Iterator[None]:
    """slurmctld and slurmd, and an environment for their jobs."""
    vm.add_image("held")
    vm.add_environment("held", **ENVIRONMENT)
    vm.need("mkdir -p /etc/slurm")
    for name, text in (("slurm", SLURM_CONF), ("cgroup", CGROUP_CONF)):
        vm.need(f"cat >/etc/slurm/{name}.conf <<'END'\n{text}END")
    vm.need(START, timeout=90)
    yield
    vm.need(STOP)


def test_a_rank_has_the_cgroup_of_its_step_and_its_limit(vm: Vm) -> None:
    ask = f"{OWN}; pwd; cat ../../memory.max ../../../memory.max"
    outside = vm.need(f"{ALICE} srun --mem=100 sh -c '{ask}'").splitlines()
    inside = vm.need(f"{ALICE} srun --mem=100 --container=held sh -c '{ask}'").splitlines()
    assert "/job_" in inside[0]
    assert "/step_0/user/task_0" in inside[0]
    assert outside[1:] == inside[1:]
    assert str(100 << 20) in inside[1:]
    assert vm.need("find /sys/fs/cgroup -name 'hpcwrap*'") == ""


def test_a_rank_has_the_cpus_of_its_step(vm: Vm) -> None:
    assert vm.need(f"{ALICE} srun -n1 -c1 --mem=100 --container=held nproc") == "1\n"


def test_slurm_kills_for_memory_inside_as_outside(vm: Vm) -> None:
    done = vm.run(f"{ALICE} srun --mem=100 --container=held sh -c '{FILL}; exit $?'")
    assert done.code != 0
    assert "Out Of Memory" in done.stderr


def test_root_raises_the_rlimits_that_the_site_names(vm: Vm) -> None:
    ask = "ulimit -l; ulimit -n; ulimit -Hn"
    step = f"ulimit -S -n 100; srun --mem=100 --container=held sh -c '{ask}'"
    assert vm.need(f'{ALICE} sh -c "{step}"').split() == ["unlimited", "2048", "65536"]


def test_the_check_tells_what_slurm_holds_jobs_to(vm: Vm) -> None:
    lines = vm.run("hpcwrap setup slurm --check").stdout.splitlines()
    told = {line.split()[2]: line.split()[0] for line in lines if len(line.split()) > 2}
    assert {told[key] for key in ("TaskPlugin", "ConstrainCores", "ConstrainRAMSpace")} == {"ok"}
    assert told["ConstrainSwapSpace"] == told["ConstrainDevices"] == "note"

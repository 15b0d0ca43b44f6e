"""Runs in the virtual machine: a Slurm of one node on cgroup v2, with hpcwrap, and no systemd."""

import os
import shutil
import subprocess
import time
from pathlib import Path

ADDRESS = "10.99.0.1"
CGROUP = Path("/sys/fs/cgroup")
PREFIX = Path("/opt/hpcwrap")
SHARE = PREFIX / "share" / "hpcwrap"
PLUGIN = PREFIX / "lib" / "hpcwrap" / "spank_hpcwrap.so"
SLURM = Path("/etc/slurm")
KEY = Path("/etc/munge/munge.key")
START_SECONDS = 200.0

SLURM_CONF = f"""\
ClusterName=vm
SlurmctldHost=vm
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup,task/affinity
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
PrologFlags=Alloc
Prolog={SHARE}/prolog/slurm.sh
Epilog={SHARE}/epilog/slurm.sh
SchedulerParameters=batch_sched_delay=0,sched_interval=2
MessageTimeout=60
NodeName=vm Sockets=2 RealMemory=1500 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""

CGROUP_CONF = """\
CgroupPlugin=cgroup/v2
IgnoreSystemd=yes
ConstrainCores=yes
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
ConstrainDevices=yes
"""


def main() -> None:
    """Bring it up; the daemons leave our session, so they stay."""
    name_the_node()
    install()
    write_files()
    delegate()
    start_munge()
    for daemon in ("slurmctld", "slurmd"):
        subprocess.run([daemon], check=True)
    wait_until_idle()


def name_the_node() -> None:
    """Give the node an address: the C library resolves no name where there is only loopback."""
    run("modprobe", "dummy")
    run("ip", "link", "add", "slurm0", "type", "dummy")
    run("ip", "address", "add", f"{ADDRESS}/24", "dev", "slurm0")
    run("ip", "link", "set", "slurm0", "up")
    Path("/etc/hosts").write_text(f"127.0.0.1 localhost\n{ADDRESS} vm\n")


def install() -> None:
    """Make the work tree look installed: what the prolog's script needs of a prefix, and the plugin
    to find that script.
    """
    (PREFIX / "bin").mkdir(parents=True)
    (PREFIX / "bin" / "python3").symlink_to("/usr/bin/python3")
    SHARE.parent.mkdir()
    SHARE.symlink_to("/hpcwrap")
    PLUGIN.parent.mkdir(parents=True)
    shutil.copy("/hpcwrap/native/build/spank_hpcwrap.so", PLUGIN)
    # Python in isolated mode (-I) looks at its own directories only.
    Path("/usr/lib/python3/dist-packages/hpcwrap.pth").write_text("/hpcwrap\n")


def write_files() -> None:
    """Write the configuration, and the directories that it names."""
    SLURM.mkdir(exist_ok=True)
    (SLURM / "slurm.conf").write_text(SLURM_CONF)
    (SLURM / "cgroup.conf").write_text(CGROUP_CONF)
    (SLURM / "plugstack.conf").write_text(f"required {PLUGIN}\n")
    for directory in ("log/slurm", "spool/slurmctld", "spool/slurmd"):
        Path("/var", directory).mkdir(parents=True, exist_ok=True)


def delegate() -> None:
    """Make the slice in which systemd would put slurmd's scope, with all controllers."""
    slice_ = CGROUP / "system.slice"
    slice_.mkdir()
    names = (CGROUP / "cgroup.controllers").read_text().split()
    (slice_ / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in names))


def start_munge() -> None:
    """Start munged as its own user, who owns its directories."""
    KEY.write_bytes(os.urandom(1024))
    KEY.chmod(0o400)
    for directory in ("/etc/munge", "/run/munge", "/var/lib/munge", "/var/log/munge"):
        Path(directory).mkdir(exist_ok=True)
        shutil.chown(directory, "munge", "munge")
    Path("/run/munge").chmod(0o755)
    shutil.chown(KEY, "munge", "munge")
    run("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged")


def wait_until_idle() -> None:
    """Wait for the node; the end of slurmd's log when it does not come."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        found = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True)
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    raise SystemExit(Path("/var/log/slurm/slurmd.log").read_text()[-2000:])


def run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

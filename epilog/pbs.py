"""execjob_end, execjob_abort: drops the job's container on this node (root, PBS's own Python).

exechost_startup: drops those of jobs that pbs_mom does not know: it has a file for each of its own.
"""

import json
import os
import subprocess

import pbs

JOBS = "/run/hpcwrap/jobs"
PREFIX = "pbs-"
RUN = "from hpcwrap.hook import main; main('epilog', 'pbs')"


def drop(job: str) -> None:
    """Run the epilog; what it could not do, the log has."""
    with open(pbs.hook_config_filename, encoding="utf-8") as file:
        python = json.load(file)["prefix"] + "/bin/python3"
    done = subprocess.run(
        [python, "-I", "-c", RUN],
        env={"PBS_JOBID": job},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.stderr:
        pbs.logmsg(pbs.LOG_ERROR, done.stderr.decode(errors="replace").strip())


event = pbs.event()
if event.type == pbs.EXECHOST_STARTUP:
    names = os.listdir(JOBS) if os.path.isdir(JOBS) else []
    known = os.path.join(pbs.pbs_conf["PBS_HOME"], "mom_priv/jobs")
    for job in [name[len(PREFIX) :] for name in names if name.startswith(PREFIX)]:
        if not os.path.exists(f"{known}/{job}.JB"):
            drop(job)
elif os.path.isdir(f"{JOBS}/{PREFIX}{event.job.id}"):
    drop(event.job.id)

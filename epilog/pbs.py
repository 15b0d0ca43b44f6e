"""execjob_end, execjob_abort: drops the job's container on this node (root, PBS's own Python).

exechost_startup, exechost_periodic: drops those of jobs that pbs_mom does not know: it has a file
for each of its own.
"""

import json
import os
import subprocess
import time

import pbs

JOBS = "/run/hpcwrap/jobs"
PREFIX = "pbs-"
YOUNG_S = 600  # pbs_mom may not have written the file of a job that is just beginning


def drop(job: str) -> None:
    """Run the epilog; what it could not do, the log has."""
    with open(pbs.hook_config_filename, encoding="utf-8") as file:
        run = [json.load(file)["prefix"] + "/bin/python3", "-I", "-c"]
    run += ["from hpcwrap.hook import main; main('epilog', 'pbs')"]
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    done = subprocess.run(run, env={"PBS_JOBID": job}, stdin=null, stderr=pipe, check=False)
    if done.stderr:
        pbs.logmsg(pbs.LOG_ERROR, done.stderr.decode(errors="replace").strip())


event = pbs.event()
if event.type in (pbs.EXECHOST_STARTUP, pbs.EXECHOST_PERIODIC):
    before = time.time() - (YOUNG_S if event.type == pbs.EXECHOST_PERIODIC else 0)
    known = os.path.join(pbs.pbs_conf["PBS_HOME"], "mom_priv/jobs")
    for entry in os.scandir(JOBS) if os.path.isdir(JOBS) else []:
        job = entry.name[len(PREFIX) :]
        old = entry.name.startswith(PREFIX) and entry.stat().st_mtime <= before
        if old and not os.path.exists(f"{known}/{job}.JB"):
            drop(job)
elif os.path.isdir(f"{JOBS}/{PREFIX}{event.job.id}"):
    drop(event.job.id)

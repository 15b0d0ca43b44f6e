"""execjob_begin: makes the job's container, on each of its nodes (root, PBS's own Python).

When this rejects a job, PBS runs it 21 times at once: only an unfit node does, and goes offline.
pbs_mom waits for this and does nothing else: what takes long goes on behind it, and enter waits.
"""

import json
import os
import subprocess
import tempfile

import pbs

UNFIT, PATIENCE_S = 4, 10
event = pbs.event()
job, node, null = event.job, pbs.get_local_nodename(), subprocess.DEVNULL
place = "/run/hpcwrap/jobs/pbs-" + job.id
names = ("euser", "egroup", "queue", "exec_host2", "exec_vnode")
facts = {"PBS_" + name.upper(): str(getattr(job, name) or "") for name in names}
facts.update(PBS_JOBID=job.id, PBS_NODE=node, PBS_CONF_FILE=os.environ.get("PBS_CONF_FILE", ""))
facts["PBS_CONTAINER"] = str(job.Resource_List["container"] or "")
for name in ("HPCWRAP_CONTAINER", "PBS_O_WORKDIR"):
    facts[name] = str(job.Variable_List.get(name) or "")
with open(pbs.hook_config_filename) as file, tempfile.TemporaryFile() as told:
    run = [json.load(file)["prefix"] + "/bin/python3", "-I", "-c"]
    run += ["from hpcwrap.hook import main; main('prolog', 'pbs')"]
    child = subprocess.Popen(run, env=facts, stdin=null, stderr=told, start_new_session=True)
    try:
        code = child.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        code = None
    said = " ".join(os.pread(told.fileno(), 1000, 0).decode(errors="replace").split())
if code == UNFIT:
    event.vnode_list[node].state, event.vnode_list[node].comment = pbs.ND_OFFLINE, said
    job.rerun()
    event.reject(said)
if code != 0:  # with nothing but this file there, nothing of the job starts
    pbs.logmsg(pbs.LOG_ERROR, f"hpcwrap: {said or 'the prolog goes on'}")
    os.makedirs(place, 0o711, exist_ok=True)
    open(place + "/begun", "w").close()

"""execjob_begin: makes the job's container, on each of its nodes (root, PBS's own Python).
When this rejects a job, PBS runs it 21 times at once: only an unfit node does, and goes offline.
pbs_mom waits for this and does nothing else: what takes long goes on behind it, and enter waits.
"""

import contextlib
import json
import os
import subprocess

import pbs

# By stdin: execve(2) takes no variable of 128 KiB; a list of nodes, or what is a user's, may be.
RUN = "import json, os, sys; os.environ.update(json.load(sys.stdin)); "
RUN += "from hpcwrap.hook import main; main('prolog', 'pbs')"
UNFIT, PATIENCE_S = 4, 10
event = pbs.event()
job, node = event.job, pbs.get_local_nodename()
place = "/run/hpcwrap/jobs/pbs-" + job.id
names = ("euser", "egroup", "queue", "exec_host2", "exec_vnode")
facts = {"PBS_" + name.upper(): str(getattr(job, name) or "") for name in names}
facts.update(PBS_JOBID=job.id, PBS_NODE=node, PBS_CONF_FILE=os.environ.get("PBS_CONF_FILE", ""))
facts["PBS_CONTAINER"] = str(job.Resource_List["container"] or "")
for name in ("HPCWRAP_CONTAINER", "PBS_O_WORKDIR"):
    facts[name] = str((job.Variable_List or {}).get(name) or "")
with open(pbs.hook_config_filename) as file, open(os.memfd_create("told"), "r+b") as told:
    run, pipe = [json.load(file)["prefix"] + "/bin/python3", "-I", "-c", RUN], subprocess.PIPE
    child = subprocess.Popen(run, env={}, stdin=pipe, stderr=told, start_new_session=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.communicate(json.dumps(facts).encode(), PATIENCE_S)
    said = " ".join(os.pread(told.fileno(), 1000, 0).decode(errors="replace").split())
if child.returncode == UNFIT:
    event.vnode_list[node].state, event.vnode_list[node].comment = pbs.ND_OFFLINE, said
    job.rerun()
    event.reject(said)
if child.returncode != 0:  # with nothing but this file there, nothing of the job starts
    pbs.logmsg(pbs.LOG_ERROR, f"hpcwrap: {said or 'the prolog goes on'}")
    os.makedirs(place, 0o711, exist_ok=True)
    open(place + "/begun", "w").close()

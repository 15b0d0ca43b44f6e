"""execjob_begin: makes the job's container, on each of its nodes (root, PBS's own Python).

PBS runs a job again at once, 21 times, when this rejects it: so only an unfit node does, and goes
offline; other faults are left for enter to tell.  pbs_mom does nothing else while it waits for
this: so a prolog that takes long goes on behind it, and enter waits.
"""

import json
import os
import subprocess
import tempfile

import pbs

NULL, UNFIT, PATIENCE_S = subprocess.DEVNULL, 4, 10
event = pbs.event()
job, node = event.job, pbs.get_local_nodename()
names = ("euser", "egroup", "queue", "exec_host2", "exec_vnode")
facts = {"PBS_" + name.upper(): str(getattr(job, name) or "") for name in names}
facts.update(PBS_JOBID=job.id, PBS_NODE=node, PBS_CONF_FILE=os.environ["PBS_CONF_FILE"])
facts["PBS_CONTAINER"] = str(job.Resource_List["container"] or "")
for name in ("HPCWRAP_CONTAINER", "PBS_O_WORKDIR"):
    facts[name] = str(job.Variable_List.get(name) or "")
with open(pbs.hook_config_filename) as file, tempfile.TemporaryFile() as told:
    run = [json.load(file)["prefix"] + "/bin/python3", "-I", "-c"]
    run += ["from hpcwrap.hook import main; main('prolog', 'pbs')"]
    child = subprocess.Popen(run, env=facts, stdin=NULL, stderr=told, start_new_session=True)
    try:
        code = child.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        code = None
    told.seek(0)
    said = " ".join(told.read().decode(errors="replace").split())[-400:]
if code == UNFIT:
    event.vnode_list[node].state = pbs.ND_OFFLINE
    event.vnode_list[node].comment = said
    job.rerun()
    event.reject(said)
if code != 0:  # with an empty directory nothing of the job starts
    pbs.logmsg(pbs.LOG_ERROR, f"hpcwrap: {said or 'the prolog goes on'}")
    os.makedirs("/run/hpcwrap/jobs/pbs-" + job.id, 0o711, exist_ok=True)

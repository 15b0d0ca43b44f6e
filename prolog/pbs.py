"""execjob_begin: makes the job's container, on each of its nodes (root, PBS's own Python).

PBS runs a job again at once, 21 times, when this rejects it: so a fault of the user's or of the
site's is left for enter to tell, and only an unfit node rejects, and goes offline.
"""

import json
import os
import subprocess

import pbs

FACTS = ("euser", "egroup", "queue", "exec_host2", "exec_vnode")
UNFIT = 4
event = pbs.event()
job, node = event.job, pbs.get_local_nodename()
with open(pbs.hook_config_filename) as file:
    python = json.load(file)["prefix"] + "/bin/python3"

facts = {"PBS_" + name.upper(): str(getattr(job, name) or "") for name in FACTS}
facts.update(
    PBS_JOBID=job.id, PBS_NODE=node, PBS_CONTAINER=str(job.Resource_List["container"] or "")
)
for name in ("HPCWRAP_CONTAINER", "PBS_O_WORKDIR"):
    facts[name] = str(job.Variable_List.get(name) or "")
facts["PBS_CONF_FILE"] = os.environ.get("PBS_CONF_FILE", "/etc/pbs.conf")
run = [python, "-I", "-c", "from hpcwrap.hook import main; main('prolog', 'pbs')"]
null, pipe = subprocess.DEVNULL, subprocess.PIPE
done = subprocess.run(run, env=facts, stdin=null, stderr=pipe, check=False)
said = done.stderr.decode(errors="replace").strip()
if said:
    pbs.logmsg(pbs.LOG_ERROR, said)
if done.returncode == UNFIT:
    event.vnode_list[node].state = pbs.ND_OFFLINE
    event.vnode_list[node].comment = said.splitlines()[-1] if said else "hpcwrap: unfit"
    job.rerun()
    event.reject(said)
if done.returncode:
    place = "/run/hpcwrap/jobs/pbs-" + job.id
    os.makedirs(place, 0o711, exist_ok=True)
    with open(place + "/error", "w") as file:
        file.write(f"the prolog failed on {node}; see pbs_mom's log: {said[-400:]}\n")

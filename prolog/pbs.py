"""execjob_begin: makes the job's container, on each of its nodes (root, PBS's own Python).

PBS runs a job again at once, 21 times, when this rejects it: so a fault of the user's or of the
site's is left for enter to tell, and only an unfit node rejects, and goes offline.
"""

import json
import os
import subprocess

import pbs

UNFIT = 4
event = pbs.event()
job, node = event.job, pbs.get_local_nodename()
names = ("euser", "egroup", "queue", "exec_host2", "exec_vnode")
facts = {"PBS_" + name.upper(): str(getattr(job, name) or "") for name in names}
facts.update(PBS_JOBID=job.id, PBS_NODE=node)
facts["PBS_CONTAINER"] = str(job.Resource_List["container"] or "")
for name in ("HPCWRAP_CONTAINER", "PBS_O_WORKDIR"):
    facts[name] = str(job.Variable_List.get(name) or "")
facts["PBS_CONF_FILE"] = os.environ.get("PBS_CONF_FILE", "/etc/pbs.conf")

with open(pbs.hook_config_filename) as file:
    run = [json.load(file)["prefix"] + "/bin/python3", "-I", "-c"]
run += ["from hpcwrap.hook import main; main('prolog', 'pbs')"]
done = subprocess.run(run, env=facts, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
said = " ".join(done.stderr.decode(errors="replace").split())[-400:]
if said:
    pbs.logmsg(pbs.LOG_ERROR, said)
if done.returncode == UNFIT:
    event.vnode_list[node].state = pbs.ND_OFFLINE
    event.vnode_list[node].comment = said
    job.rerun()
    event.reject(said)
elif done.returncode:
    place = "/run/hpcwrap/jobs/pbs-" + job.id
    os.makedirs(place, 0o711, exist_ok=True)
    with open(place + "/error", "w") as file:
        file.write(f"the prolog failed on {node}; see pbs_mom's log: {said}\n")

"""execjob_launch: what PBS starts, starts in the job's container (root, PBS's own Python).

It is called for scripts, `qsub -- PROGRAM`, `qsub -I` and each task of TM, on the task's node.
"""

import json
import os
import subprocess

import pbs

# A login shell reads its script's path from stdin; the user's may not be in the image.
SHELL = '[ -x "$0" ] && exec "$0" "$@"; exec /bin/sh'

event = pbs.event()
job = event.job
place = "/run/hpcwrap/jobs/pbs-" + job.id
asked = str(job.Resource_List["container"] or job.Variable_List.get("HPCWRAP_CONTAINER") or "none")
if asked == "none" and not os.path.isdir(place):
    event.accept()

with open(pbs.hook_config_filename) as file:
    settings = json.load(file)
run = [settings["prefix"] + "/bin/python3", "-I", "-c"]
run += ["from hpcwrap.hook import main; main('enter', 'pbs')"]
facts = {"PBS_JOBID": job.id, "HPCWRAP_PROCESS": str(os.getppid())}
null, pipe = subprocess.DEVNULL, subprocess.PIPE
done = subprocess.run(run, env=facts, stdin=null, stderr=pipe, check=False)
if done.returncode:
    event.reject(done.stderr.decode(errors="replace").strip())

program, words = str(event.progname), [str(word) for word in event.argv]
command = [program, *words[1:]] if words else ["/bin/sh", "-c", SHELL, program]
command = [settings["enter"], place, "--", *command]
if str(event.env.get("PBS_TASKNUM")) == "1" and os.path.exists(place + "/cgroups"):
    command = [settings["tell"], *command]
event.progname = command[0]
event.argv = command

"""Every way of running something with Slurm, as lines for a shell on the submit host.

A way is run twice at once, with $C empty and with $C asking for a container, and must end alike.
$W in it prints where it runs: `host`, or `image`; $D is a name that the other run has not.
"""

from __future__ import annotations

import re
from typing import Dict, NamedTuple

from site_tools import Site

ASK = "--container=debian-12"
WHERE = "test -e /etc/demo-image && echo image || echo host"
SETUP = """\
cd; rm -rf $D; mkdir $D; cd $D
wait_for() { for _ in $(seq 300); do [ ! -e "$1" ] || return 0; sleep 0.1; done; echo "no $1"; }
ended() {
    while scontrol -o show job "$1" | grep -qE 'State=(PENDING|CONFIG|RUNNING|COMPLETING)'; do
        sleep 0.1
    done
    scontrol -o show job "$1" | grep -oE '(JobState|Reason|ExitCode)=[^ ]*'
}
job() { sbatch --parsable $C "$@"; }
over() { ended $(job "$@"); tail -n+1 slurm-* out-* err-* log.* 2>&-; true; }
"""

WAITING = "touch up; until [ -e down ]; do sleep 0.1; done"
CATCHING = 'trap "echo caught; exit 4" USR1; touch up; while :; do sleep 0.1; done'

EXITS: Dict[str, str] = {
    "srun: exit codes": """for code in 0 3 255; do srun $C sh -c "exit $code"; echo $?; done""",
    "srun: killed by a signal": "srun $C sh -c 'kill -9 $$'; echo $?",
    "srun: some ranks fail": "srun $C -n3 sh -c 'exit $SLURM_PROCID'; echo $?",
    "srun: -K": "srun $C -K -n2 sh -c '[ $SLURM_PROCID = 0 ] && exit 9; exec sleep 60'; echo $?",
    "srun: no such command": "srun $C /no/such/command; echo $?",
    "sbatch: exit code": """over --wrap "$W; exit 5\"""",
    "sbatch: killed by a signal": "over --wrap 'kill -9 $$'",
    "salloc: its command's exit code": "salloc -Q -n1 $C sh -c 'exit 6'; echo $?",
}

STREAMS: Dict[str, str] = {
    "srun: standard input": """echo typed | srun $C cat; srun $C sh -c "cat; $W" </etc/group""",
    "srun: --input": "echo file >in; srun $C -n2 -i in cat; srun $C -n2 -i none cat",
    "srun: --input for one rank": "echo one | srun $C -n2 -l --input=1 cat",
    "srun: --output, --error": """srun $C -N2 -n2 -o out-%j-%t-%N -e err-%t \\
        sh -c "$W; echo e >&2"; tail -n+1 out-* err-*""",
    "srun: --label, --unbuffered": "srun $C -l -u -n2 sh -c 'echo $SLURM_PROCID' | sort",
    "sbatch: --input, --output, --error, --open-mode": """echo before >log.some; echo file >in
        over -J some -i in -o log.%x -e err-%j --open-mode=append --wrap "cat; $W; echo e >&2\"""",
    "sbatch: a step's input": "over --wrap 'echo piped | srun cat; echo file >in; srun cat <in'",
    "srun: --pty": """script -qec "srun $C --pty sh -c 'test -t 0 && test -t 1 && tty; $W'" \\
        /dev/null </dev/null | sed 's/\\r//; s/\\^[@D]//g' | grep .""",
}

SURROUNDINGS: Dict[str, str] = {
    "srun: --chdir": """mkdir sub; srun $C -D sub pwd; srun $C -D /tmp sh -c "pwd; $W\"""",
    "sbatch: --chdir": "mkdir sub; over -D sub --wrap pwd; cat sub/slurm-*",
    "srun: a directory that is nowhere": "srun $C -D /no/such/place pwd",
    "umask": "umask 027; srun $C sh -c 'umask; touch made'; stat -c %a made",
    "srun: --export": """export MINE=1 YOURS=2
        srun $C --export=NONE /bin/sh -c 'echo -$MINE-$YOURS-'
        srun $C --export=MINE=3 /bin/sh -c 'echo -$MINE-$YOURS-'""",
    "sbatch: --export": """export MINE=1
        over --export=NONE --wrap 'echo -$MINE-; srun /bin/sh -c "echo $HOME"'""",
    "sbatch: --get-user-env": """export MINE=1
        over --export=NONE --get-user-env --wrap 'echo -$MINE- $HOME $USER'""",
    "SLURM_* variables": """srun $C -N2 -n3 env | grep -oE '^SLURM_[A-Z_]+' | sort | uniq -c |
        grep -vE 'SLURM_(CONTAINER|SPANK_HPCWRAP_CONTAINER)$'""",
}

SIGNALS: Dict[str, str] = {
    "scancel: a signal to a step": """srun $C -J $D sh -c "$CATCHING" & wait_for up
        scancel -s USR1 --name=$D -u $USER; wait $!; echo $?""",
    "scancel: a signal to the script": """id=$(job --wrap "$CATCHING"); wait_for up
        scancel -b -s USR1 $id; ended $id; cat slurm-*""",
    "scancel: TERM, then KILL": """id=$(job --wrap "trap 'echo term' TERM; $WAITING"); wait_for up
        scancel $id; ended $id; cat slurm-*""",
}

KINDS: Dict[str, str] = {
    "srun: --multi-prog": """printf '0 sh -c "echo zero; %s"\\n1-2 echo one %%t %%o\\n' "$W" >conf
        srun $C -n3 -l --multi-prog conf | sort""",
    "srun: --bcast": """printf '#!/bin/sh\\necho $0; %s\\n' "$W" >prog; chmod +x prog
        srun $C -N2 --bcast=/tmp/$D-bcast ./prog | sort; srun -N2 rm /tmp/$D-bcast""",
    "sbcast": """echo cast >file; over -N2 --wrap "sbcast file /tmp/$D-cast
        srun cat /tmp/$D-cast; srun rm /tmp/$D-cast\"""",
    "srun: --overlap": """over -n1 --wrap "srun --overlap sh -c '$WAITING; $W' &
        until [ -e up ]; do sleep 0.1; done; srun --overlap touch down; wait\"""",
    "srun: --jobid from outside": """id=$(job --wrap "$WAITING"); wait_for up
        srun --jobid=$id --overlap sh -c "$W"; touch down; ended $id""",
    "sattach": """id=$(job --wrap "srun sh -c '$WAITING; echo attached'"); wait_for up
        sattach $id.0 & sleep 0.5; touch down; wait; ended $id""",
    "sbatch: --array": """over --array=1-3%2 -o out-%a --wrap "$W; echo \\$SLURM_ARRAY_TASK_ID\"""",
    "sbatch: arguments of the script": """printf '#!/bin/sh\\necho "$1" $#\\n' >script
        over script 'a b' c""",
    "salloc: a step": """salloc -Q -n2 $C srun sh -c "$W"; echo $?""",
    "sbatch: --test-only": "sbatch --test-only $C --wrap true 2>&1 | grep -c ' to start at '",
}

WAYS: Dict[str, str] = {**EXITS, **STREAMS, **SURROUNDINGS, **SIGNALS, **KINDS}


class Ended(NamedTuple):
    """How a way ended, without what differs each time."""

    code: int
    output: str
    errors: str


def run(site: Site, script: str, ask: str) -> Ended:
    """Run a way with these options."""
    own = (f"C={ask}", f"D=ways-{'in' if ask else 'out'}")
    shared = (f"W={WHERE}", f"WAITING={WAITING}", f"CATCHING={CATCHING}")
    ran = site.alice("env", *own, *shared, "bash", "-c", SETUP + script)
    # What srun says and what slurmstepd says come in either order, from either node.
    errors = re.sub(r"\bn[12]\b", "NODE", "\n".join(sorted(plain(ran.stderr).splitlines())))
    return Ended(ran.code, plain(ran.stdout), errors)


def plain(text: str) -> str:
    """Without numbers of jobs, times, directories, and what is said or not by chance."""
    chance = re.compile(
        r"s(run|alloc): job \d+ |(Killed|Terminated)$|"
        r"srun: (Job \d+ step creation|Step created|Force Terminated)"
    )
    text = "\n".join(line for line in text.splitlines() if not chance.match(line))
    # With milliseconds from 25.05 on.
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?", "TIME", text)
    text = re.sub(r"ways-(in|out)", "WAYS", text)
    text = re.sub(r"\bStepId=\d+", "StepId=ID", text)
    text = re.sub(r"/dev/pts/\d+", "/dev/pts/N", text)
    return re.sub(r"\b(job|JOB|STEP|out|err|slurm)([ -])\d+", r"\1\2ID", text)

#!/bin/sh
# Prolog= of slurm.conf: makes the job's container on this node (root, PrologFlags=Alloc); the plugin
# runs it for a step's own container, which HPCWRAP_STEP names.
# Slurm sets no PATH, and drains the node on any code but 0: only an unfit node gives one.
set -u

prefix=${0%/share/hpcwrap/*}
unfit=4

# slurmstepd's cgroups (what is there ends with the step, and counts as the job's), and its exemption
# from the OOM killer, are nothing for a prolog.  Slurm's own places are cgroup_v1.c's and cgroup_v2.c's.
stand_beside_step() {
    while IFS=: read -r _ names path; do
        case $names:$path in
        :*/job_*) echo $$ >"/sys/fs/cgroup${path%/job_*}/system/cgroup.procs" ;;
        *:*/uid_*) echo $$ >"/sys/fs/cgroup/$names${path%/uid_*}/cgroup.procs" ;;
        esac
    done </proc/self/cgroup 2>/dev/null
    echo 0 >/proc/self/oom_score_adj
}

[ -z "${HPCWRAP_STEP:-}" ] || stand_beside_step

"$prefix/bin/python3" -I -c 'from hpcwrap.hook import main; main("prolog", "slurm")'
code=$?
[ "$code" -eq 0 ] && exit 0
[ "$code" -eq "$unfit" ] && exit 1

# Not even Python could say what is wrong (killed, or the installation is broken): the job must not
# run on the host, and the node must not be drained for a fault that is not its own.
job=/run/hpcwrap/jobs/${SLURM_JOB_ID:?}${HPCWRAP_STEP:+.$HPCWRAP_STEP}
/usr/bin/mkdir -p "$job" && /usr/bin/rm -f "$job/entry" &&
    echo "the prolog ended with code $code on ${SLURMD_NODENAME:-this node}; see slurmd's log" \
        >"$job/error"

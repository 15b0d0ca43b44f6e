#!/bin/sh
# Epilog= of slurm.conf: drops the job's container on this node (root).
set -u

[ -e "/run/hpcwrap/jobs/$SLURM_JOB_ID" ] || exit 0

prefix=${0%/share/hpcwrap/*}
exec "$prefix/bin/python3" -I -c 'from hpcwrap.epilog import main; main("slurm")'

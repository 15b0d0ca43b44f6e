#!/bin/sh
# Started by hpcwrap-wait when a shepherd has ended: drops the job's container on this node (root).
set -u

prefix=${0%/share/hpcwrap/*}
export HPCWRAP_JOB="${1:?}"

exec "$prefix/bin/python3" -I -c \
    'from hpcwrap.hook import main; main("hooks.epilog_gridengine", "gridengine")'

#!/bin/sh -p
# shepherd_cmd of sge_conf(5): makes the job's container on this node, then becomes the shepherd.
# It is root in real and the admin user in effect, as the shepherd has to be (-p keeps it so), in the
# shepherd's directory, without any of the user's variables.
set -u
prefix=${0%/share/hpcwrap/*}
unfit=4
app_error=30
before_prolog=7

# execd takes a shepherd's end from these files (sge_status(5)): 30 puts the job into the state E,
# 7 the queue on this node, and has the job run elsewhere.
refuse() {
    echo "hpcwrap: $2" >error
    echo "$1" >exit_status
    exit "$1"
}

as_root() {
    /usr/bin/setpriv --reuid=0 --regid=0 --clear-groups -- "$@"
}

execd=$(as_root /usr/bin/readlink "/proc/$PPID/exe") || refuse $app_error "cannot find sge_execd"
export HPCWRAP_PROGRAMS="${execd%/*}" HPCWRAP_SHEPHERD=$$

# TSTP is how execd has a shepherd kill its job (execd_signal_queue.c); there is none yet to do so.
deleted=
trap 'deleted=yes' TSTP
as_root "$prefix/bin/python3" -I -c \
    'from hpcwrap.hook import main; main("hooks.prolog_gridengine", "gridengine")' \
    </dev/null >hpcwrap.log 2>&1
code=$?
trap - TSTP
[ -z "$deleted" ] || refuse $app_error "the job was deleted while its container was made"
reason=$(/usr/bin/tail -n 1 hpcwrap.log)
reason=${reason#hpcwrap: }
case $code in
0) unset HPCWRAP_PROGRAMS HPCWRAP_SHEPHERD && exec "${execd%/*}/sge_shepherd" -bg ;;
"$unfit") refuse $before_prolog "$reason" ;;
*) refuse $app_error "${reason:-the prolog ended with code $code on this node}" ;;
esac

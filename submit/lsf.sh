#!/bin/sh
# esub of LSF: refuses what the job could not have, and sends the container's name along with it (the
# user who submits).  esub.hpcwrap, esub.container and esub.NAME in LSF_SERVERDIR start this.
# bsub submits the job after any code but LSB_SUB_ABORT_VALUE: where not even Python runs, it must not.

prefix=${0%/share/hpcwrap/*}
"$prefix/bin/python3" -I -c 'from hpcwrap.hook import main; main("hooks.submit_lsf", "lsf")'
code=$?
[ "$code" -eq 0 ] || exit "${LSB_SUB_ABORT_VALUE:-97}"

#!/bin/sh
# ForceCommand of the sshd that HTCondor starts for a session in a job (the job's user); the word is
# its configuration's path.  env.sh, beside it, is HTCondor's: the job's variables, as export -p.
# shellcheck source=/dev/null
. "${1%/*}/env.sh"
exec "${0%/share/hpcwrap/*}/libexec/hpcwrap/hpcwrap-singularity" session "${1%/*}/env.sh"

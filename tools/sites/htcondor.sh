# shellcheck shell=sh
# Sourced by tools/site: `hpcwrap setup htcondor` has written HTCondor's files; without systemd the
# helper needs something that listens.

connect() {
    for node in $(nodes); do
        [ "$node" = ctl ] || listen "$node"
    done
}

listen() {
    on "$1" test -S /run/hpcwrap/helper.sock && return
    on "$1" sh -c "setsid --fork '${repository:?}/tools/listen' /run/hpcwrap/helper.sock '${prefix:?}/bin/python3' \
        -I -c 'from hpcwrap.helper import main; raise SystemExit(main())' </dev/null >/var/log/helper.log 2>&1"
}

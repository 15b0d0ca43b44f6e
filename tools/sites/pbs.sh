# shellcheck shell=sh
# Sourced by tools/site: `hpcwrap setup pbs` has done all, and pbs_server sends hooks to the nodes.

connect() {
    # shellcheck disable=SC2034 # tools/site reads it
    restart=
}

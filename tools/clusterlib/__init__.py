"""The rooms of `tools/cluster`.

cli          verbs and exit codes
lifecycle    up, down, restart, status: the story
services     munged, docker-registry, slurmctld, slurmd: start, stop, wait
network      the bridge inside ctl and the wires to it
init         process 1 of a node: builds the node's root, then reaps
nodefiles    what a node has in /etc of its own, as text
processes    find a node's process 1, run commands inside
leftovers    loop devices that outlive the nodes
layout       names, addresses, users, paths: plain data
syscalls     the only ctypes
"""

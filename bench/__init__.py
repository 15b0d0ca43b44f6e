"""The benchmarks of `make bench`: hpcwrap beside nothing at all, and beside its peers.

Each benchmark is a module with one function `measure(rounds) -> Result`; run.py is the command.

model      what a benchmark returns: rows of samples, and goals
report     tables for people, JSON for machines
loop       starts commands in turn and times each; a program of its own, for users and nodes
processes  commands to their end, their processor time and their memory
place      a directory with a registry, a store and settings; a mount namespace of our own
cluster    a cluster of tools/cluster with hpcwrap on it
stages     where the time of a prolog goes, step by step
"""

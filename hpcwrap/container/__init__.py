"""The container room: a plan of operations, and what builds a container from it."""

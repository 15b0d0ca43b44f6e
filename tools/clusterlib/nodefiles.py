"""What a node has in /etc of its own, as text."""

from __future__ import annotations

from typing import Iterable, Mapping

from clusterlib.layout import (
    CONTROLLER,
    GROUPS,
    REGISTRY_PORT,
    REGISTRY_SHARE,
    USERS,
    Cluster,
    address,
)

REGISTRY_CONFIG_TEMPLATE = """\
version: 0.1
log:
  level: warn
storage:
  filesystem:
    rootdirectory: {directory}
  delete:
    enabled: true
http:
  addr: {address}:{port}
"""

REGISTRIES_CONF_TEMPLATE = """\
# The cluster's own registry speaks plain HTTP.
unqualified-search-registries = ["registry:{port}"]

[[registry]]
location = "registry:{port}"
insecure = true

[[registry]]
location = "{address}:{port}"
insecure = true
"""

POLICY_JSON = '{"default": [{"type": "insecureAcceptAnything"}]}\n'

# The C library asks 127.0.0.1 when no server is named; nobody listens there, so a look-up of an
# unknown name fails at once instead of waiting for a server that no route leads to.
RESOLV_CONF = "# No way leads out of this cluster: see /etc/hosts.\n"


def hosts(cluster: Cluster) -> str:
    """/etc/hosts with every node, and the name `registry` for the controller."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for node in cluster.names:
        names = f"{node} registry" if node == CONTROLLER else node
        lines.append(f"{address(node)} {names}")
    return "".join(f"{line}\n" for line in lines)


def passwd(lower: str) -> str:
    """The packages' /etc/passwd with the cluster's users in it."""
    ours = [f"{u.name}:*:{u.uid}:{u.uid}:{u.name}:{u.home}:/bin/bash" for u in USERS]
    return _merge(lower, ours)


def group(lower: str) -> str:
    """The packages' /etc/group with the cluster's groups in it."""
    ours = [f"{user.name}:x:{user.uid}:" for user in USERS]
    for name, gid in GROUPS.items():
        members = ",".join(user.name for user in USERS if name in user.groups)
        ours.append(f"{name}:x:{gid}:{members}")
    return _merge(lower, ours)


def _merge(lower: str, ours: list[str]) -> str:
    """Lines of a passwd-like file: ours, and those of `lower` with other names and numbers."""
    taken = {field for line in ours for field in _name_and_number(line)}
    kept = [line for line in lower.splitlines() if not taken & set(_name_and_number(line))]
    return "".join(f"{line}\n" for line in [*kept, *ours])


def _name_and_number(line: str) -> Iterable[str]:
    return [*line.split(":"), "", "", ""][0:3:2]


def variables_text(variables: Mapping[str, str]) -> str:
    """/etc/environment, which says what a login has in its environment (pam_env(8))."""
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def texts(cluster: Cluster, node: str) -> dict[str, str]:
    """Path → text of every small file that this node has for itself."""
    where = {"address": address(CONTROLLER), "port": REGISTRY_PORT}
    files = {
        "/etc/hostname": f"{node}\n",
        "/etc/hosts": hosts(cluster),
        "/etc/resolv.conf": RESOLV_CONF,
        "/etc/containers/registries.conf": REGISTRIES_CONF_TEMPLATE.format(**where),
        "/etc/containers/policy.json": POLICY_JSON,
    }
    if node == CONTROLLER:
        files["/etc/docker/registry/config.yml"] = REGISTRY_CONFIG_TEMPLATE.format(
            directory=REGISTRY_SHARE.target, **where
        )
    return files

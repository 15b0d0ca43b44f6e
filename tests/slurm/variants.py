"""Images in the cluster's registry that differ from the tiny one in a variable."""

from __future__ import annotations

from site_tools import Site

REGISTRY = "registry:5000"
STORE = "/shared/hpcwrap/store"

PUSH = """
import hashlib, json, os, subprocess, sys, tempfile

name, version = sys.argv[1:]
with tempfile.TemporaryDirectory() as root:
    os.environ["XDG_RUNTIME_DIR"] = root
    directory = "dir:" + root + "/image"
    copy = ["skopeo", "copy", "--quiet"]
    base = "docker://registry:5000/busybox-1:latest"
    subprocess.run([*copy, "--src-tls-verify=false", base, directory], check=True)
    manifest = json.load(open(root + "/image/manifest.json"))
    config = json.load(open(root + "/image/" + manifest["config"]["digest"][7:]))
    config.setdefault("config", {}).setdefault("Env", []).append("VERSION=" + version)
    content = json.dumps(config).encode()
    digits = hashlib.sha256(content).hexdigest()
    open(root + "/image/" + digits, "wb").write(content)
    manifest["config"].update(digest="sha256:" + digits, size=len(content))
    content = json.dumps(manifest).encode()
    open(root + "/image/manifest.json", "wb").write(content)
    target = "docker://registry:5000/" + name
    subprocess.run([*copy, "--dest-tls-verify=false", directory, target], check=True)
    print("sha256:" + hashlib.sha256(content).hexdigest())
"""


def push(site: Site, name: str, version: str) -> str:
    """Push the tiny image with VERSION in its variables under NAME:TAG; its digest."""
    words = ("/usr/bin/python3", "-", name, version)
    return site.need("cluster", "exec", "ctl", *words, stdin=PUSH).strip()

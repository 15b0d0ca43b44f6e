"""A directory for the benchmarks: a registry on loopback, settings, a store with the demo image.

Made once, on first use, and removed at the end; what a killed run left is removed by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import socket
import subprocess
import time
import traceback
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, NoReturn

from bench.processes import REPOSITORY, BenchError, progress, run
from hpcwrap import enter, epilog, paths, prolog
from hpcwrap.config import load_config
from hpcwrap.container import syscalls
from hpcwrap.errors import HpcwrapError
from hpcwrap.image.pull import pull
from hpcwrap.image.puller import options_from
from hpcwrap.image.store import Image, Store
from hpcwrap.job import Job, User
from hpcwrap.request import Request
from hpcwrap.schedulers import load

BASE = "/var/tmp/hpcwrap-bench"
IMAGE = "debian-12"
USER = User("bench", 42001, 42001, (42001,), "/nonexistent")
REGISTRY_PATIENCE_S = 20

REGISTRY_CONFIG = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {directory}}}}}
http: {{addr: 127.0.0.1:{port}{tls}}}
"""


class Place(NamedTuple):
    """What there is: a registry, the demo image's reference, settings with a store of their own."""

    directory: str
    registry: str
    reference: str
    config_file: str

    def path(self, *parts: str) -> str:
        """A path in the directory."""
        return os.path.join(self.directory, *parts)


@functools.cache
def get() -> Place:
    """The place with its registry; made on the first call."""
    directory = os.path.join(BASE, "place")
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    os.chmod(directory, 0o755)
    registry = start_registry(directory)
    reference = push(IMAGE, registry)
    config_file = write_settings(directory, reference, "store")
    return Place(directory, registry, reference, config_file)


def push(image: str, registry: str) -> str:
    """Have an image of tools/image in the registry; its reference."""
    reference = f"{registry}/{image}:latest"
    argv = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
    run([*argv, f"oci:{layout_of(image)}", f"docker://{reference}"])
    return reference


@functools.cache
def get_tls_registry() -> str:
    """The same registry once more, behind TLS with a certificate that nobody trusts; HOST:PORT."""
    directory = get().directory
    certificate, key = f"{directory}/tls.crt", f"{directory}/tls.key"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    run([*argv, "-subj", "/CN=localhost", "-out", certificate, "-keyout", key])
    return start_registry(directory, f", tls: {{certificate: {certificate}, key: {key}}}")


@functools.cache
def get_image() -> Image:
    """The demo image in the store of the place; pulled on the first call."""
    here = get()
    progress(f"pulling {IMAGE}")
    settings = load_config(here.config_file).settings
    try:
        return pull(here.reference, Store(settings.store), options_from(settings)).image
    except HpcwrapError as error:
        raise BenchError(error.sentence()) from error


@functools.cache
def get_unpacked() -> str:
    """The image as a directory, for those who need one, with all that they mount on."""
    root = get().path("unpacked")
    run(["unsquashfs", "-no-progress", "-no-xattrs", "-dest", root, get_image().squashfs])
    for name in ("hosts", "resolv.conf"):
        with open(f"{root}/etc/{name}", "a", encoding="ascii"):
            pass
    return root


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Have BASE for ourselves; it is removed afterwards.  Raises BenchError."""
    os.makedirs(BASE, exist_ok=True)
    descriptor = os.open(BASE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BenchError(f"another run of the benchmarks holds {BASE}") from None
    try:
        yield
    finally:
        remove()
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.rmdir(BASE)


def remove() -> None:
    """End the registry and remove the directory."""
    for process in _registries():
        process.terminate()
        process.wait()
    _registries().clear()
    get_tls_registry.cache_clear()
    shutil.rmtree(os.path.join(BASE, "place"), ignore_errors=True)
    get.cache_clear()


@functools.cache
def layout_of(image: str) -> str:
    """Path of an image's OCI layout, built if need be."""
    progress(f"seeing that the image {image} is built")
    tool = os.path.join(REPOSITORY, "tools", "image")
    run([tool, "build", image])
    return run([tool, "path", image]).strip()


def start_registry(directory: str, tls: str = "") -> str:
    """Start a registry on a free port of loopback; HOST:PORT.  It ends with us at the latest."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = os.path.join(directory, f"registry-{port}.yml")
    with open(config, "w", encoding="ascii") as file:
        file.write(REGISTRY_CONFIG.format(directory=f"{directory}/registry", port=port, tls=tls))
    argv = ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", config]
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _registries().append(process)
    end = time.monotonic() + REGISTRY_PATIENCE_S
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > end:
            raise BenchError("cannot start docker-registry on loopback")
        time.sleep(0.05)
    return f"127.0.0.1:{port}"


def write_settings(directory: str, reference: str, store: str, compression: str = "zstd") -> str:
    """Settings with a store in the directory, and the environment of the image; their path."""
    etc = os.path.join(directory, f"etc-{store}")
    os.makedirs(os.path.join(etc, "environments.d"))
    with open(f"{etc}/environments.d/{IMAGE}.yaml", "w", encoding="utf-8") as file:
        file.write(f"image: {reference}\n")
    with open(f"{etc}/hpcwrap.yaml", "w", encoding="utf-8") as file:
        file.write(f"store: {directory}/{store}\nlog: {directory}/jobs.jsonl\n")
        file.write(f"squashfs_compression: {compression}\n")
    return f"{etc}/hpcwrap.yaml"


def copy_enter_program() -> str:
    """hpcwrap-enter where an ordinary user can reach it, wherever this checkout is."""
    copy = get().path("hpcwrap-enter")
    shutil.copy(paths.enter_program(), copy)
    return copy


def prepare(job_id: str) -> Job:
    """Make a container as `hpcwrap run` does it, for USER; `apart` alone, for it is in /run."""
    job = Job(job_id, "local", USER, "/", os.uname().nodename)
    prolog.prolog(job, Request(IMAGE, "bench"), load("local"), get().config_file)
    return job


def login_environment() -> Dict[str, str]:
    """What USER has in its environment."""
    return enter.login_environment(USER)


def apart(work: Callable[[], Dict[str, Any]]) -> Dict[str, Any]:
    """Run `work` in a child with mounts of its own and an empty /run; what it returned, as JSON.

    When the child ends, however it ends, the kernel takes back all that was mounted in it.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(work, writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(child, 0)
    answer = json.loads(text or '{"error": "the child process was killed"}')
    if "error" in answer:
        raise BenchError(answer["error"])
    return dict(answer["result"])


def _work(work: Callable[[], Dict[str, Any]], writer: int) -> NoReturn:
    answer: Dict[str, Any] = {"error": "a bug in the benchmark (its traceback is above)"}
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("tmpfs", "/run", "tmpfs", 0, "mode=0755")
        answer = {"result": work()}
    except HpcwrapError as error:
        answer = {"error": error.sentence()}
    except (BenchError, OSError) as error:
        answer = {"error": str(error)}
    except Exception:  # noqa: BLE001
        # The edge of this process: nothing of the parent's stack may run here.
        traceback.print_exc()
    finally:
        with open(writer, "w", encoding="utf-8") as file:
            json.dump(answer, file)
        os._exit(0)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@functools.cache
def _registries() -> List[subprocess.Popen[bytes]]:
    return []


def end_job(job: Job) -> None:
    """Drop a container that `prepare` made."""
    epilog.epilog(job.id)

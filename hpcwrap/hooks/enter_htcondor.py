"""The program behind HTCondor's SINGULARITY knob: Apptainer's command line, hpcwrap's containers.

The starter calls it as the job's user (docs/decisions/0100 has the command lines):

    --version                                            what to call us
    exec -C IMAGE /exit_37                               a probe: 37, if we could run a job here
    -s -q test OPTIONS -C IMAGE                          before the job, where the site wants it
    -s exec OPTIONS -C IMAGE COMMAND...                  the job

and enter/htcondor.sh, for a session beside the job, with `session FILE`.
"""

from __future__ import annotations

import getopt
import json
import os
import pwd
import re
import sys
from contextlib import suppress
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from hpcwrap import __version__, helperclient, log, paths, run
from hpcwrap.environment import Mount, format_mount, is_name
from hpcwrap.errors import HpcwrapError, UserError
from hpcwrap.schedulers import htcondor
from hpcwrap.textfile import read_text

CHIRP = os.path.join(htcondor.LIBEXEC, "condor_chirp")

VERSION = f"apptainer version 1.3.6-hpcwrap-{__version__}"
"""HTCondor looks for the word apptainer: it chooses the prefix of the variables by it."""

PROBE, PROBED = "/exit_37", 37
SESSION = "session"
GLOBAL_OPTIONS = "dqsv"
SHORT = "cCepiuB:S:W:H:"
LONG = (
    *("nv", "rocm", "contain", "containall", "cleanenv", "pid", "ipc", "no-home", "userns"),
    *("pwd=", "cwd=", "home=", "bind=", "scratch=", "workdir="),
)
"""Options that are understood; those that have no meaning here are what every container does."""

PREFIXES = ("APPTAINERENV_", "SINGULARITYENV_")
OF_APPTAINER = re.compile(r"(APPTAINER|SINGULARITY)_(CACHEDIR|TEMPDIR|TMPDIR)")
FILES = (".sif", ".sqsh", ".squashfs", ".tar", ".tar.gz")
"""How the names of files end that may be images; a name that does is no environment's."""

IMAGE_ATTRIBUTES = ("container", "containerimage", "dockerimage", "singularityimage")
IN_A_CGROUP = re.compile(r":[^:]*/condor_[^/]*@", re.MULTILINE)
"""How the starter names the cgroup of a slot (cgroup path in /proc/PID/cgroup)."""


class Call(NamedTuple):
    """One command line.  `binds` are SOURCE[:TARGET[:ro|rw]], `scratch` are directories inside."""

    verb: str
    image: str = ""
    command: Tuple[str, ...] = ()
    binds: Tuple[str, ...] = ()
    scratch: Tuple[str, ...] = ()
    workdir: str = ""
    directory: str = ""
    home: str = ""


def main(part: str) -> int:
    """Run one part: a process's edge; the exit code."""
    return PARTS[part](sys.argv[1:])


def start(words: Sequence[str]) -> int:
    """Do what one command line says; the exit code."""
    if words[:1] == [SESSION]:
        return start_session(words[1])
    try:
        call = parse(words)
        if call.verb == "version":
            print(VERSION)
            return 0
        if call.command[:1] == (PROBE,):
            helperclient.ask({"do": "sweep"})
            return PROBED
        return prepare_and_run(call, os.environ)
    except HpcwrapError as error:
        log.say(error.sentence())
        if PROBE not in words:
            leave_error(error, os.environ)
        return htcondor.FAILED


def start_session(variables_file: str) -> int:
    """Open a session; what fails is told to whoever asked for it, and is not the job's end."""
    from hpcwrap.hooks import session_htcondor

    try:
        return session_htcondor.open_session(variables_file, os.environ)
    except HpcwrapError as error:
        log.say(error.sentence())
        return htcondor.FAILED


def leave_error(error: HpcwrapError, environ: Mapping[str, str]) -> None:
    """Leave the sentence in the job's ad, where it becomes the reason why the job is held.

    What cannot be left is in the job's stderr all the same.
    """
    value = json.dumps(f"hpcwrap: {error.sentence()}", ensure_ascii=False)
    words = [CHIRP, "set_job_attr_delayed", htcondor.ERROR_ATTRIBUTE, value]
    try:
        run.output(words, env={**environ, "PATH": run.PATH}, timeout=20)
    except HpcwrapError as problem:
        log.say(f"warning: the job will not be held: {problem.sentence()}")


def release(words: Sequence[str]) -> int:
    """Drop the container of a job that has ended: the starter's hook JOB_EXIT; the exit code.

    With the word `sweep`, as the startd calls it: what is left of any job.
    """
    try:
        if list(words) == ["sweep"]:
            helperclient.ask({"do": "sweep"})
            return 0
        answer = helperclient.ask({"do": "release", **of_job(os.environ)})
        tell(answer.get("said", ()), read_ad(os.environ.get("_CONDOR_JOB_AD", "")))
    except HpcwrapError as error:
        log.say(error.sentence())
        return error.exit_code
    return 0


PARTS: Dict[str, Callable[[Sequence[str]], int]] = {"start": start, "release": release}


def tell(sentences: Sequence[str], ad: Mapping[str, str]) -> None:
    """Add to the job's stderr which limits it reached: nobody else tells its user.

    The file is in the scratch directory until HTCondor takes it from there, or where it belongs
    already.  We have the user's own rights.
    """
    file = os.path.join(ad.get("iwd", "/"), ad.get("err", ""))
    for path in ("_condor_stderr", file) if sentences else ():
        with suppress(OSError), open(path, "r+", encoding="utf-8") as stderr:
            stderr.seek(0, os.SEEK_END)
            stderr.writelines(f"hpcwrap: {sentence}\n" for sentence in sentences)
            return


def prepare_and_run(call: Call, environ: Mapping[str, str]) -> int:
    """Have the container made, then become the job in it; a test ends here."""
    if call.verb == "run":
        raise UserError(
            "cannot run the image's own command", "say `executable` in the submit description"
        )
    directory = helperclient.ask(message(call, environ))["directory"]
    if call.verb == "test":
        return 0
    variables = job_variables(environ, call.home)
    if call.directory and os.path.isdir(call.directory):
        os.chdir(call.directory)
    if directory is None:
        return execute_on_host(call.command, variables)
    return run.execute([paths.enter_program(), directory, "--", *call.command], variables)


def execute_on_host(command: Sequence[str], variables: Mapping[str, str]) -> int:
    """Become the job without a container: it wants none, and has no default."""
    try:
        os.execvpe(command[0], list(command), dict(variables))
    except OSError as error:
        raise UserError(f"cannot execute {command[0]}: {error.strerror}") from None


# ---- the command line ----


def parse(words: Sequence[str]) -> Call:
    """Read a command line.  Raises UserError for an option that hpcwrap does not know."""
    try:
        leading, rest = getopt.getopt(list(words), GLOBAL_OPTIONS, ["version", "quiet", "silent"])
        if ("--version", "") in leading:
            return Call("version")
        verb, *rest = rest or [""]
        if verb not in ("exec", "run", "test"):
            raise UserError(f"cannot do {verb!r}: hpcwrap knows exec, run and test of Apptainer's")
        options, rest = getopt.getopt(rest, SHORT, list(LONG))
    except getopt.GetoptError as error:
        raise UserError(f"cannot use the options of the container: {error}") from None
    if not rest:
        raise UserError("cannot start a container: no image is named")
    return make_call(verb, options, rest[0], tuple(rest[1:]))


def make_call(
    verb: str, options: Sequence[Tuple[str, str]], image: str, command: Tuple[str, ...]
) -> Call:
    """Sort the options."""

    def values(*names: str) -> Tuple[str, ...]:
        return tuple(value for name, value in options if name in names)

    return Call(
        verb=verb,
        image=image,
        command=command,
        binds=tuple(bind for each in values("-B", "--bind") for bind in each.split(",") if bind),
        scratch=values("-S", "--scratch"),
        workdir="".join(values("-W", "--workdir")[-1:]),
        directory="".join(values("--pwd", "--cwd")[-1:]),
        home="".join(values("-H", "--home")[-1:]).partition(":")[0],
    )


# ---- the message to the helper ----


def message(call: Call, environ: Mapping[str, str]) -> Dict[str, Any]:
    """What the helper is asked for: the container's life is that of the starter, our parent."""
    words = of_job(environ)
    words["variables"][htcondor.WORKDIR] = call.directory
    asked = asked_image(call.image, call.directory, read_ad(environ.get("_CONDOR_JOB_AD", "")))
    words["variables"][htcondor.CONTAINER] = asked
    mounts = [format_mount(mount) for mount in own_mounts(call)]
    return {"do": "prepare", **words, "mounts": mounts, "limits": limits(environ), "above": 1}


def of_job(environ: Mapping[str, str]) -> Dict[str, Any]:
    """Which job it is, and what it was given."""
    ad = read_ad(environ.get("_CONDOR_JOB_AD", ""))
    variables = {
        htcondor.JOB: f"{ad.get('clusterid', '')}.{ad.get('procid', '')}",
        htcondor.SLOT: environ.get("_CONDOR_SLOT", ""),
    }
    given = {name: environ[name] for name in htcondor.CALLER_VARIABLES if name in environ}
    return {"scheduler": "htcondor", "variables": {**given, **variables}}


def read_ad(path: str) -> Dict[str, str]:
    """The plain attributes of a job's or machine's ad, one a line; strings without their quotes.

    Their names are in small letters: to HTCondor Container and container are the same.
    """
    pairs = re.findall(r"^(\w+) = (.*)$", read_text(path), re.MULTILINE) if path else []
    return {name.lower(): re.sub(r'^"(.*)"$', r"\1", value) for name, value in pairs}


def asked_image(image: str, directory: str, ad: Mapping[str, str]) -> str:
    """What the user, or the site, wrote: the starter puts the job's directory before it.

    >>> asked_image("/home/a/debian-12", "/home/a", {"containerimage": "debian-12"})
    'debian-12'
    """
    written = [ad[name] for name in IMAGE_ATTRIBUTES if ad.get(name)]
    found = [each for each in written if image in (each, os.path.join(directory, each))]
    relative = image[len(directory) + 1 :] if image.startswith(f"{directory}/") else image
    if not found and (is_name(relative) or ":" in relative):
        found = [relative]
    return as_request(found[0] if found else image, directory)


def as_request(text: str, directory: str) -> str:
    """An environment's name, an image, or a file's whole path."""
    if text.startswith("docker://"):
        return text[len("docker://") :]
    return os.path.join(directory, text) if text.endswith(FILES) else text


def own_mounts(call: Call) -> List[Mount]:
    """The directories that the job has on the host, and its own /tmp in the scratch directory."""
    mounts = [make_mount(bind) for bind in call.binds]
    for target in call.scratch:
        source = f"{call.workdir}/{target.lstrip('/')}"
        os.makedirs(source, mode=0o700, exist_ok=True)
        mounts.append(Mount(source, target, "bind", (), ""))
    return mounts


def make_mount(bind: str) -> Mount:
    """Read one SOURCE[:TARGET[:OPTIONS]]."""
    source, target, options = [*bind.split(":"), "", ""][:3]
    return Mount(source, target or source, "bind", (options,) if options else (), "")


def limits(environ: Mapping[str, str]) -> Dict[str, int]:
    """The slot's memory, where the starter has no cgroup to hold the job to it."""
    if IN_A_CGROUP.search(read_text("/proc/self/cgroup")):
        return {}
    memory = read_ad(environ.get("_CONDOR_MACHINE_AD", "")).get("memory", "")
    return {"memory": int(memory) << 20} if memory.isdigit() and int(memory) else {}


# ---- the job's variables ----


def job_variables(environ: Mapping[str, str], home: str) -> Dict[str, str]:
    """The job's variables as they are without a container, and HOME.

    The starter gives each of them twice: as it is outside, and, with a prefix, as it is inside.
    """
    outside = {name: value for name, value in environ.items() if not name.startswith(PREFIXES)}
    inside = {
        name[len(prefix) :]: value
        for prefix in PREFIXES
        for name, value in environ.items()
        if name.startswith(prefix)
    }
    outside.pop("LC_CTYPE", None)  # our own Python's: it chooses a locale where there is none
    variables = {**outside, "HOME": home or home_of_user(), **inside}
    return {name: value for name, value in variables.items() if not OF_APPTAINER.fullmatch(name)}


def home_of_user() -> str:
    """The home directory of whoever runs this; the root where nobody knows."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return "/"

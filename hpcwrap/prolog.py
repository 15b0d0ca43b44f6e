"""Prolog: root makes a job's container on this node, before anything of the job runs.

`prolog` is the story; `main` is the process's edge, where errors are sorted by who can fix them:
an unfit node ends it with EXIT_NODE, for the scheduler to drain the node.  Everything else becomes
the sentence with which enter ends the job.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Dict, Optional, Tuple, cast

from hpcwrap import epilog, log, machine, owners, paths, record, schedulers, submit, supply
from hpcwrap.config import Settings
from hpcwrap.container import build, environ, namespaces
from hpcwrap.container.operations import Commands
from hpcwrap.container.plan import Plan, make_plan
from hpcwrap.environment import Environment, format_rlimit
from hpcwrap.errors import HpcwrapError, NodeError
from hpcwrap.image.store import Image
from hpcwrap.job import NO_LIMITS, Job
from hpcwrap.request import Request
from hpcwrap.supply import Supplied


def prolog(
    job: Job,
    request: Request,
    adapter: schedulers.Adapter,
    config_file: str = paths.CONFIG_FILE,
) -> Optional[record.Record]:
    """Make the container of a job; None when the job has none.

    Raises HpcwrapError.  May run again for the same job (requeue, killed half-way): what an
    earlier run left is dropped first.
    """
    place = paths.JobPaths(job.id)
    with owners.turn(place):
        drop_leftovers(place)
        choice = submit.choose(job, request, config_file)
        if choice is None:
            return None
        # Before the image: an epilog that comes while we pull (Slurm's does when slurmd was killed)
        # is to see that there is a turn to wait for.
        make_directory(job, place)
        supplied = supply.supply(choice, job, config_file)
        try:
            return make(job, choice, supplied, adapter)
        except BaseException:
            supplied.give_back(job)
            raise


def make(
    job: Job, choice: submit.Choice, supplied: Supplied, adapter: schedulers.Adapter
) -> record.Record:
    """Make the container from an image that is kept for the job, and leave its record."""
    place, image = paths.JobPaths(job.id), supplied.image
    watch = Stopwatch()
    cgroups = make_cgroups(job, place, adapter)
    plan = make_plan(
        image.squashfs,
        choice.environment,
        choice.settings,
        job,
        scheduler_mounts=adapter.own_mounts(choice.settings),
        commands=host_commands(adapter, choice.settings),
        additions=machine.additions(
            choice.environment,
            choice.settings,
            asked=job.asked,
            gpus=adapter.read_gpus(os.environ),
            launcher=adapter.launcher(choice.settings, os.environ),
            user=job.user,
            pmi=adapter.serves_pmi,
            cgroups=cgroups,
        ),
        user_namespace=adapter.user_namespace,
    )
    plan = make_container(plan, place)
    times = {**supplied.milliseconds, "prolog": watch.milliseconds()}
    made = describe(job, choice, supplied)._replace(
        milliseconds=times,
        rlimits=tuple(map(format_rlimit, plan.rlimits)),
        warning="; ".join(filter(None, (supplied.warning, *plan.warnings))),
        plan=plan.describe(),
        variables=environ.describe_variables(image.config.env, plan, choice.environment),
    )
    leave_record(place, made, plan, choice.environment, image)
    return made


def main(scheduler: str) -> int:
    """Run as the scheduler's prolog, whose environment says which job; the exit code."""
    try:
        run(schedulers.load(scheduler))
    except HpcwrapError as error:
        log.say(error.sentence())
        return error.exit_code
    return 0


def run(adapter: schedulers.Adapter) -> None:
    """Run one prolog.  Raises HpcwrapError only where no error can be left in the job's record."""
    watch = Stopwatch()
    job, request = adapter.read_prolog(os.environ)
    note_given(adapter)
    if job.owners:
        sweep_leftovers()
    try:
        made = prolog(job, request, adapter)
        if made:
            report(job, made, watch)
            note_image(job, made, adapter)
            sweep_after_boot()
    except NodeError as error:
        report_failure(job, request, error.sentence(), watch)
        raise
    except HpcwrapError as error:
        report_failure(job, request, error.sentence(), watch)
        fail_job(job, error.sentence())
    except Exception as error:  # noqa: BLE001
        # A bug of ours: the job must not run on the host, and the node is not to blame.
        sys.excepthook(type(error), error, error.__traceback__)
        sentence = f"the prolog failed: {type(error).__name__}: {error} (please report this)"
        report_failure(job, request, sentence, watch)
        fail_job(job, sentence)
    if job.owners and not owners.alive(paths.JobPaths(job.id)):
        sweep_leftovers()  # of this job's own: its epilog did not wait for this prolog


class Stopwatch:
    """Milliseconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def milliseconds(self) -> float:
        """Time so far."""
        return round((time.monotonic() - self._start) * 1e3, 2)


def sweep_leftovers() -> None:
    """End other jobs of this node that no epilog came for; no error of theirs is this job's."""
    from hpcwrap import sweep

    sweep.sweep_quietly()


def sweep_after_boot() -> None:
    """See once a boot to what jobs left in the store that the boot ended."""
    if not os.path.exists(paths.SWEPT):
        from hpcwrap import sweep

        sweep.start_after_boot()


def drop_leftovers(place: paths.JobPaths) -> None:
    """Drop what an earlier run for the same job left; does nothing on the usual way."""
    if os.path.isdir(place.directory):
        epilog.drop(place)


def host_commands(adapter: schedulers.Adapter, settings: Settings) -> Optional[Commands]:
    """The scheduler's commands as an operation of the plan; None where it has none."""
    found = adapter.commands(settings)
    return found and Commands(found.directory, found.names, paths.host_program(), found.scripts)


def make_directory(job: Job, place: paths.JobPaths) -> None:
    """Make the job's directory, which says first of all whose it is."""
    namespaces.ensure_jobs_directory()
    os.makedirs(place.directory, mode=0o711, exist_ok=True)
    owners.begin(place, job.owners)
    record.begin_leases(place)


def make_container(plan: Plan, place: paths.JobPaths) -> Plan:
    """Build and pin the container in the job's directory; the plan, with what the image told."""
    found = build.build(plan, place)
    return plan._replace(variables=(*plan.variables, *found.variables), notes=found.notes)


def make_cgroups(
    job: Job, place: paths.JobPaths, adapter: schedulers.Adapter
) -> Optional[Tuple[str, ...]]:
    """Make the job's cgroups; whoever starts the job joins them (enter, or an adapter's hook).

    None without limits, and no cgroup where the scheduler makes them: later, in the job's steps.
    """
    if adapter.enforces_limits:
        return ()
    if job.limits == NO_LIMITS:
        return None
    from hpcwrap.container import limits

    return limits.make(job.limits, place)


def describe(job: Job, choice: submit.Choice, supplied: Supplied) -> record.Record:
    """Put together what the later stages, accounting and people want to know."""
    return record.Record(
        job=job.id,
        scheduler=job.scheduler,
        node=job.node,
        user=job.user.name,
        environment=choice.environment.name,
        origin=choice.origin,
        reference=choice.environment.image,
        digest=supplied.image.digest,
        started=time.time(),
        milliseconds=supplied.milliseconds,
        stores=supplied.stores,
        warning=supplied.warning,
        uid=job.user.uid,
        pin=choice.pin,
    )


def leave_record(
    place: paths.JobPaths,
    made: record.Record,
    plan: Plan,
    environment: Environment,
    image: Image,
) -> None:
    """Write the record, and the entry as the last file: without it nobody gets in."""
    entry = environ.make_entry(made.label, plan, place, image.config.env, environment)
    record.write_record(place, made)
    record.publish(place.timing, b"", 0o600, reader=made.uid)
    record.publish(place.entry, entry, 0o640, group=plan.user.gid)


def fail_job(job: Job, sentence: str) -> None:
    """Leave the sentence that enter shows to the user and ends the job with."""
    place = paths.JobPaths(job.id)
    with owners.turn(place):
        build.release(place)
        owners.begin(place, job.owners)
        record.write_error(place, sentence)


def report(job: Job, made: record.Record, watch: Stopwatch) -> None:
    """Leave one line in syslog, with what was not as it should be; `watch` is the whole stage's."""
    warning = {"warning": made.warning} if made.warning else {}
    log.stage_line("prolog", **who(job), image=made.label, ms=watch.milliseconds(), **warning)


def note_given(adapter: schedulers.Adapter) -> None:
    """Have the scheduler's word kept of what the job has of this node, for later prologs of it."""
    if hasattr(adapter, "note"):
        cast(schedulers.NotingAdapter, adapter).note(os.environ)


def note_image(job: Job, made: record.Record, adapter: schedulers.Adapter) -> None:
    """Have accounting get to know the image, where the submission did not; nobody waits for it."""
    if not hasattr(adapter, "account"):
        return
    from hpcwrap.run import detach

    accounting = cast(schedulers.AccountingAdapter, adapter)
    words = accounting.account(os.environ, made.label)
    if words:
        program = f"from hpcwrap.hook import main; main('hooks.account_{job.scheduler}', '')"
        with open(os.devnull, "rb") as null:
            detach([sys.executable, "-I", "-c", program, *words], null.fileno())


def report_failure(job: Job, request: Request, sentence: str, watch: Stopwatch) -> None:
    """Leave one line in syslog for a job that gets no container, with what was asked for."""
    asked = {"image": request.container} if request.container else {}
    log.stage_line("prolog", **who(job), **asked, ms=watch.milliseconds(), error=sentence)


def who(job: Job) -> Dict[str, log.Field]:
    """What every stage's line begins with."""
    return {"job": job.id, "user": job.user.name, "node": job.node}

"""`hpcwrap plan`: what the prolog would do for an environment, without doing it."""

from __future__ import annotations

import argparse
import json
import os
from typing import List, Tuple

from hpcwrap import log, machine
from hpcwrap.config import Config, load_config
from hpcwrap.container import environ
from hpcwrap.container.plan import Plan, make_plan
from hpcwrap.environment import Environment, allowed, refusal
from hpcwrap.image.store import Store
from hpcwrap.job import Job, find_user
from hpcwrap.prolog import host_commands
from hpcwrap.schedulers import NAMES, load
from hpcwrap.submit import group_names


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.epilog = "example:\n  hpcwrap plan --user alice --workdir /scratch/alice debian-12\n"
    parser.add_argument("--user", help="whose job (default: you)")
    parser.add_argument("--workdir", help="the job's work directory (default: this one)")
    parser.add_argument("--scheduler", choices=NAMES, default="slurm", help="default: slurm")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("environment", metavar="ENVIRONMENT")


def run(arguments: argparse.Namespace) -> int:
    """Print the operations in order, then the changes to the job's variables."""
    config = load_config(arguments.config)
    environment = config.environment(arguments.environment)
    plan, image_variables = plan_for(arguments, config, environment)
    variables = environ.describe_variables(image_variables, plan, environment)
    for warning in plan.warnings:
        log.warn(warning)
    if arguments.json:
        print(json.dumps({"operations": plan.describe(), "variables": variables}, indent=1))
        return 0
    print("\n".join(plan.describe()))
    print("\nvariables of the job:")
    print("\n".join(f"  {line}" for line in variables))
    return 0


def plan_for(
    arguments: argparse.Namespace, config: Config, environment: Environment
) -> Tuple[Plan, List[str]]:
    """Plan for an imagined job; an image that is not in the store yet is said to be pulled."""
    user = find_user(arguments.user or str(os.getuid()))
    if not allowed(environment, user.name, group_names(user)):
        raise refusal(environment, user.name)
    workdir = os.path.abspath(arguments.workdir or os.getcwd())
    adapter = load(arguments.scheduler)
    image = Store(config.settings.store).find(environment.image)
    plan = make_plan(
        image.squashfs if image else f"(to be pulled: {environment.image})",
        environment,
        config.settings,
        Job("0", arguments.scheduler, user, workdir, os.uname().nodename),
        scheduler_mounts=adapter.own_mounts(config.settings),
        commands=host_commands(adapter, config.settings),
        additions=machine.additions(
            environment,
            config.settings,
            gpus=adapter.read_gpus(os.environ),
            launcher=adapter.launcher(config.settings, os.environ),
            user=user,
            pmi=adapter.serves_pmi,
            cgroups=() if adapter.enforces_limits else None,
        ),
        user_namespace=adapter.user_namespace,
    )
    return plan, list(image.config.env) if image else []

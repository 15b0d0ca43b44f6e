"""submit/slurm.lua under a plain Lua, with the table that the package writes.

What slurmctld lends to job_submit.lua is stood in for by the few lines of DRIVER, as strict as the
real thing where it matters: SPANK's variables cannot be written, a job without a script has no
environment.  tests/slurm asks the real slurmctld.
"""

from __future__ import annotations

import pathlib
import time
from typing import Any, Dict, Optional

import pytest
from filters import (
    ACCOUNTS,
    ALICE,
    BOB,
    BROKEN_TABLES,
    DENIED,
    DIGEST,
    IMAGES,
    NEVER,
    NOW,
    OLD,
    PIN,
    SITE,
    Filter,
    Outcome,
    config,
    environment,
    make_table,
    spank,
)

from hpcwrap.image.allow import matches
from hpcwrap.image.source import parse_source
from hpcwrap.schedulers.slurm_table import Accounts, render_table
from hpcwrap.verbs.setup_slurm import is_current

# ---- who asks, and how ----


def test_job_without_a_container_is_left_alone(lua: Filter) -> None:
    assert lua.submit(comment="mine") == Outcome(0, "mine", None, None, None, "", "")


def test_sbatch_with_the_plugin(lua: Filter) -> None:
    done = lua.submit(container="debian-12", spank_job_env=spank("debian-12"), comment="mine")
    label = f"hpcwrap=debian-12@{DIGEST}"
    assert done == Outcome(0, f"mine {label}", "debian-12", label, None, "", "")


def test_srun_whose_plugin_has_cleared_the_option(lua: Filter) -> None:
    done = lua.submit(spank_job_env=spank("cuda-12"))
    assert (done.code, done.container, done.admin_comment) == (0, "cuda-12", "hpcwrap=cuda-12")
    assert done.comment is None


def test_client_without_the_plugin_is_carried_by_the_comment(lua: Filter) -> None:
    done = lua.submit(container="debian-12", comment="run 7", script="#!/bin/sh", environment={})
    assert done.code == 0
    assert done.comment == f"run 7 hpcwrap={PIN}"
    assert done.mark == "debian-12"


def test_job_without_a_script_gets_no_mark(lua: Filter) -> None:
    done = lua.submit(container="debian-12")
    assert (done.code, done.comment, done.mark) == (0, f"hpcwrap={PIN}", None)


def test_word_in_the_comment_is_a_request(lua: Filter) -> None:
    done = lua.submit(comment="hpcwrap=cuda-12")
    assert (done.code, done.comment, done.container) == (0, "hpcwrap=cuda-12", "cuda-12")


def test_bundle_path_is_slurms_business(lua: Filter) -> None:
    lua.table.write_text(make_table(config(*SITE), clear_container=True))
    done = lua.submit(container="/bundles/one")
    assert done == Outcome(0, None, "/bundles/one", None, None, "", "")


def test_a_path_without_an_oci_conf_would_run_on_the_host(lua: Filter) -> None:
    done = lua.submit(container="registry:5000/debian")
    assert done.code == -1
    assert done.said == (
        "hpcwrap: cannot use --container=registry:5000/debian: it is a path or an image, and "
        "this site allows its environments only (see `hpcwrap env list`)"
    )


def test_administrators_own_comment_is_kept(lua: Filter) -> None:
    done = lua.submit(container="cuda-12", admin_comment="note")
    assert done.admin_comment == "note hpcwrap=cuda-12"


def test_name_is_cleared_where_slurm_has_an_oci_conf(lua: Filter) -> None:
    lua.table.write_text(make_table(config(*SITE), clear_container=True))
    done = lua.submit(container="debian-12", spank_job_env=spank("debian-12"))
    assert (done.code, done.container) == (0, None)
    assert lua.submit(container="none", spank_job_env=spank("none")).container is None


@pytest.mark.parametrize(
    "job",
    [
        {"container": "debian-12", "spank_job_env": spank("cuda-12")},
        {"container": "debian-12", "comment": "hpcwrap=cuda-12"},
        {"comment": "hpcwrap=debian-12", "spank_job_env": spank("cuda-12")},
        {"container": "none", "spank_job_env": spank("cuda-12")},
    ],
)
def test_contradictions_are_refused(lua: Filter, job: Dict[str, Any]) -> None:
    done = lua.submit(**job)
    assert done.code == -1
    assert done.said.startswith("hpcwrap: cannot tell which container is meant: ")


# ---- names ----


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("debian12", "debian-12"),
        ("debian-21", "debian-12"),
        ("debain-12", "debian-12"),
        ("ddebian-12", "debian-12"),
        ("debian_12", "debian-12"),
        ("Debian-12", "debian-12"),
        ("cuda-1", "cuda-12"),
    ],
)
def test_unknown_name_with_one_error(lua: Filter, name: str, near: str) -> None:
    done = lua.submit(container=name, spank_job_env=spank(name))
    assert done.code == -1
    assert done.said == f"hpcwrap: there is no environment '{name}' (did you mean {near}?)"
    assert done.admin_comment is None


@pytest.mark.parametrize(
    "name", ["", "x", "%s%d%", "a b", "é" * 40, 'q"uote\\', "__index", "x" * 9999]
)
def test_odd_names_are_unknown_names(lua: Filter, name: str) -> None:
    done = lua.submit(spank_job_env=spank(name))
    assert done.code == -1
    assert "hpcwrap: there is no environment '" in done.said
    assert "(known are cuda-12, debian-12, for-" in done.said
    assert len(done.said.encode()) < 300


def test_many_environments_are_not_listed(lua: Filter) -> None:
    many = config(*(environment(f"env-{number:02}") for number in range(11)))
    lua.table.write_text(make_table(many))
    assert lua.submit(container="x").said.endswith("(see `hpcwrap env list`)")


def test_broken_environment_is_the_sites_fault(lua: Filter) -> None:
    done = lua.submit(container="half-done")
    assert done.code == -1
    assert done.said == (
        "hpcwrap: cannot use the environment half-done: it is broken, or a default that does "
        "not exist (tell the administrators; `hpcwrap config --check` says more)"
    )


# ---- digests ----


def test_a_job_is_pinned_to_the_digest_of_its_submission(lua: Filter) -> None:
    done = lua.submit(spank_job_env=spank("debian-12"), comment="hpcwrap=debian-12")
    assert (done.code, done.comment) == (0, f"hpcwrap=debian-12 hpcwrap={PIN}")
    again = lua.submit(spank_job_env=spank("debian-12"), comment=done.comment)
    assert again.comment == done.comment


@pytest.mark.parametrize("digest", [DIGEST, OLD])
def test_users_name_a_digest_that_the_environment_had(lua: Filter, digest: str) -> None:
    text = f"debian-12@{digest}"
    done = lua.submit(container=text, spank_job_env=spank(text))
    assert (done.code, done.comment, done.container) == (0, None, text)
    assert done.admin_comment == f"hpcwrap={text}"
    done = lua.submit(container="debian-12", comment=f"hpcwrap={text}")
    assert (done.code, done.admin_comment) == (0, f"hpcwrap={text}")


def test_users_name_no_digest_of_another_image(lua: Filter) -> None:
    done = lua.submit(container=f"debian-12@{NEVER}")
    assert done.code == -1
    assert done.said == (
        f"hpcwrap: cannot use debian-12@{NEVER}: the environment never had this image here "
        "(see `hpcwrap images`)"
    )


def test_a_digest_of_an_image_that_nobody_pulled_yet_is_the_prologs_to_check(lua: Filter) -> None:
    done = lua.submit(container=f"cuda-12@{NEVER}")
    assert (done.code, done.admin_comment) == (0, f"hpcwrap=cuda-12@{NEVER}")


def test_two_digests_contradict_each_other(lua: Filter) -> None:
    done = lua.submit(container=PIN, comment=f"hpcwrap=debian-12@{OLD}")
    assert (done.code, "cannot tell which container is meant" in done.said) == (-1, True)


@pytest.mark.parametrize("text", ["debian-12@sha256:d", "debian-12@", f"debian-12@{DIGEST}0"])
def test_what_is_no_digest_pins_nothing(lua: Filter, text: str) -> None:
    assert lua.submit(container=text).code == -1


@pytest.mark.parametrize(("pull", "hours"), [("always", 1), ("hourly", 2), ("daily", 48)])
def test_a_table_that_nobody_renews_pins_no_more(lua: Filter, pull: str, hours: int) -> None:
    def submit(age: float) -> Outcome:
        lua.table.write_text(
            render_table(
                config(*SITE, pull=pull),
                {"debian-12": (DIGEST,)},
                ACCOUNTS,
                clear_container=False,
                now=time.time() - age,
            )
        )
        return lua.submit(container="debian-12")

    assert submit(hours * 3600 - 900).admin_comment == f"hpcwrap={PIN}"
    assert submit(hours * 3600 + 900).admin_comment == "hpcwrap=debian-12"


def test_a_table_is_written_anew_for_what_it_says_and_before_its_digests_lapse() -> None:
    def table(age: float, digest: str = DIGEST, pull: str = "daily") -> str:
        site, found = config(*SITE, pull=pull), {"debian-12": (digest,)}
        return render_table(site, found, ACCOUNTS, clear_container=False, now=NOW - age)

    assert is_current(table(3600), table(0))
    assert not is_current(table(30 * 3600), table(0))
    assert not is_current(table(0, OLD), table(0))
    assert not is_current("", table(0))
    assert is_current(table(9e9, pull="missing"), table(0, pull="missing"))
    assert not is_current(table(0, pull="missing"), table(0))


# ---- images of the user's own ----


@pytest.mark.parametrize("text", IMAGES)
def test_an_image_is_the_sites_to_allow(lua: Filter, text: str) -> None:
    refused = lua.submit(container=text, spank_job_env=spank(text))
    assert refused.code == -1
    assert "this site allows its environments only" in refused.said
    done = lua.site(user_images=True).submit(container=text, spank_job_env=spank(text))
    assert done == Outcome(0, None, text, f"hpcwrap={text}", None, "", "")
    done = lua.submit(container=text, script="#!/bin/sh", environment={})
    assert (done.code, done.comment, done.mark) == (0, f"hpcwrap={text}", text)


@pytest.mark.parametrize(
    "text", ["/a b", "/a'b", '/a"b', "/a\nb", "/é", "/$HOME", "/a;b", "/%s", "/" + "a" * 512]
)
def test_a_text_that_no_comment_could_carry(lua: Filter, text: str) -> None:
    done = lua.site(user_images=True).submit(spank_job_env=spank(text))
    assert done.code == -1
    assert "letters, digits and ._-/:@+=,~ only, 512 at most" in done.said
    assert len(done.said) < 250


@pytest.mark.parametrize(
    ("pattern", "text", "code"),
    [
        ("docker.io/library/*", "docker://debian:12", 0),
        ("docker.io/library/*", "docker.io/debian:12", 0),
        ("docker.io/library/*", "docker://me/debian:12", DENIED),
        ("docker.io/library/debian", f"docker://debian@{DIGEST}", 0),
        ("docker.io/library/debian:12", "docker://debian:13", DENIED),
        ("docker.io/library/debian:latest", "docker://debian", 0),
        ("ghcr.io/team/**", "ghcr.io/team/a/b:1", 0),
        ("ghcr.io/team/**", "ghcrxio/team/a:1", DENIED),
        ("ghcr.io/*", "ghcr.io/team/a:1", DENIED),
        ("registry:5000/**", "registry:5000/x", 0),
        ("sif:/apps/**", "sif:/apps/x.sif", 0),
        ("sif:/apps/**", "/apps/x.sif", 0),
        ("sif:/apps/**", "/home/x.sif", DENIED),
        ("oci:/apps/a+b", "oci:/apps/a+b:name", 0),
        ("docker-daemon:docker.io/library/**", "docker-daemon:x:1", 0),
        ("docker.io/library/**", "docker-daemon:x:1", DENIED),
    ],
)
def test_patterns(lua: Filter, pattern: str, text: str, code: int) -> None:
    lua.site(user_images=True, allow_images=("nothing/like/it", pattern))
    done = lua.submit(container=text)
    assert done.code == code, done.said
    full = parse_source(text)
    if full.transport != "file":
        assert matches(full.full, [pattern]) == (code == 0), "as the prolog says"


def test_with_an_oci_conf_a_path_is_slurms_and_the_rest_is_ours(lua: Filter) -> None:
    lua.table.write_text(make_table(config(*SITE, user_images=True), clear_container=True))
    assert lua.submit(container="/bundles/one").admin_comment is None
    assert lua.submit(container="bundles/one").admin_comment is None
    done = lua.submit(container="sif:/home/alice/x.sif")
    assert (done.code, done.container) == (0, None)
    assert done.admin_comment == "hpcwrap=sif:/home/alice/x.sif"


# ---- users and groups ----


@pytest.mark.parametrize(
    ("name", "uid", "code"),
    [
        ("debian-12", BOB, 0),
        ("for-alice", ALICE, 0),
        ("for-alice", BOB, DENIED),
        ("for-research", ALICE, 0),
        ("for-research", BOB, DENIED),
        ("for-odd", BOB, 0),
        ("for-odd", ALICE, DENIED),
        ("for-directory", BOB, 0),
        ("for-ghosts", ALICE, DENIED),
        ("for-ghosts", 0, DENIED),
    ],
)
def test_who_may_use_what(lua: Filter, name: str, uid: int, code: int) -> None:
    assert lua.submit(container=name, user_id=uid).code == code


def test_refusal_names_the_group(lua: Filter) -> None:
    done = lua.submit(container="for-research", user_id=BOB, user_name="bob")
    assert done.said == (
        "hpcwrap: bob may not use the environment for-research: "
        "it is for members of the group research (ask the administrators for access)"
    )


# ---- defaults ----

DEFAULTS = {
    "slurm": {
        "partition": {"gpu": "cuda-12", "gpu2": "cuda-12", "plain": "none"},
        "account": {"physics": "debian-12"},
    }
}


@pytest.mark.parametrize(
    ("job", "container"),
    [
        ({"partition": "gpu"}, "cuda-12"),
        ({"partition": "gpu,gpu2"}, "cuda-12"),
        ({"partition": "gpu", "account": "physics"}, "cuda-12"),
        ({"partition": "main", "account": "physics"}, "debian-12"),
        ({"partition": "main", "default_account": "physics"}, "debian-12"),
        ({"partition": "main", "account": "other", "default_account": "physics"}, None),
        ({"partition": "plain", "account": "physics"}, None),
        ({"partition": "main"}, None),
        ({}, "cuda-12"),
    ],
)
def test_defaults(lua: Filter, job: Dict[str, Any], container: Optional[str]) -> None:
    partitions = {"main": {"flag_default": 0}, "gpu": {"flag_default": 1}}
    done = lua.site(defaults=DEFAULTS).submit(partitions=partitions, **job)
    assert (done.code, done.container) == (0, container)
    word = PIN if container == "debian-12" else container
    assert done.comment == (f"hpcwrap={word}" if container else None)


def test_default_gives_way_to_the_users_choice(lua: Filter) -> None:
    done = lua.site(defaults=DEFAULTS).submit(container="debian-12", partition="gpu")
    assert (done.code, done.container) == (0, "debian-12")


@pytest.mark.parametrize("partition", ["gpu,main", "main,gpu", "gpu,plain"])
def test_partitions_that_differ(lua: Filter, partition: str) -> None:
    done = lua.site(defaults=DEFAULTS).submit(partition=partition)
    assert done.code == -1
    assert "have different defaults (name one, or --container=none)" in done.said


def test_none_opts_out(lua: Filter) -> None:
    lua.site(defaults=DEFAULTS)
    done = lua.submit(container="none", partition="gpu", spank_job_env=spank("none"))
    assert (done.code, done.comment, done.admin_comment) == (0, None, None)
    done = lua.submit(container="none", partition="gpu")
    assert (done.code, done.comment) == (0, "hpcwrap=none")


def test_none_refused(lua: Filter) -> None:
    done = lua.site(allow_none=False).submit(container="none")
    assert done.code == -1
    assert "this site does not allow --container=none" in done.said


def test_bundle_is_a_way_out_of_a_default_only_where_none_is(lua: Filter) -> None:
    lua.table.write_text(make_table(config(*SITE, defaults=DEFAULTS), clear_container=True))
    done = lua.submit(container="/bundle", partition="gpu")
    assert (done.code, done.container, done.comment) == (0, "/bundle", "hpcwrap=none")
    refusing = config(*SITE, defaults=DEFAULTS, allow_none=False)
    lua.table.write_text(make_table(refusing, clear_container=True))
    assert lua.submit(container="/bundle", partition="gpu").code == -1


# ---- changes of a job ----


@pytest.mark.parametrize(
    ("new", "old", "code", "comment"),
    [
        (None, "hpcwrap=debian-12", 0, None),
        ("note", "x hpcwrap=debian-12", 0, "note hpcwrap=debian-12"),
        ("", "hpcwrap=debian-12", 0, "hpcwrap=debian-12"),
        ("note hpcwrap=debian-12", "hpcwrap=debian-12", 0, "note hpcwrap=debian-12"),
        ("hpcwrap=cuda-12", "hpcwrap=debian-12", DENIED, "hpcwrap=cuda-12"),
        ("hpcwrap=cuda-12", None, DENIED, "hpcwrap=cuda-12"),
        ("hpcwrap=none", "hpcwrap=debian-12", DENIED, "hpcwrap=none"),
        ("note", None, 0, "note"),
    ],
)
def test_comment_may_change_around_the_word(
    lua: Filter, new: Optional[str], old: Optional[str], code: int, comment: Optional[str]
) -> None:
    job = {} if new is None else {"comment": new}
    done = lua.modify(job, {} if old is None else {"comment": old})
    assert (done.code, done.comment, done.said) == (code, comment, "")


def test_container_cannot_be_changed(lua: Filter) -> None:
    assert lua.modify({"container": "cuda-12"}, {"container": "debian-12"}).code == DENIED
    assert lua.modify({"container": "debian-12"}, {"container": "debian-12"}).code == 0


# ---- slurmctld's log ----


def test_a_submission_leaves_a_line(lua: Filter) -> None:
    lua.submit(spank_job_env=spank("debian-12"))
    assert lua.noted == f"hpcwrap: stage=submit uid={ALICE} image={PIN}"
    lua.submit(container="none")
    assert lua.noted == f"hpcwrap: stage=submit uid={ALICE} image=none"
    lua.submit()
    assert lua.noted == ""


def test_a_refusal_leaves_one_that_no_user_can_forge(lua: Filter) -> None:
    done = lua.submit(container='x"\nhpcwrap stage=submit\\')
    assert done.code == -1
    line = "hpcwrap: stage=submit uid=2001 error=\"there is no environment 'x??hpcwrap stage"
    assert lua.noted.startswith(line)
    assert lua.noted.count('"') == 2
    assert lua.noted.count("\n") == lua.noted.count("\\") == 0


# ---- when something is wrong with us ----


@pytest.mark.parametrize("text", BROKEN_TABLES)
def test_broken_table_rejects(lua: Filter, text: Optional[str]) -> None:
    lua.table.unlink()
    if text is not None:
        lua.table.write_text(text)
    for job in ({}, {"container": "debian-12"}, {"spank_job_env": spank("debian-12")}):
        done = lua.submit(**job)
        assert done.code == -1
        assert done.said == (
            "hpcwrap: cannot check the job's container: tell the administrators "
            "(slurmctld's log has the reason)"
        )
        assert done.logged


def test_table_is_nothing_but_data(lua: Filter, tmp_path: pathlib.Path) -> None:
    lua.table.write_text(f'io.open("{tmp_path}/written", "w") return {{ version = 1 }}')
    assert lua.submit().code == -1
    assert not (tmp_path / "written").exists()


def test_nasty_texts_survive_the_table(lua: Filter) -> None:
    nasty = ["]]", '"', "\\", "\n", "\r", "\0", "é", "\udcff", "--", "${x}", "{{ x }}", "%d"]
    for text in nasty:
        group = f"g{text}g"
        site = config(environment("closed", groups=[group], users=[text]))
        accounts = Accounts({text: ALICE}, {group: [BOB]})
        table = render_table(site, {"closed": (text,)}, accounts, clear_container=False)
        lua.table.write_bytes(table.encode("ascii"))
        assert lua.submit(container="closed").code == 0, repr(text)
        assert lua.submit(container="closed", user_id=7).code == DENIED, repr(text)


def test_work_does_not_grow_with_the_environments(lua: Filter) -> None:
    """In instructions of Lua's machine, which are the same on every day (bench/ has the time)."""

    def steps(count: int) -> int:
        names = (environment(f"env-{number}", groups=["research"]) for number in range(count))
        lua.table.write_text(make_table(config(*names)))
        assert lua.submit(container="env-3").code == 0
        return lua.steps

    assert steps(10) == steps(10_000)

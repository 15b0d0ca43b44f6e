"""The stages' own logic, without a scheduler and without root."""

import json
import re
from pathlib import Path
from typing import Tuple

import pytest

from hpcwrap import cli, hook, log, paths, record, submit
from hpcwrap.config import DEFAULT_KEYS, Settings, load_config
from hpcwrap.errors import NodeError, SiteError, UserError
from hpcwrap.job import Job, User, find_user
from hpcwrap.request import Request
from hpcwrap.schedulers import default_container
from hpcwrap.verbs.pull import reference_of

ALICE = User("alice", 2001, 2001, (2001,), "/home/alice")
JOB = Job("7", "slurm", ALICE, "/", "n1", places=(("account", "chem"), ("partition", "gpu")))


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Settings with a default, and two environments."""
    file = tmp_path / "hpcwrap.yaml"
    file.write_text("defaults: {slurm: {partition: {gpu: cuda}}}\nallow_none: false\n")
    (tmp_path / "environments.d").mkdir()
    (tmp_path / "environments.d" / "cuda.yaml").write_text("image: cuda:12\n")
    (tmp_path / "environments.d" / "bobs.yaml").write_text("image: b\nusers: [bob]\n")
    return str(file)


@pytest.fixture(autouse=True)
def own_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "SNAPSHOTS", str(tmp_path / "snapshots"))


def test_the_partitions_default_is_chosen(config: str) -> None:
    choice = submit.choose(JOB, Request(None, ""), config)
    assert choice is not None
    assert (choice.environment.name, choice.origin) == ("cuda", "the default of the partition gpu")


@pytest.mark.parametrize(("scheduler", "kinds"), list(DEFAULT_KEYS.items()))
def test_the_default_of_an_earlier_kind_goes_first(scheduler: str, kinds: Tuple[str, ...]) -> None:
    places = tuple((kind, f"{kind}-1") for kind in reversed(kinds))
    job = JOB._replace(scheduler=scheduler, places=places)
    defaults = {scheduler: {kind: {f"{kind}-1": f"of-{kind}"} for kind in kinds}}
    found = default_container(Settings(defaults=defaults), job)
    assert found == Request(f"of-{kinds[0]}", f"the default of the {kinds[0]} {kinds[0]}-1")
    defaults[scheduler][kinds[0]] = {f"{kinds[0]}-1": "none"}
    assert default_container(Settings(defaults=defaults), job) is None
    del defaults[scheduler][kinds[0]]
    later = default_container(Settings(defaults=defaults), job)
    assert (later and later.container) == (f"of-{kinds[1]}" if len(kinds) > 1 else None)


def test_no_default_is_no_container(config: str) -> None:
    assert (
        submit.choose(JOB._replace(places=(("partition", "cpu"),)), Request(None, ""), config)
        is None
    )


def test_what_the_job_says_goes_before_the_default(config: str) -> None:
    with pytest.raises(UserError, match="alice may not use the environment bobs"):
        submit.choose(JOB, Request("bobs", "--container"), config)


def test_an_unknown_name_offers_the_nearest(config: str) -> None:
    with pytest.raises(UserError) as raised:
        submit.choose(JOB, Request("cdua", "--container"), config)
    assert "cuda" in raised.value.sentence()


def test_opting_out_is_the_sites_to_allow(config: str) -> None:
    with pytest.raises(UserError, match="cannot run without a container"):
        submit.choose(JOB, Request("none", "--container"), config)
    submit.refuse_none(Request("none", "--container"), Settings(allow_none=True))


def test_a_pin_goes_with_the_choice(config: str) -> None:
    pin = "sha256:" + "0" * 64
    choice = submit.choose(JOB, Request("cuda", "--container", pin), config)
    assert choice is not None
    assert (choice.environment.name, choice.pin, choice.named_by_user) == ("cuda", pin, False)


def test_an_image_of_the_users_is_the_sites_to_allow(config: str) -> None:
    request = Request("docker://debian:12", "--container")
    with pytest.raises(UserError, match="this site allows its environments only"):
        submit.choose(JOB, request, config)
    drop_in = Path(config).parent / "conf.d" / "own.yaml"
    drop_in.parent.mkdir()
    drop_in.write_text("user_images: true\nallow_images: ['docker.io/library/*']\n")
    choice = submit.choose(JOB, request, config)
    assert choice is not None
    assert choice.named_by_user
    assert choice.environment.name == choice.environment.image == "docker://debian:12"
    assert choice.environment.variables == choice.environment.mounts == ()
    for text in ("docker://me/debian:12", "/home/alice/x.sif", "sif:/home/alice/x.sif"):
        with pytest.raises(UserError, match="this site does not allow it"):
            submit.choose(JOB, Request(text, "--container"), config)
    with pytest.raises(UserError, match="letters, digits"):
        submit.choose(JOB, Request("/a b", "the job's comment"), config)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A", "a/b", "-x", "x" * 70])
def test_names_that_are_none_are_no_paths(config: str, name: str) -> None:
    with pytest.raises(UserError):
        submit.choose(JOB, Request(name, "--container"), config)


def test_a_mistyped_environment_is_pulled_as_a_reference_and_said_to_be(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_config(config)
    assert reference_of(loaded, "cuda") == "cuda:12"
    assert reference_of(loaded, "registry:5000/debian:12") == "registry:5000/debian:12"
    assert capsys.readouterr().err == ""
    assert reference_of(loaded, "cudaa") == "cudaa"
    assert "there is no environment cudaa (did you mean cuda?)" in capsys.readouterr().err


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    place = paths.JobPaths("7", str(tmp_path))
    Path(place.directory).mkdir()
    made = record.Record(
        *("7", "slurm", "n1", "alice", "cuda", "--container", "cuda:12", "sha256:0"),
        started=1.5,
        milliseconds={"prolog": 12.5},
        stores=("/store", "/cache"),
        warning="not refreshed",
    )
    record.write_record(place, made)
    assert record.read_record(place) == made
    assert made.label == "cuda@sha256:0"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 9}', '{"version": 1, "job": "7"}'])
def test_a_broken_record_is_an_error_of_the_site(tmp_path: Path, text: str) -> None:
    place = paths.JobPaths("7", str(tmp_path))
    Path(place.directory).mkdir()
    Path(place.record).write_text(text)
    with pytest.raises(SiteError, match="cannot read the record"):
        record.read_record(place)


def test_an_error_takes_the_place_of_the_entry(tmp_path: Path) -> None:
    place = paths.JobPaths("7", str(tmp_path))
    Path(place.directory).mkdir()
    Path(place.entry).write_text("entry")
    record.write_error(place, "the image is gone")
    assert sorted(path.name for path in Path(place.directory).iterdir()) == ["error"]
    record.remove(place)
    record.remove(place)
    assert not Path(place.directory).exists()


def test_an_error_that_cannot_be_left_is_the_nodes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NodeError):
        record.write_error(paths.JobPaths("7", str(tmp_path / "file")), "x")


def test_odd_lines_of_joins_are_left_out(tmp_path: Path) -> None:
    place = paths.JobPaths("7", str(tmp_path))
    Path(place.directory).mkdir()
    Path(place.timing).write_text("join 0 12\njoin 1\nnonsense\njoin 3 x\njoin 2 9\n")
    assert record.read_timing(place) == [{"rank": "0", "us": 12}, {"rank": "2", "us": 9}]


def test_an_account_that_is_not_there() -> None:
    with pytest.raises(UserError, match="cannot find the user nobody-at-all"):
        find_user("nobody-at-all")


def test_times_of_a_job_are_told_by_node_and_rank(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "jobs.jsonl"
    Path(config).write_text(f"log: {path}\n")
    summary = {
        "job": "7",
        "user": "alice",
        "node": "n1",
        "started": 1.0,
        "environment": "cuda",
        "reference": "cuda:12",
        "digest": "sha256:0",
        "milliseconds": {"wait": 3.0, "prolog": 12.0, "epilog": 1.0},
        "joins": [{"rank": "0", "us": 10}, {"rank": "0", "us": 30}, {"rank": "10", "us": 7}],
    }
    other = {**summary, "job": "77"}
    path.write_text("\n".join(json.dumps(each) for each in (other, summary)) + "\nbroken\n")
    assert cli.run(["--config", config, "show", "timing", "7"]) == 0
    shown = capsys.readouterr().out
    for words in ("wait", "prolog", "join, rank 0 (of 2 steps)", "0.020", "rank 10", "epilog"):
        assert words in shown
    assert cli.run(["--config", config, "show", "timing", "8"]) == 2
    assert "cannot find job 8" in capsys.readouterr().err


def test_one_line_for_syslog() -> None:
    line = log.format_fields("prolog", {"job": "7", "ms": 12.34, "error": 'no "x"\nhere', "e": ""})
    assert line == 'stage=prolog job=7 ms=12.34 error="no \\"x\\"\\nhere" e=""'


@pytest.mark.parametrize(
    "text", ["a b", "a=b", 'a"b', "a\\b", "a\nstage=x job=1", "\x1b[2J", "é\udcff"]
)
def test_no_value_ends_itself_or_the_line(text: str) -> None:
    line = log.format_fields("prolog", {"image": text, "ms": 1.0})
    found = re.fullmatch(r'stage=prolog image=(".*") ms=1\.00', line)
    assert found
    assert json.loads(found.group(1)) == text
    assert line.isprintable()
    assert line.isascii()


def test_a_long_value_is_cut() -> None:
    line = log.format_fields("prolog", {"error": "x" * 5000, "ms": 1.0})
    assert line == f"stage=prolog error={'x' * 1024}... ms=1.00"


def test_an_error_is_one_sentence() -> None:
    error = UserError("cannot  do\nit", "try again")
    assert error.sentence() == "cannot do it (try again)"
    assert (UserError.exit_code, SiteError.exit_code, NodeError.exit_code) == (2, 3, 4)


@pytest.mark.parametrize("verb", [verb.name for verb in cli.VERBS])
def test_every_verb_teaches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main([verb, "--help"])
    assert raised.value.code == 0
    assert f"usage: hpcwrap {verb}" in capsys.readouterr().out


def test_a_hook_ends_with_its_stages_code(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr("hpcwrap.epilog.main", lambda scheduler: 3 if scheduler == "slurm" else 0)
    monkeypatch.setattr("gc.disable", lambda: None)
    hook.main("epilog", "slurm")
    assert ended == [3]

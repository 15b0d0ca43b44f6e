"""Images that users name themselves, where the site allows it."""

from __future__ import annotations

import re
from typing import Iterator

import pytest
from site_tools import Site
from variants import REGISTRY, STORE, push

pytestmark = pytest.mark.slurm

SCRIPT = "#!/bin/sh\necho $HPCWRAP_CONTAINER version=$VERSION\nsrun sh -c 'echo step $VERSION'\n"
FILE = "/home/alice/my.sqsh"
DROP_IN = "user-images"


def renew_table(site: Site) -> None:
    site.need("cluster", "exec", "ctl", "hpcwrap", "setup", "slurm", "--table")


def configure(site: Site, text: str) -> None:
    site.add_settings(DROP_IN, text)
    renew_table(site)


@pytest.fixture(name="allowed")
def make_allowed(site: Site) -> Iterator[str]:
    """A site that allows them, and the digest of an image with VERSION=3 in its registry."""
    digest = push(site, "mine:1", "3")
    configure(site, "user_images: true\n")
    yield digest
    site.remove_settings(DROP_IN)
    renew_table(site)


def make_file(site: Site, version: str, path: str = FILE) -> None:
    """A squashfs of alice's with a file that says which version it is."""
    tiny = site.need("cluster", "exec", "ctl", "hpcwrap", "images", "--json")
    found = re.search(rf'"{STORE}/images/\w+.sqsh"', tiny)
    assert found
    script = (
        f"set -e; cd /home/alice; rm -rf tree {path}; "
        f"unsquashfs -q -n -d tree {found.group()} >/dev/null; echo {version} >tree/version; "
        f"mksquashfs tree {path} -quiet -no-progress; rm -rf tree; "
        f"chown alice: {path}; chmod 600 {path}"
    )
    site.need("cluster", "exec", "ctl", "sh", "-c", script)


def test_off_by_default_and_said_so(site: Site) -> None:
    for text in (f"docker://{REGISTRY}/busybox-1", FILE, f"sif:{FILE}"):
        job = site.batch(SCRIPT, f"--container={text}")
        assert job.id == ""
        said = [line for line in job.stderr.splitlines() if "hpcwrap:" in line]
        assert len(said) == 1
        assert f"cannot use --container={text}: it is a path or an image" in said[0]


@pytest.mark.parametrize("text", [f"{REGISTRY}/mine:1", f"docker://{REGISTRY}/mine:1"])
def test_an_image_of_a_registry(site: Site, allowed: str, text: str) -> None:
    job = site.batch(f"#!/bin/sh\n#SBATCH --container={text}\n#SBATCH -N2\n" + SCRIPT)
    assert job.code == 0, job.output
    assert job.output == f"{text}@{allowed} version=3\n" + "step 3\n" * 2
    ran = site.alice("srun", f"--container={text}", "sh", "-c", "echo $VERSION")
    assert ran.stdout == "3\n"


def test_a_variable_names_an_image(site: Site, allowed: str) -> None:
    named = f"SBATCH_CONTAINER={REGISTRY}/mine:1"
    site.alice("env", named, "sbatch", "--wait", "--output=out-variable", stdin=SCRIPT)
    assert site.alice("cat", "out-variable").stdout.endswith("version=3\nstep 3\n")


def test_a_digest_of_a_registry(site: Site, allowed: str) -> None:
    job = site.batch(SCRIPT, f"--container={REGISTRY}/mine@{allowed}")
    assert job.output.endswith("version=3\nstep 3\n")


def test_a_client_without_the_plugin(site: Site, allowed: str) -> None:
    """The comment carries it, as from slurmrestd."""
    text = f"{REGISTRY}/mine:1"
    job = site.batch(SCRIPT, f"--comment=hpcwrap={text}")
    assert job.output == f"{text}@{allowed} version=3\nstep 3\n"


def test_a_file_is_converted_once_and_again_when_it_changes(site: Site, allowed: str) -> None:
    make_file(site, "one")
    script = "#!/bin/sh\necho $HPCWRAP_CONTAINER $(cat /version)\n"
    first = site.batch(script, f"--container={FILE}")
    assert re.fullmatch(rf"{FILE}@sha256:\w+ one\n", first.output)
    log = site.root("ctl", "hpcwrap", "show", "timing", first.id).stdout
    assert "convert" in log
    again = site.batch(script, f"--container={FILE}")
    assert again.output == first.output
    assert "convert" not in site.root("ctl", "hpcwrap", "show", "timing", again.id).stdout
    make_file(site, "two")
    assert site.batch(script, f"--container={FILE}").output.endswith(" two\n")


def test_a_file_is_its_users_alone(site: Site, allowed: str) -> None:
    make_file(site, "private")
    assert site.batch("#!/bin/sh\ncat /version\n", f"--container={FILE}").output == "private\n"
    modes = site.need("cluster", "exec", "ctl", "sh", "-c", f"stat -c %a {STORE}/images/*.sqsh")
    assert "400" in modes.split()
    ran = site.bob("srun", f"--container={FILE}", "cat", "/version")
    assert ran.code != 0
    assert "has no permission" in ran.stderr
    site.need("cluster", "exec", "ctl", "chmod", "755", "/home/alice")
    site.need("cluster", "exec", "ctl", "chmod", "644", FILE)
    ran = site.bob("srun", f"--container={FILE}", "cat", "/version")
    site.need("cluster", "exec", "ctl", "chmod", "700", "/home/alice")
    assert ran.stdout == "private\n"


def test_a_file_that_is_no_image(site: Site, allowed: str) -> None:
    site.alice("sh", "-c", "echo text >notes")
    job = site.batch(SCRIPT, "--container=/home/alice/notes")
    assert job.code != 0
    assert "hpcwrap: cannot use the image /home/alice/notes" in job.output


def test_the_sites_patterns(site: Site, allowed: str) -> None:
    configure(site, f"user_images: true\nallow_images: ['{REGISTRY}/mi*']\n")
    job = site.batch(SCRIPT, f"--container={REGISTRY}/mine:1")
    assert job.output.endswith("version=3\nstep 3\n")
    for text in (f"{REGISTRY}/other:1", FILE):
        job = site.batch(SCRIPT, f"--container={text}")
        assert job.id == ""
        assert f"cannot use the image {text}: this site does not allow it" in job.stderr


def test_a_text_with_quotes_or_spaces(site: Site, allowed: str) -> None:
    for text in ("/home/alice/a b", "/home/alice/a'b", "/home/alice/$HOME", "/" + "x" * 600):
        job = site.batch(SCRIPT, f"--container={text}")
        assert job.id == ""
        assert "letters, digits and ._-/:@+=,~ only" in job.stderr


def test_the_prolog_asks_again(site: Site, allowed: str) -> None:
    """The filter's table is older than the settings."""
    site.add_settings(DROP_IN, "user_images: false\n")
    job = site.batch(SCRIPT, f"--container={REGISTRY}/mine:1")
    assert job.code != 0
    assert "this site allows its environments only" in job.output


def test_steps_share_the_jobs_image_or_have_another(site: Site, allowed: str) -> None:
    text = f"{REGISTRY}/mine:1"
    look = f"srun --container={text} sh -c 'echo mine $VERSION'\n"
    other = "srun --container=busybox-1 sh -c 'echo other ${HPCWRAP_CONTAINER%%@*}'\n"
    for own in (text, "busybox-1"):
        job = site.batch(f"#!/bin/sh\n{look}{other}", f"--container={own}")
        assert job.output == "mine 3\nother busybox-1\n"


def test_where_slurm_runs_bundles_a_bare_path_is_one(site: Site, allowed: str) -> None:
    site.need("cluster", "exec", "ctl", "touch", "/etc/slurm/oci.conf")
    try:
        renew_table(site)
        held = site.submit(SCRIPT, "--hold", "--container=/home/alice/bundle").stdout.strip()
        shown = site.job(held)
        site.alice("scancel", held)
        job = site.batch(SCRIPT, f"--container=docker://{REGISTRY}/mine:1")
    finally:
        site.need("cluster", "exec", "ctl", "rm", "/etc/slurm/oci.conf")
        renew_table(site)
    assert "Container=/home/alice/bundle" in shown
    assert "hpcwrap" not in shown
    assert job.output.endswith("version=3\nstep 3\n")

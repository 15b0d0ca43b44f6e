"""Heterogeneous jobs: each component has the container that it asked for, or none.

Slurm starts components on nodes of their own: two nodes, so two components.
"""

import re

import pytest
from site_tools import RELEASE, Site

pytestmark = pytest.mark.slurm

# Before 24.05.4, srun of two components may hang under PMIx, without hpcwrap as well: it joins a
# thread of its own that nobody ends (SchedMD's ticket 16817, docs/decisions/0142).
MPI = "export SLURM_MPI_TYPE=none\n" if RELEASE == "22.05" else ""
WHERE = "echo $SLURM_PROCID in ${HPCWRAP_CONTAINER%%@*}."
ASK = f"/bin/sh -c '{WHERE}'"
OTHERS = "0 in debian-12.", "1 in busybox-1."
FIRST = "0 in debian-12.", "1 in ."
BOTH = "0 in debian-12.", "1 in debian-12."
SECOND = "0 in .", "1 in busybox-1."
STEPS = f"""\
{MPI}echo script in ${{HPCWRAP_CONTAINER%%@*}}.
srun --het-group=0,1 {ASK}
for n in 0 1; do srun --het-group=$n {ASK} | sed "s/^/group $n: /"; done
"""


def places(text: str) -> "tuple[str, ...]":
    """What the ranks printed, by rank."""
    return tuple(sorted(line for line in text.splitlines() if re.match(r"\d+ in ", line)))


@pytest.mark.parametrize("expected", [OTHERS, FIRST, SECOND])
def test_components_of_a_batch_job(site: Site, expected: "tuple[str, str]") -> None:
    names = (line[5:-1] for line in expected)
    first, second = (f"#SBATCH -n1 --container={name or 'none'}\n" for name in names)
    job = site.batch(f"#!/bin/bash\n{first}#SBATCH hetjob\n{second}{STEPS}")
    assert f"script{expected[0][1:]}\n" in job.output
    assert places(job.output) == expected
    for number, line in enumerate(expected):
        assert f"group {number}: 0{line[1:]}\n" in job.output


def test_components_on_the_command_line(site: Site) -> None:
    first, second = "-n1 --container=debian-12", "-n1 --container=busybox-1"
    for words, expected in (
        (f"srun {first} {ASK} : {second} {ASK}", OTHERS),
        (f"srun {first} {ASK} : -n1 --container=none {ASK}", FIRST),
        (f"srun {first} {ASK} : -n1 {ASK}", BOTH),
        (f"srun -n1 {ASK} : {second} {ASK}", SECOND),
        (f"salloc -Q {first} : {second} srun --het-group=0,1 {ASK}", OTHERS),
        (f"salloc -Q -n1 : {second} srun --het-group=0,1 {ASK}", SECOND),
        (f"salloc -Q {first} : -n1 srun --het-group=0,1 {ASK}", BOTH),
    ):
        assert places(site.alice("bash", "-c", MPI + words).stdout) == expected, words


def test_a_step_of_a_component_repeats_its_container_or_has_another(site: Site) -> None:
    job = site.batch(
        "#!/bin/bash\n#SBATCH -n1 --container=debian-12\n#SBATCH hetjob\n"
        "#SBATCH -n1 --container=busybox-1\n"
        f"srun --het-group=1 --container=busybox-1 {ASK}\n"
        f"srun --het-group=1 --container=debian-12 {ASK}\n"
        "srun --het-group=0 --container=debian-12 echo WRONG "
        ": --het-group=1 --container=busybox-1 echo WRONG; echo code $?\n"
    )
    assert places(job.output) == ("0 in busybox-1.", "0 in debian-12.")
    assert "WRONG" not in job.output
    assert job.output.splitlines().count("code 1") == 1
    assert "cannot name a container for each component of a step" in job.output


def test_a_job_from_within_is_no_component(site: Site) -> None:
    """A step of a component may lack a record, for others ask: only the prolog knows of whom."""
    script = "#!/bin/sh\necho ${SLURM_HET_SIZE:-alone}\n"
    words = ("env", "SLURM_HET_SIZE=2", "sbatch", "--container=busybox-1", "--wait", "-owithin")
    assert site.alice(*words, stdin=script).code == 0
    assert site.alice("cat", "within").stdout == "alone\n"

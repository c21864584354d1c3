"""The same conformance and the same faults over gloo and MPI, in processes, and across two network namespaces.

A team of processes does all its jobs, one after another: that each of them ends well shows that the process, the
library below and its groups are usable after every fault before it.
"""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import faults
import teams

sys.path.pop(0)
pytestmark = [
    pytest.mark.peer,
    pytest.mark.timeout(120),
    pytest.mark.skipif("SPARSESPAN_SANITIZED" in os.environ, reason="peers are not built with sanitizers"),
]
needs_torch = pytest.mark.skipif(not teams.HAS_TORCH, reason="torch is not installed")
needs_mpi = pytest.mark.skipif(
    not teams.HAS_MPI, reason="mpi4py or mpirun is not installed: pip install mpi4py mpich, .venv/bin on PATH"
)
SLACK = 4.0  # seconds: four processes on two busy cores

GLOO = [f for f in faults.of("gloo")]
MPI = [f for f in faults.of("mpi")]


def ended_well(team, job, size):
    ends = team.jobs.get(job, [])
    assert [end["rank"] for end in ends] == list(range(size)), team.errors
    assert [end["word"] for end in ends] == ["done"] * size, team.errors


def judged(team, fault, size):
    ends = team.jobs.get(fault.name, [])
    assert [end["rank"] for end in ends] == list(range(size)), team.errors
    faults.judge(fault, ends, SLACK)


@pytest.fixture(scope="module")
def gloo():
    return teams.gloo(4, ["conform", "conform2", "ducks", *[f.name for f in GLOO], "killed"])


@needs_torch
@pytest.mark.parametrize(("job", "size"), [("conform", 4), ("conform2", 2), ("ducks", 4)])
def test_gloo_conforms(gloo, job, size):
    ended_well(gloo, job, size)


@needs_torch
@pytest.mark.parametrize("fault", GLOO, ids=lambda f: f.name)
def test_gloo_faults(gloo, fault):
    judged(gloo, fault, 4)


@needs_torch
def test_gloo_names_who_is_late(gloo):
    # Who skips or leaves may be gone, connections closed, before anybody's time is up: that ends the others at once.
    for name in ("skips", "leaves", "slow"):
        late = [end for end in gloo.jobs[name] if end["word"] == "CommTimeout"]
        assert late or name != "slow", gloo.jobs[name]
        assert all(end["named"] == [faults.CULPRIT] for end in late), late


@needs_torch
def test_gloo_kill(gloo):
    """The others end in words, and then as processes should, although transfers never ended."""
    ends = gloo.jobs["killed"]
    assert [end["rank"] for end in ends] == [0, 2, 3], gloo.errors
    faults.judge(faults.BY_NAME["killed"], ends, SLACK)
    assert gloo.codes == [0, -9, 0, 0], gloo.errors


@pytest.fixture(scope="module")
def mpi():
    return teams.mpi(4, ["conform", "ducks", *[f.name for f in MPI]])


@needs_mpi
@pytest.mark.parametrize("job", ["conform", "ducks"])
def test_mpi_conforms(mpi, job):
    ended_well(mpi, job, 4)


@needs_mpi
@pytest.mark.parametrize("fault", MPI, ids=lambda f: f.name)
def test_mpi_faults(mpi, fault):
    judged(mpi, fault, 4)


@needs_mpi
def test_mpi_finalises_after_all_that(mpi):
    assert mpi.codes == [0], mpi.errors


@needs_mpi
def test_mpi_two_ranks_and_a_kill_ends_the_program():
    team = teams.mpi(2, ["conform", "killed"], timeout=60)
    ended_well(team, "conform", 2)
    assert team.codes[0] not in (0, None)


@pytest.fixture(scope="module")
def namespaces():
    try:
        with teams.two_namespaces() as names:
            yield teams.gloo_across(names, ["conform", "raises", "slow", "cable_cut"])
    except teams.NotPermittedError as reason:
        pytest.skip(f"no network namespaces: {reason}")


@needs_torch
def test_gloo_conforms_across_namespaces(namespaces):
    ended_well(namespaces, "conform", 2)


@needs_torch
@pytest.mark.parametrize("name", ["raises", "slow", "cable_cut"])
def test_gloo_faults_across_namespaces(namespaces, name):
    judged(namespaces, faults.BY_NAME[name], 2)

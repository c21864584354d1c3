"""Groups of processes that run jobs of comm_worker: gloo, MPI, and gloo across two network namespaces."""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WORKER = str(Path(__file__).with_name("comm_worker.py"))
BIN = Path(sys.executable).parent
MPIRUN = shutil.which("mpirun", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_MPI = importlib.util.find_spec("mpi4py") is not None and MPIRUN is not None
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


class Ended:
    """What a team printed: {job: [end of each rank that printed one]}, exit codes, and its complaints."""

    def __init__(self, outputs, codes, errors):
        self.jobs, self.codes, self.errors = {}, codes, errors
        for line in "".join(outputs).splitlines():
            if line.startswith("{"):
                end = json.loads(line)
                self.jobs.setdefault(end["fault"], []).append(end)
        for ends in self.jobs.values():
            ends.sort(key=lambda end: end["rank"])


def _start(command, env):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def _collect(team, timeout):
    try:
        ends = [p.communicate(timeout=timeout) for p in team]
    finally:
        for p in team:
            p.kill()
    return Ended([out for out, _ in ends], [p.returncode for p in team], "".join(err for _, err in ends)[-6000:])


def gloo(size, jobs, timeout=100):
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, WORKER, "gloo", ",".join(jobs), f"file://{folder}/meet"]
        return _collect([_start([*command, str(r), str(size)], ENV) for r in range(size)], timeout)


def mpi(size, jobs, timeout=100):
    return _collect([_start([MPIRUN, "-n", str(size), sys.executable, WORKER, "mpi", ",".join(jobs)], ENV)], timeout)


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class NotPermittedError(Exception):
    """Network namespaces cannot be made here; says why."""


@contextlib.contextmanager
def two_namespaces():
    """Two network namespaces with a cable between them: their names; the end in namespace i is called cable{i}."""
    if os.geteuid() != 0:
        raise NotPermittedError("not root")
    if shutil.which("ip") is None:
        raise NotPermittedError("the command ip is missing (Debian package iproute2)")
    names = [f"sparsespan-{os.getpid()}-{i}" for i in range(2)]
    try:
        try:
            for name in names:
                _ip("netns", "add", name)
            ends = [("cable0", "netns", names[0]), ("peer", "name", "cable1", "netns", names[1])]
            _ip("link", "add", *ends[0], "type", "veth", *ends[1])
            for i, name in enumerate(names):
                _ip("-n", name, "addr", "add", f"10.99.0.{i + 1}/24", "dev", f"cable{i}")
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "link", "set", f"cable{i}", "up")
        except subprocess.CalledProcessError as error:
            raise NotPermittedError(error.stderr.strip()) from error
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def gloo_across(names, jobs, timeout=100):
    team = []
    for i, name in enumerate(names):
        command = ["ip", "netns", "exec", name, sys.executable, WORKER, "gloo", ",".join(jobs)]
        env = {**ENV, "GLOO_SOCKET_IFNAME": f"cable{i}"}
        team.append(_start([*command, "tcp://10.99.0.1:29517", str(i), "2"], env))
    return _collect(team, timeout)

"""Pipelines: what simulate says against what ran, and what a busy receiver costs a static parallel loop.

`run_pipeline`: two stages, each a rank of one thread, run DSA layers over the chunks of one prompt. The peer of the
first row is `simulate`, fed with the chunk costs of that same trace: the ratio, modelled / measured makespan, should be
within 15 % of 1 on a quiet and on a busy machine. The peer of the second is the same prompt on one rank of one thread:
the ratio is the speed-up, which the chunks bound at sum / makespan of the model (`bound`). `over MPI`: the first row
with two processes.

`static loop`: an OpenMP loop with schedule(static) while another thread polls. Ours has as many threads as
`threads_for_compute(reserve=1)` says, the peer as many as there are cores; medians of rounds with the same work, in
turns. `tail` is the same ratio at the 99th percentile, `polls` how much more often the receiver gets to look,
`undisturbed` the loop's ratio without a receiver (with nothing else to do below 1: the price of the reserved core).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from session import SESSION

from sparsespan import models, num_threads
from sparsespan.comm import run_ranks
from sparsespan.pipeline import (
    Costs,
    Stage,
    StageProgram,
    chunked_prefill,
    run_pipeline,
    simulate,
    threads_for_compute,
)

WIDTH, PAGE = 512, 64


def forward(layers: list[models.DsaLayer]):
    def step(x):
        indices = None
        for layer in layers:
            with x.layer(layer.index):
                x.hidden, indices = layer.prefill(x.hidden, x.plan, x.state, x.comm, indices=indices)
        return x.hidden

    return step


def rank(comm, pp: int, count: int, chunks: list[int]):
    """The trace of a run, on each of its ranks."""
    dims = models.layer_dims("v3.2", hidden=WIDTH, heads=16, q_lora=256, index_heads=16, topk=256)
    rows = np.random.default_rng(0).standard_normal((sum(chunks), WIDTH)).astype(np.float32)
    pages = -(-sum(chunks) // PAGE)
    stage = Stage(comm, pp=pp)
    mine = range(stage.index * count // pp, (stage.index + 1) * count // pp)
    layers = [models.dsa_layer(dims, index=i, dtype="float32") for i in mine]

    def caches():
        return models.PagedCaches(mine, pages, PAGE, "f32_576", "index_f32", block_table=[list(range(pages))])

    program = StageProgram(forward(layers), WIDTH, "float32", state=caches)
    return run_pipeline(stage, program, chunked_prefill(pp, chunks), {0: rows}, collect=None, trace=True).trace


def prefill(pp: int, count: int, chunks: list[int]):
    return run_ranks(pp, lambda comm: rank(comm, pp, count, chunks), threads_per_rank=1)[0]


def modelled(trace, chunks: list[int]) -> float:
    return simulate(chunked_prefill(2, chunks), Costs.from_trace(trace)).makespan


def mpi_rows(shape: str, chunks: list[int], turns: int):
    """The same in two processes; this file is their program."""
    launcher = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if launcher is None or importlib.util.find_spec("mpi4py") is None:
        SESSION.note("run_pipeline over MPI: no mpirun or mpi4py here, skipped")
        return
    words = [launcher, "-n", "2", sys.executable, "-m", "mpi4py", __file__, str(turns), *map(str, chunks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    measured, model, overlap = zip(*(map(float, line.split()) for line in run.stdout.splitlines()))
    yield {
        "op": "run_pipeline over MPI",
        "shape": shape,
        "ours_ms": statistics.median(measured) * 1e3,
        "peer": "simulate(costs of the trace)",
        "peer_ms": statistics.median(model) * 1e3,
        "ratio": statistics.median(s / m for s, m in zip(model, measured)),
        "overlap": statistics.median(o / m for o, m in zip(overlap, measured)),
    }


def pipeline_rows(quick: bool):
    chunks = [128, 128, 96, 64] if quick else [256, 192, 160, 128, 128, 96]
    prefill(2, 2, chunks[:2])
    measured, model, alone, overlap, bound = [], [], [], [], []
    for _ in range(3 if quick else 7):
        trace = prefill(2, 2, chunks)
        measured.append(trace.makespan)
        model.append(modelled(trace, chunks))
        bound.append(sum(Costs.from_trace(trace).measured.values()) / model[-1])
        overlap.append(trace.overlap() / trace.makespan)
        alone.append(prefill(1, 2, chunks).makespan)
    shared = {
        "op": "run_pipeline",
        "shape": f"PP2, DSA layers, {len(chunks)} chunks of {sum(chunks)}",
        "ours_ms": statistics.median(measured) * 1e3,
    }
    yield {
        **shared,
        "peer": "simulate(costs of the trace)",
        "peer_ms": statistics.median(model) * 1e3,
        "ratio": statistics.median(s / m for s, m in zip(model, measured)),
        "overlap": statistics.median(overlap),
    }
    yield {
        **shared,
        "peer": "one rank, one thread",
        "peer_ms": statistics.median(alone) * 1e3,
        "ratio": statistics.median(a / m for a, m in zip(alone, measured)),
        "bound": statistics.median(bound),
    }
    yield from mpi_rows(shared["shape"], chunks, 3 if quick else 7)


def receiver_rows(quick: bool):
    compiler = shutil.which("g++")
    if compiler is None:
        SESSION.note("static loop: no g++ here, skipped")
        return
    everyone, reserved = num_threads(), threads_for_compute(reserve=1)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "static_loop"
        source = Path(__file__).parent / "native" / "static_loop.cpp"
        subprocess.run([compiler, "-O2", "-fopenmp", str(source), "-o", str(program)], check=True)

        def turn(workers: int, receivers: int) -> list[float]:
            words = [str(program), str(workers), str(receivers), "10" if quick else "30"]
            return [float(w) for w in subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()]

        turns = [{(w, r): turn(w, r) for w in (everyone, reserved) for r in (1, 0)} for _ in range(3 if quick else 7)]

    def ratio(column: int, receivers: int, upside_down: bool = False) -> float:
        a, b = (reserved, everyone) if upside_down else (everyone, reserved)
        return statistics.median(t[a, receivers][column] / t[b, receivers][column] for t in turns)

    yield {
        "op": "static loop",
        "shape": "a receiver polls",
        "ours_ms": statistics.median(t[reserved, 1][0] for t in turns) * 1e-3,
        "peer": f"{everyone} threads (ours: {reserved})",
        "peer_ms": statistics.median(t[everyone, 1][0] for t in turns) * 1e-3,
        "ratio": ratio(0, 1),
        "tail": ratio(2, 1),
        "polls": ratio(3, 1, upside_down=True),
        "undisturbed": ratio(0, 0),
    }


def rows(quick: bool):
    yield from pipeline_rows(quick)
    yield from receiver_rows(quick)


def main() -> None:
    from mpi4py import MPI

    turns, *chunks = map(int, sys.argv[1:])
    for turn in range(turns + 1):
        trace = rank(MPI.COMM_WORLD, 2, 2, chunks)
        if turn > 0 and MPI.COMM_WORLD.rank == 0:  # the first one wakes everything
            sys.stdout.write(f"{trace.makespan} {modelled(trace, chunks)} {trace.overlap()}\n")


if __name__ == "__main__":
    main()

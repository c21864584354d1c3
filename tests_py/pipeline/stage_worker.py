"""One process of `mpirun -n 4`: PP2 x CP2 over MPI, compared with one rank; prints one word."""

import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parent))
import stage_dsa as dsa
import stage_model as model

from sparsespan.comm import as_comm
from sparsespan.pipeline import LayerShard, Stage, Trace, chunked_prefill, decode_loop, dummy_run, run_pipeline


def check(layer, weights):
    assert float(weights["o_proj"][0]) == layer


def dsa_layers(stage, form):
    splits = [3, len(form.kinds) - 3]  # layer 3 begins stage 1 and shares the indices of a layer of stage 0
    program, schedule = dsa.program(splits, stage, form=form), chunked_prefill(2, dsa.CHUNKS)
    run = run_pipeline(stage, program, schedule, {0: dsa.TOKENS}, collect="all", **dsa.options(splits, form))
    if stage.last:
        assert np.concatenate([run.rows[mb] for mb in range(4)]).tobytes() == dsa.plain(form).tobytes()


def main():
    comm = as_comm(MPI.COMM_WORLD)
    comm.timeout = 40
    stage = Stage(comm, pp=2, cp=2)
    stage.comm.timeout = 40
    splits, chunks = [3, 2], [16, 12, 8, 5]
    tokens = np.random.default_rng(5).integers(0, 97, sum(chunks))
    layers = model.layers_of(splits, stage.index)
    shard = LayerShard({"o_proj": {i: np.full(4, i, np.float32) for i in layers}}, stage.comm, len(layers) - 2)
    for more in ({}, {"shard": shard, "shard_check": check}):
        program = model.program(splits, **more)
        schedule = chunked_prefill(2, chunks)
        predicted = dummy_run(stage, program, schedule)
        run = run_pipeline(stage, program, schedule, {0: tokens}, collect="all", trace=True)
        assert run.peak_bytes >= predicted  # collecting all rows takes more
        if stage.last:
            assert np.concatenate([run.rows[mb] for mb in range(4)]).tobytes() == model.plain(tokens).tobytes()
        trace = Trace.from_json(run.trace.to_json())
        assert sum(a.name == "message" for a in trace.arrows) == 8
    firsts = {slot: np.array([slot + 1, slot + 5]) for slot in range(3)}
    run = run_pipeline(stage, model.program(splits), decode_loop(2, 3, batch=2), firsts)
    if stage.last:
        for slot in range(3):
            mine = np.stack([run.tokens[mb] for mb in sorted(run.tokens) if mb % 3 == slot], axis=1)
            assert mine.tolist() == model.plain_decode(firsts[slot], 3).tolist()
    dsa_layers(stage, dsa.V32)
    dsa_layers(stage, dsa.GLM)
    comm.barrier()
    sys.stdout.write(f"rank {comm.rank} equal\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""One process of a test: prefill_worker.py mpi|gloo [die] [folder rank size]; prints one word about how it ended."""

import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from prefill_cases import BF16, SCALE, TOPK, Batch, same_bits

from sparsespan import cp
from sparsespan.comm import CommError, as_comm
from sparsespan.quant import kv_layout
from sparsespan.testing import FaultyComm

BATCH = Batch((1, 9, 14), (6, 5, 0), (True, False, False))


def connect(backend):
    if backend == "mpi":
        from mpi4py import MPI

        return as_comm(MPI.COMM_WORLD)
    import torch.distributed as dist

    folder, rank, size = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    return as_comm(dist.group.WORLD)


def prefill(comm, scheme):
    """Indices, output and caches of one rank, and the bytes of the formula."""
    plan, caches = BATCH.plan(scheme, comm.size), BATCH.caches()
    names = ("c_kv", "k_pe", "k_index", "q", "index_q", "weights")
    local = [cp.split(getattr(BATCH, name), plan, comm.rank) for name in names]
    comm.reset_trace()
    result = cp.prefill_attention(
        comm, plan, caches, *local[:3], tuple(local[3:]), sm_scale=SCALE, block_table=BATCH.table, topk=TOPK
    )
    counted = comm.trace()["all_gather"]["bytes"]
    want_caches, *want = BATCH.one_rank()
    assert counted == (comm.size - 1) * plan.padded_len * 788
    assert same_bits(caches.kv, want_caches.kv) and same_bits(caches.index, want_caches.index)
    for got, expected in zip(result, want):
        assert same_bits(cp.gather_rows(comm, got, plan), expected)
        ends = np.cumsum(BATCH.lengths) - 1
        assert same_bits(cp.gather_rows(comm, got, plan, "last"), expected[ends])


def project(comm):
    """Integers in bfloat16: exact whichever way the sums go."""
    n = comm.size
    w = (np.arange(8 * n * 3).reshape(8 * n, 3) % 5 - 2).astype(BF16)
    x = (np.arange(2 * 8 * n).reshape(2, 8 * n) % 3 - 1 + comm.rank).astype(BF16)
    want = (x.astype(float) @ w.astype(float)).astype(BF16)
    for mode in ("gather_weight", "a2a_rs"):
        assert same_bits(cp.o_proj(comm, x, np.split(w, n)[comm.rank], mode), want)


def hand_over(comm):
    """The first rank's cache to all others, who shard it."""
    takers = comm.size - 1
    plan = cp.transfer_plan(
        cp.KvSide(page_size=4), cp.KvSide(tp=takers, dcp=takers, page_size=4), [11], num_layers=1, kv_bytes=656,
        index_bytes=0,
    )  # fmt: skip
    cache = kv_layout("fp8_656").zeros(3, 4)
    if comm.rank == 0:
        cache[...] = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
        cp.run_transfer(comm, plan, source=cp.TransferCaches([cache], [[0, 1, 2]]))
        return
    cp.run_transfer(comm, plan, dest=cp.TransferCaches([cache], [[2, 1, 0]]))
    mine = np.arange(comm.rank - 1, 11, takers)
    slots = [[2, 1, 0][i // 4] * 4 + i % 4 for i in range(len(mine))]
    np.testing.assert_array_equal(cache.reshape(12, 656)[slots, 7], mine)


def die(comm):
    """Rank 1 is killed at the gather: the others get a typed error, and their caches are as they were."""
    comm.barrier(timeout=30)
    plan, caches = BATCH.plan("zigzag", comm.size), BATCH.caches()
    before = caches.kv.tobytes()
    bad = FaultyComm(comm, "die", at=0) if comm.rank == 1 else comm
    local = [cp.split(getattr(BATCH, name), plan, comm.rank) for name in ("c_kv", "k_pe", "k_index")]
    try:
        cp.gather_kv_and_cache(bad, *local, caches, plan, BATCH.slots, timeout=2).wait()
    except CommError:
        return "error" if caches.kv.tobytes() == before else "torn"
    return "done"


def main():
    backend, fault = sys.argv[1], sys.argv[2]
    comm = connect(backend)
    word = "done"
    if fault == "die":
        word = die(comm)
    else:
        comm.timeout = 30
        for scheme in ("zigzag", "interleave", "contiguous_flat"):
            prefill(comm, scheme)
        project(comm)
        hand_over(comm)
    sys.stdout.write(f"rank {comm.rank} {word}\n")
    sys.stdout.flush()
    if fault == "die":  # a broken group cannot be finalised in good order
        time.sleep(1)
        os._exit(0)
    if backend == "gloo":
        import torch.distributed as dist

        dist.destroy_process_group()


if __name__ == "__main__":
    main()

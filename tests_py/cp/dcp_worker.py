"""One process of a test: dcp_worker.py mpi|gloo [folder rank size]; prints "rank r same" if it has one rank's bits."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from dcp_cases import SCALE, Batch, IndexBatch, assert_same_bits

from sparsespan import comm, cp


def connect(backend):
    if backend == "mpi":
        from mpi4py import MPI

        return comm.as_comm(MPI.COMM_WORLD)
    import torch.distributed as dist

    folder, rank, size = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    return comm.as_comm(dist.group.WORLD)


def decode(c, layout, index_k):
    keys = Batch([130, 2, 0, 61], next_n=2, kv_layout="fp8_656", heads=8)
    picks = IndexBatch(keys.lengths, next_n=2)
    table, _ = keys.table(layout)
    chosen = picks.select(c, layout, 32, index_k)
    return chosen, *cp.dcp_decode(
        c, keys.q_of(c.rank, c.size), keys.cache(layout, c.rank), chosen, layout, table, SCALE,
        row_to_request=keys.request, context_lens=keys.context, kv_layout=keys.kv_layout, combine="a2a",
    )  # fmt: skip


def main():
    c = connect(sys.argv[1])
    c.timeout = 30
    alone = comm.ThreadComm(1)[0]
    chosen, out, lse = decode(alone, cp.dcp_layout(16, 1, 64), "replicated")
    heads = slice(c.rank * 8 // c.size, (c.rank + 1) * 8 // c.size)
    for index_k in ("replicated", "sharded", "sharded_routed", "gathered"):
        got = decode(c, cp.dcp_layout(16, c.size, 64), index_k)
        assert_same_bits(got, (chosen, out[:, heads].copy(), lse[:, heads].copy()))
    sys.stdout.write(f"rank {c.rank} same\n")
    sys.stdout.flush()
    if sys.argv[1] == "gloo":
        import torch.distributed as dist

        dist.destroy_process_group()


if __name__ == "__main__":
    main()

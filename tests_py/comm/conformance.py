"""What every communicator must do, written once: each function runs on one rank of any transport."""

import mmap
import tempfile

import ml_dtypes
import numpy as np


def data(rank, shape, dtype=np.float32):
    return np.random.default_rng(100 + rank).standard_normal(shape).astype(dtype)


def all_gather(comm):
    n = comm.size
    got = comm.all_gather(data(comm.rank, (3, 2)))
    np.testing.assert_array_equal(got, np.concatenate([data(r, (3, 2)) for r in range(n)]))
    counts = [(r * 2) % 3 for r in range(n)]  # one rank has nothing
    got = comm.all_gather(data(comm.rank, (counts[comm.rank], 5)), counts)
    np.testing.assert_array_equal(got, np.concatenate([data(r, (counts[r], 5)) for r in range(n)]))
    assert comm.all_gather(np.zeros((0, 4), np.int32)).shape == (0, 4)


def all_to_all(comm):
    n, me = comm.size, comm.rank
    got = comm.all_to_all(np.arange(n, dtype=np.int64) + 100 * me)
    np.testing.assert_array_equal(got, me + 100 * np.arange(n))
    to, back = [(me + q) % 3 for q in range(n)], [(me + q) % 3 for q in range(n)]
    got = comm.all_to_all(np.repeat(me * 10 + np.arange(n), to), to, back)
    np.testing.assert_array_equal(got, np.repeat(me + 10 * np.arange(n), back))


def reductions(comm):
    n, me = comm.size, comm.rank
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        parts = [data(r, (n * 7,), dtype) for r in range(n)]
        wide = np.float32 if dtype == ml_dtypes.bfloat16 else dtype
        total = parts[0].astype(wide)
        for part in parts[1:]:  # in order of rank: bits, not tolerance
            total = total + part.astype(wide)
        total = total.astype(dtype)
        assert comm.all_reduce(parts[me]).tobytes() == total.tobytes()
        assert comm.reduce_scatter(parts[me]).tobytes() == total[me * 7 : me * 7 + 7].tobytes()
        largest = np.max([p.astype(np.float64) for p in parts], axis=0)
        np.testing.assert_array_equal(comm.all_reduce(parts[me], "max").astype(np.float64), largest)
    short = np.array([me + 1], np.int64)  # fewer elements than ranks, and in place
    assert comm.all_reduce(short, out=short) is short
    assert short[0] == n * (n + 1) // 2


def _mapped():
    """A file's pages, which nobody may write to: what a root has that sends weights of a checkpoint."""
    with tempfile.TemporaryFile() as file:
        file.write(np.arange(1 << 18, dtype=np.int32).tobytes())
        file.flush()
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.int32)


def messages(comm):
    n, me = comm.size, comm.rank
    x = np.full((2, 3), 7.0) if me == n - 1 else np.zeros((2, 3))
    assert (comm.broadcast(x, n - 1) == 7).all()
    whole = comm.broadcast(_mapped() if me == 0 else np.zeros(1 << 18, np.int32), 0)
    np.testing.assert_array_equal(whole, np.arange(1 << 18))
    if n > 1:
        inbox = [np.zeros(4), np.zeros(4)]
        works = [comm.isend(np.full(4, 10.0 * me + i), (me + 1) % n, tag=5) for i in range(2)]
        works += [comm.irecv(box, (me - 1) % n, tag=5) for box in inbox]
        for work in works:
            work.wait()
        assert [box[0] for box in inbox] == [10.0 * ((me - 1) % n) + i for i in range(2)]
    comm.barrier()


def overlap(comm):
    n, me = comm.size, comm.rank
    works = [comm.iall_reduce(np.arange(n) + i) for i in range(3)] + [comm.iall_gather(np.array([me]))]
    order = works if me % 2 else works[::-1]  # ranks wait in different orders
    for work in order:
        work.wait()
    for i in range(3):
        np.testing.assert_array_equal(works[i].wait(), n * (np.arange(n) + i))
    np.testing.assert_array_equal(works[3].wait(), np.arange(n))
    assert works[3].test()


def split(comm):
    n, me = comm.size, comm.rank
    part = comm.split(me % 2, key=-me)  # higher ranks first
    members = [r for r in range(n) if r % 2 == me % 2][::-1]
    assert (part.size, part.rank) == (len(members), members.index(me))
    np.testing.assert_array_equal(part.all_gather(np.array([me])), members)
    assert (comm.split(-1 if me == 0 else 0) is None) == (me == 0)


def counted_bytes(comm):
    n = comm.size
    comm.reset_trace()
    chunk = 24  # bytes
    comm.all_gather(np.zeros(3))
    comm.all_to_all(np.zeros(3 * n))
    comm.reduce_scatter(np.zeros(3 * n))
    comm.all_reduce(np.zeros(3 * n))
    comm.broadcast(np.zeros(3), 0)
    trace = {op: row["bytes"] for op, row in comm.trace().items() if op != "checks"}
    away = (n - 1) * chunk
    assert trace == {
        "all_gather": away,
        "all_to_all": away,
        "reduce_scatter": away,
        "all_reduce": 2 * away,
        "broadcast": 0 if comm.rank == 0 else chunk,
    }
    assert all(row["calls"] >= 1 and row["seconds"] >= 0 for row in comm.trace().values())


CHECKS = [all_gather, all_to_all, reductions, messages, overlap, split, counted_bytes]


def run_all(comm):
    for check in CHECKS:
        check(comm)

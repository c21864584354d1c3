"""One process of a test: comm_worker.py mpi|gloo [fault] [folder rank size]; prints one word about how it ended."""

import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import conformance

from sparsespan.comm import CommError, CommTimeout, RankMismatch, as_comm
from sparsespan.testing import FaultyComm


def connect(backend):
    if backend == "mpi":
        from mpi4py import MPI

        return as_comm(MPI.COMM_WORLD)
    import torch.distributed as dist

    folder, rank, size = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    return as_comm(dist.group.WORLD)


def main():
    backend, fault = sys.argv[1], sys.argv[2]
    comm = connect(backend)
    comm.timeout = 30 if fault == "none" else 2
    word = "done"
    try:
        if fault == "none":
            conformance.run_all(comm)
        else:
            comm.barrier(timeout=30)
            bad = FaultyComm(comm, fault, at=1, seconds=4) if comm.rank == 1 else comm
            for _ in range(2 if fault == "skip" else 3):
                bad.all_gather(np.ones(1000))
    except RankMismatch:
        word = "mismatch"
    except CommTimeout:
        word = "timeout"
    except CommError:
        word = "error"
    sys.stdout.write(f"rank {comm.rank} {word}\n")
    sys.stdout.flush()
    if fault == "none":
        if backend == "gloo":
            import torch.distributed as dist

            dist.destroy_process_group()
        return
    # A broken group cannot be finalised in good order; the peers get time to come to their own end first.
    time.sleep(3)
    os._exit(0)


if __name__ == "__main__":
    main()

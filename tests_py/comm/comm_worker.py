"""One process of a group: comm_worker.py mpi|gloo JOBS [init_method rank size]; prints one line of JSON per job.

All jobs run in the same process, each on a communicator that is made anew: whatever a fault does, the process and the
library below must be usable for the next.
"""

import faulthandler
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import conformance
import ducks
import faults

from sparsespan.comm import as_comm


def connect(backend):
    if backend == "mpi":
        from mpi4py import MPI

        return MPI.COMM_WORLD
    import torch.distributed as dist

    init, rank, size = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=size)
    return dist.group.WORLD


def first_two(backend, group):
    """The group of ranks 0 and 1; None on the others."""
    if backend == "mpi":
        rank = group.Get_rank()
        part = group.Split(int(rank >= 2), rank)
        return part if rank < 2 else None
    import torch.distributed as dist

    part = dist.new_group([0, 1])
    return part if dist.get_rank() < 2 else None


def run(job, group, backend):
    if job in faults.BY_NAME:
        return faults.suffer(faults.BY_NAME[job], as_comm(group))
    comm = as_comm(group)
    comm.timeout = 30
    try:
        if job == "ducks":
            getattr(ducks, backend)(group)
        else:
            conformance.run_all(comm)
        word = "done"
    except Exception as error:
        word = f"{type(error).__name__}: {error}"
    return {"fault": job, "rank": comm.rank, "word": word}


def main():
    whole = connect(sys.argv[1])
    for job in sys.argv[2].split(","):
        faulthandler.dump_traceback_later(40, exit=True)  # never a hang
        group = first_two(sys.argv[1], whole) if job == "conform2" else whole
        if group is None:
            continue
        end = run(job, group, sys.argv[1])
        sys.stdout.write(json.dumps(end) + "\n")
        sys.stdout.flush()
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()

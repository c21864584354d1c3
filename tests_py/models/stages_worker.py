"""A rank of a PP2 x CP2 program under mpirun, on whose second stage one rank fails: says how it ended."""

import sys
import time

from sparsespan import models
from sparsespan.comm import MpiComm


def broken(*_, **__):
    raise ZeroDivisionError("a planted error")


def main(path):
    from mpi4py import MPI

    world = MpiComm(MPI.COMM_WORLD)
    model = models.load(path, ranks=models.Grid(pp=2, cp=2).join(world)[0])
    if world.rank == 2:
        model.layers[-1].prefill = broken
    begun = time.monotonic()
    try:
        model.generate([list(range(50))], 4, chunk=8)
    except Exception as error:
        # One write, so that lines of ranks do not mix.
        sys.stdout.write(f"{world.rank} {type(error).__name__} {time.monotonic() - begun:.1f} {error}\n")
        sys.stdout.flush()
    world.close()


if __name__ == "__main__":
    main(sys.argv[1])

"""What as_comm takes besides the plain groups of mpi4py and torch, and refuses; every rank of a team runs it."""

import conformance

from sparsespan.comm import as_comm


class Wrapped:
    """Not an mpi4py communicator, but it has its methods, as wrappers of engines do."""

    def __init__(self, comm):
        self._comm = comm

    def __getattr__(self, name):
        return getattr(self._comm, name)


def refused(x, error, *words):
    try:
        as_comm(x)
    except error as e:
        assert all(word in str(e) for word in words), e
        return
    raise AssertionError(f"as_comm took {x}")


def mpi(world):
    from mpi4py import MPI

    comm = as_comm(Wrapped(world))
    comm.timeout = 20
    conformance.run_all(comm)
    refused(MPI.COMM_NULL, ValueError, "comm is COMM_NULL")
    half = world.Split(world.Get_rank() % 2, world.Get_rank())
    between = half.Create_intercomm(0, world, 1 - world.Get_rank() % 2)
    refused(between, ValueError, "is an intercommunicator", "Merge")
    assert world.allreduce(1) == world.Get_size()  # the caller's own group is as it was


def gloo(world):
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, world.size() // 2), mesh_dim_names=("dp", "cp"))
    refused(mesh, ValueError, "DeviceMesh of 2 dimensions ('dp', 'cp')", "x[name]")
    comm = as_comm(mesh["cp"])
    assert comm.size == world.size() // 2
    comm.timeout = 20
    conformance.run_all(comm)
    one = torch.ones(1)
    dist.all_reduce(one)
    assert one.item() == world.size()

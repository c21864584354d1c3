"""What as_comm takes and refuses in one process; teams of processes do the rest (ducks.py)."""

import pytest

from sparsespan.comm import MpiComm, ThreadComm, as_comm


def test_ours_come_back():
    comms = ThreadComm(1)
    assert as_comm(comms) is comms[0] and as_comm(comms[0]) is comms[0]
    with pytest.raises(ValueError, match=r"x is all 2 ranks of a ThreadComm, needs one of them: x\[rank\]"):
        as_comm(ThreadComm(2))


def test_half_an_mpi_communicator_is_refused_in_words():
    class Half:
        def Get_rank(self):
            return 0

        def Get_size(self):
            return 1

        def Iprobe(self):
            return False

    words = r"comm is a Half, needs an mpi4py\.MPI\.Comm; it has no Dup, Split, Iallgatherv, Ialltoallv, Ibcast, Issend"
    for make in (as_comm, MpiComm):
        with pytest.raises(TypeError, match=words):
            make(Half())


@pytest.mark.parametrize("x", [None, 3, "gloo", object()])
def test_others_are_refused_in_words(x):
    words = f"as_comm: x is a {type(x).__name__}, needs a Communicator, an mpi4py Comm, a torch ProcessGroup or"
    with pytest.raises(TypeError, match=words):
        as_comm(x)

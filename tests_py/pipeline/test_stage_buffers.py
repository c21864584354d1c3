"""A ring that turns where sends block, and receive buffers that are allocated once."""

import numpy as np
import pytest

from sparsespan.comm import CommTimeout, run_ranks
from sparsespan.pipeline import IntermediateTensors, ring_exchange

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_ring_turns_where_sends_block(size):
    def rank(comm):
        return [
            int(ring_exchange(comm, np.array([comm.rank]), np.full(1, -1), step=step)[0])
            for step in range(-2, size + 1)
        ]

    for r, got in enumerate(run_ranks(size, rank, timeout=5)):
        assert got == [(r - step) % size for step in range(-2, size + 1)]


def test_all_sending_first_would_stand_still():
    def rank(comm):
        comm.send(np.array([comm.rank]), (comm.rank + 1) % comm.size)
        comm.recv(np.zeros(1, np.int64), (comm.rank - 1) % comm.size)

    with pytest.raises(CommTimeout):
        run_ranks(4, rank, timeout=0.3)


def test_views_are_slices_of_buffers_that_stay():
    spec = {"hidden_states": ((4,), "bfloat16"), "residual": ((4,), "float32")}
    buffers = IntermediateTensors(16, spec, tp=4)
    assert buffers.nbytes == 2 * 4 * (4 * 2 + 4 * 4)
    places = {n: v.ctypes.data for n, v in buffers.view(16).items()}
    for n in (16, 9, 1, 0):
        views = buffers.view(n)
        assert {name: v.ctypes.data for name, v in views.items()} == places
        assert all(len(v) == -(-n // 4) for v in views.values())
    assert buffers.view(16, 1)["residual"].ctypes.data != places["residual"]
    given = {"hidden_states": np.ones((5, 4), views["hidden_states"].dtype), "residual": np.ones((5, 4), np.float32)}
    got = buffers.sync_and_slice(9, given)  # three rows are copied, the others are nobody's
    assert got["residual"].shape == (3, 4) and (got["residual"] == 1).all()
    given["residual"] += 1
    assert (buffers.sync_and_slice(9, given, sync_self=False)["residual"] == 1).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda b: b.view(17), "rows is 17, needs 0 to 16"),
        (lambda b: b.sync_and_slice(9), r"hidden_states is not given, needs [3, 4]"),
        (lambda b: b.sync_and_slice(9, {"hidden_states": np.ones((2, 4), np.float32)}), "is float32 [2, 4], needs"),
        (lambda b: b.sync_and_slice(9, {"hidden_states": np.ones((3, 4))}), "is float64 [3, 4]"),
        (lambda b: IntermediateTensors(-1, {}), "rows is -1"),
        (lambda b: IntermediateTensors(1, {}, tp=0), "tp is 0"),
        (lambda b: IntermediateTensors(1, {}, slots=0), "slots is 0"),
    ],
)  # fmt: skip
def test_buffer_refusals(call, words):
    with pytest.raises(ValueError, match=r"^IntermediateTensors: ") as error:
        call(IntermediateTensors(16, {"hidden_states": ((4,), "float32")}, tp=4))
    assert words in str(error.value)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.indexer as reference
from sparsespan.indexer import to_slots
from sparsespan.testing import assert_row_invariant


@given(st.data())
def test_equals_reference(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows, width, size = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 9)), data.draw(st.integers(1, 70))
    table = rng.integers(0, 50, (3, 4)).astype(data.draw(st.sampled_from([np.int32, np.int64])))
    requests = rng.integers(0, 3, rows)
    ks = rng.integers(0, 1000, rows) if data.draw(st.booleans()) else None
    indices = rng.integers(0, 4 * size, (rows, width)) + (0 if ks is None else ks[:, None])
    indices = np.where(rng.random(indices.shape) < 0.3, -1, indices).astype(np.int32)
    expected = reference.to_slots(indices, requests, table, size, ks)
    np.testing.assert_array_equal(to_slots(indices, requests, table, size, ks), expected)
    np.testing.assert_array_equal(to_slots(indices, requests, table, size, ks, validate="trusted"), expected)


@pytest.mark.parametrize("lengths, size, dtype", [([0, 17, 512, 1299], 64, np.int32), ([1, 600, 777], 32, np.int64)])
def test_sglang_page_transform(rng, lengths, size, dtype):
    """topk_transform_512: the best 512 positions as slots; rows that see fewer name all of theirs, then -1."""
    from sparsespan.indexer import topk

    scores = rng.standard_normal((len(lengths), 1300)).astype(np.float32)
    table = rng.permutation(200)[: len(lengths) * 41].reshape(len(lengths), 41).astype(dtype)
    lens = np.array(lengths, dtype)
    raw = topk(scores, 512, lens)
    slots = to_slots(raw, np.arange(len(lengths)), table, size)
    for row, n in enumerate(lengths):
        best = np.sort(np.argsort(-scores[row, :n], kind="stable")[:512])
        np.testing.assert_array_equal(slots[row, : len(best)], table[row, best // size] * size + best % size)
        assert (slots[row, len(best) :] == -1).all()


def test_padding_rows_and_unneeded_entries():
    table = np.array([[4, -9], [2**40, 1]])
    got = to_slots(np.array([[0, -1], [-1, -1], [3, 2]], np.int32), np.array([0, -1, 1]), table, 2)
    np.testing.assert_array_equal(got, [[8, -1], [-1, -1], [3, 2]])


def test_row_invariant(rng):
    table, requests = rng.integers(0, 99, (5, 7)), rng.integers(0, 5, 60)
    indices = rng.integers(0, 7 * 16, (60, 33)).astype(np.int32)
    assert_row_invariant(lambda i, threads: to_slots(indices[i], requests[i], table, 16, threads=threads), 60)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"indices": np.zeros((2, 3), np.int64)}, TypeError, r"indices has dtype int64, needs int32"),
        ({"indices": np.zeros(3, np.int32)}, ValueError, r"indices has shape \[3\], needs \[T, K\]"),
        (
            {"indices": np.array([[0, 1], [-1, 8]], np.int32)},
            IndexError,
            r"indices has 8 at row 1, column 1, needs -1 or 0 <=",
        ),
        ({"indices": np.array([[0, -2], [1, 1]], np.int32)}, IndexError, r"indices has -2 at row 0, column 1"),
        (
            {"indices": np.array([[0, 2], [1, 1]], np.int32), "ks": np.array([0, 2])},
            IndexError,
            r"indices has 1 at row 1, column 0, needs -1 or 2 <= index < 10",
        ),
        ({"ks": np.array([0, -2])}, ValueError, r"ks has -2 at row 1"),
        ({"ks": np.array([0])}, ValueError, r"ks has shape \[1\]"),
        (
            {"row_to_request": np.array([0, 2])},
            IndexError,
            r"row_to_request has 2 at row 1, needs -1 or 0 <= request < 2",
        ),
        ({"row_to_request": np.array([-2, 0])}, IndexError, r"row_to_request has -2 at row 0"),
        ({"row_to_request": np.array([0, -1])}, IndexError, r"indices has 0 at row 1, .*belongs to no request"),
        ({"row_to_request": np.array([0])}, ValueError, r"row_to_request has shape \[1\], needs \[T\] = \[2\]"),
        ({"row_to_request": np.zeros(2)}, TypeError, r"row_to_request has dtype float64"),
        (
            {"block_table": np.array([[-1, 0], [0, 0]])},
            IndexError,
            r"block_table has -1 at request 0, block 0, which row 0",
        ),
        ({"block_table": np.array([[2**29, 0], [0, 0]])}, IndexError, r"block_table has 536870912 at request 0"),
        ({"block_table": np.zeros((2, 2))}, TypeError, r"block_table has dtype float64"),
        ({"page_size": 0}, ValueError, r"page_size is 0, needs at least 1"),
        ({"page_size": 2**63 - 1}, ValueError, r"page_size overflows 64 bits"),
        ({"out": np.zeros((2, 3), np.int32)}, ValueError, r"out has shape \[2, 3\]"),
    ],
)
def test_refusals(change, error, message):
    good = {
        "indices": np.zeros((2, 2), np.int32),
        "row_to_request": np.array([0, 1]),
        "block_table": np.zeros((2, 2), np.int64),
        "page_size": 4,
        "out": np.full((2, 2), 7, np.int32),
    }
    arguments = good | change
    with pytest.raises(error, match=r"^to_slots: " + message):
        to_slots(**arguments)
    assert (good["out"] == 7).all()


def test_the_largest_slot_fits():
    table = np.array([[2**29 - 1]])
    assert to_slots(np.array([[3]], np.int32), np.array([0]), table, 4)[0, 0] == 2**31 - 1

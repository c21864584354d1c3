"""cp.dcp_layout(...).remap_topk and packed_rows (sections 3.4 and 3.6)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.cp_dcp as reference
from sparsespan.cp import dcp_layout
from sparsespan.testing import assert_row_invariant

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 9))


def row(*values, dtype=np.int32):
    return np.array([values], dtype)


def test_goldens_3_6():
    layout = dcp_layout(2, 2, 2)
    p = row(0, 2, 1, 3, 4, 6, -1, 5)
    assert layout.remap_topk(p, 0).tolist() == [[0, 1, 2, 3, -1, -1, -1, -1]]
    assert layout.remap_topk(p, 1).tolist() == [[0, 1, 2, -1, -1, -1, -1, -1]]
    layout = dcp_layout(1, 4, 4)
    p = row(0, 7, 13, 2, 9, -1)
    kept = [[0], [3, 2], [0], [1]]
    for r, expected in enumerate(kept):
        local, counts = layout.remap_topk(p, r, return_counts=True)
        assert local.tolist() == [expected + [-1] * (6 - len(expected))]
        assert counts.tolist() == [len(expected)] and counts.dtype == np.int32


def test_bug_minus_one_modulo_n_owned_by_the_last_rank():
    """-1 % N == N - 1: a map without the test p >= 0 gives the last rank the padding."""
    for n in (1, 2, 3, 4, 7, 8):
        layout = dcp_layout(1, n, 4)
        for dtype in (np.int32, np.int64):
            local, counts = layout.remap_topk(row(-1, 0, -1, n - 1, -1, dtype=dtype), n - 1, return_counts=True)
            assert counts[0] == (2 if n == 1 else 1)
            assert (local[0, counts[0] :] == -1).all() and (local[0, : counts[0]] == 0).all()


def test_bug_remap_parity_of_attended_keys_b_4():
    """Peer bug vllm 54300: attending the union of the remapped rows equals attending the selected positions."""
    layout = dcp_layout(2, 4, 8)
    values = np.arange(300) ** 2
    p = np.random.default_rng(0).permutation(300)[:128].astype(np.int32)[None]
    seen = []
    for r in range(4):
        shard = values[layout.logical(r, np.arange(layout.local_len(300, r)))]
        local, counts = layout.remap_topk(p, r, return_counts=True)
        seen.extend(shard[local[0, : counts[0]]])
    assert sorted(seen) == sorted(values[p[0]])


@given(SIZES, st.integers(0, 6), st.integers(0, 40), st.integers(0, 2**32 - 1), st.booleans())
def test_ranks_partition_the_valid_indices_in_order(sizes, rows, width, seed, wide):
    s, n = sizes
    rng = np.random.default_rng(seed)
    p = rng.integers(-1, 100, (rows, width)).astype(np.int64 if wide else np.int32)  # duplicates are meant
    layout = dcp_layout(s, n, s)
    back = [[] for _ in range(rows)]
    for r in range(n):
        local, counts = layout.remap_topk(p, r, return_counts=True)
        expected, _, expected_counts = reference.remap_topk(p, r, s, n)
        assert local.dtype == p.dtype
        np.testing.assert_array_equal(local, expected)
        np.testing.assert_array_equal(counts, expected_counts)
        for t in range(rows):
            kept = layout.logical(r, local[t, : counts[t]])
            np.testing.assert_array_equal(kept, p[t][(p[t] >= 0) & (layout.owner(p[t]) == r)])  # order is stable
            back[t].extend(kept.tolist())
    for t in range(rows):
        assert sorted(back[t]) == sorted(p[t][p[t] >= 0].tolist())


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("s", [1, 3, 64])
def test_lanes_of_contract_4(rng, n, s):
    layout = dcp_layout(s, n, s)
    p = rng.integers(-1, 5000, (5, 96)).astype(np.int32)
    for r in range(n):
        local, lanes, counts = layout.remap_topk(p, r, return_lanes=True, return_counts=True)
        _, expected, _ = reference.remap_topk(p, r, s, n)
        np.testing.assert_array_equal(lanes, expected)
        for t in range(5):
            kept = lanes[t, : counts[t]]
            assert (kept % n == r).all()  # a lane lies on one rank
            np.testing.assert_array_equal(kept, layout.logical(r, local[t, : counts[t]]) // s % 8)
    assert len(layout.remap_topk(p, 0, return_lanes=True)) == 2


def test_topk_length_hides_the_tail(rng):
    layout = dcp_layout(1, 2, 4)
    p = rng.integers(0, 50, (4, 16)).astype(np.int32)
    length = np.array([0, 5, 16, 1])
    expected, _, counts = reference.remap_topk(p, 1, 1, 2, length)
    for t in range(4):
        p[t, length[t] :] = -99  # never read
    local, got = layout.remap_topk(p, 1, return_counts=True, topk_length=length, context_lens=np.full(4, 50))
    np.testing.assert_array_equal(local, expected)
    np.testing.assert_array_equal(got, counts)


def test_row_invariant(rng):
    p = rng.integers(-1, 1 << 20, (150, 2048)).astype(np.int32)
    for layout, r in ((dcp_layout(1, 8, 64), 3), (dcp_layout(3, 6, 3), 5)):
        lanes = layout.world_size == 8
        assert_row_invariant(
            lambda ids, threads, at=layout, r=r, lanes=lanes: at.remap_topk(p[ids], r, lanes, True, threads=threads),
            150,
        )


def test_out_strided_rows_and_empty(rng):
    layout = dcp_layout(1, 4, 4)
    wide = rng.integers(-1, 99, (6, 64)).astype(np.int32)
    p = wide[::2, :32]
    out = np.empty((3, 32), np.int32)
    assert layout.remap_topk(p, 2, out=out) is out
    np.testing.assert_array_equal(out, reference.remap_topk(p, 2, 1, 4)[0])
    assert layout.remap_topk(np.empty((0, 7), np.int32), 0).shape == (0, 7)
    assert layout.remap_topk(np.empty((3, 0), np.int32), 0).shape == (3, 0)


def test_slots_of_vllm_follow_from_the_same_block_table(rng):
    """3.6: table[req][p // (B * N)] * B + (p % (B * N)) // (N * S) * S + p % S equals slots of the local rows."""
    s, n, b = 2, 4, 8
    layout = dcp_layout(s, n, b)
    table = rng.permutation(40)[:5]
    p = rng.permutation(5 * b * n)[:64].astype(np.int32)
    for r in range(n):
        local, counts = layout.remap_topk(p[None], r, return_counts=True)
        local = local[0, : counts[0]]
        mine = p[p // s % n == r]
        expected = table[mine // (b * n)] * b + mine % (b * n) // (n * s) * s + mine % s
        np.testing.assert_array_equal(table[local // b] * b + local % b, expected)


def test_refusals_name_row_column_and_value():
    layout = dcp_layout(1, 4, 4)
    p = np.zeros((3, 4), np.int32)
    bad = p.copy()
    bad[1, 2], bad[2, 0] = -2, -3
    out = np.full_like(p, 77)
    with pytest.raises(IndexError, match=r"indices row 1, column 2 is -2, needs -1 or a position of at least 0"):
        layout.remap_topk(bad, 0, out=out)
    assert (out == 77).all()  # nothing is half-written
    bad = p.copy()
    bad[2, 3] = 9
    lens = np.array([1, 9, 9])
    with pytest.raises(IndexError, match=r"indices row 2, column 3 is 9, needs -1 or 0 to 8 \(the row has 9 keys\)"):
        layout.remap_topk(bad, 0, context_lens=lens)
    layout.remap_topk(bad, 0, context_lens=lens + 1)
    layout.remap_topk(bad, 0, context_lens=lens, validate="trusted")
    layout.remap_topk(bad, 0, context_lens=np.full(3, 1 << 40))
    with pytest.raises(IndexError, match=r"rank is 4, needs 0 to 3"):
        layout.remap_topk(p, 4)
    with pytest.raises(ValueError, match=r"context_lens row 1 is -1, needs at least 0"):
        layout.remap_topk(p, 0, context_lens=np.array([1, -1, 1]))
    with pytest.raises(ValueError, match=r"context_lens has shape \[2\], needs \[T\] = \[3\]"):
        layout.remap_topk(p, 0, context_lens=np.array([1, 1]))
    with pytest.raises(ValueError, match=r"topk_length row 0 is 5, needs 0 to K = 4"):
        layout.remap_topk(p, 0, topk_length=np.array([5, 0, 0]))
    with pytest.raises(ValueError, match=r"return_lanes needs world_size 1, 2, 4 or 8 .* has 3"):
        dcp_layout(1, 3, 4).remap_topk(p, 0, return_lanes=True)
    with pytest.raises(ValueError, match=r"has 16"):
        dcp_layout(1, 16, 4).remap_topk(p, 0, return_lanes=True)
    with pytest.raises(ValueError, match=r"out shares memory with an input"):
        layout.remap_topk(p, 0, out=p)
    with pytest.raises(ValueError, match=r"strided last axis"):
        layout.remap_topk(p[:, ::2], 0)
    with pytest.raises(TypeError, match=r"indices has dtype float32"):
        layout.remap_topk(p.astype(np.float32), 0)
    with pytest.raises(ValueError, match=r'validate is "maybe"'):
        layout.remap_topk(p, 0, validate="maybe")


def test_the_first_bad_row_is_named_with_any_threads():
    p = np.zeros((4000, 64), np.int32)
    p[[1777, 3999], 5] = -9
    for threads in (1, 2, 3):
        with pytest.raises(IndexError, match=r"row 1777, column 5 is -9"):
            dcp_layout(1, 4, 4).remap_topk(p, 0, threads=threads)


@given(SIZES, st.integers(0, 60), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_packed_rows_3_4(sizes, prefix, new, seed):
    s, n = sizes
    layout = dcp_layout(s, n, s)
    total = prefix + new
    p = np.random.default_rng(seed).integers(-1, max(total, 1), (3, 9)) if total else np.full((3, 9), -1)
    topk = prefix + 1
    rows = layout.packed_rows(p, prefix, total, topk)
    np.testing.assert_array_equal(rows, reference.packed_rows(p, prefix, s, n))
    # The buffer itself: every rank's padded shard of the prefix, then the new tokens.
    send = -(-prefix // (n * s)) * s
    buffer = np.full(n * send + new, -5)
    for q in range(prefix):
        buffer[q // s % n * send + q // (n * s) * s + q % s] = q
    buffer[n * send :] = np.arange(prefix, total)
    np.testing.assert_array_equal(buffer[rows[p >= 0]], p[p >= 0])


def test_packed_rows_refusals_3_4():
    layout = dcp_layout(1, 2, 4)
    p = np.zeros((1, 4), np.int32)
    with pytest.raises(ValueError, match=r"prefix_len is 2046, needs at least index_topk - 1 = 2047.*crops them"):
        layout.packed_rows(p, 2046, 3000, 2048)
    assert layout.packed_rows(p, 2047, 3000, 2048).tolist() == [[0, 0, 0, 0]]
    with pytest.raises(IndexError, match=r"indices row 0, column 1 is 10, needs -1 or 0 to 9"):
        layout.packed_rows(row(0, 10), 8, 10, 4)
    with pytest.raises(ValueError, match=r"total_len is 7, needs at least prefix_len = 8"):
        layout.packed_rows(p, 8, 7, 4)
    with pytest.raises(ValueError, match=r"prefix_len is -1"):
        layout.packed_rows(p, -1, 7, 4)
    with pytest.raises(ValueError, match=r"index_topk is 0"):
        layout.packed_rows(p, 1, 7, 0)
    with pytest.raises(ValueError, match=r"total_len is 2147483647"):
        layout.packed_rows(p, 1, 2**31 - 1, 1)

"""Slots, writes, page tables and gathers of cp.dcp_layout (sections 3.2 to 3.5 and 3.7)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.cp_dcp as reference
from sparsespan.cp import dcp_layout

LAYOUTS = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3)).map(lambda t: (t[0], t[1], t[0] * t[2]))


def locations_of(layout, pages, length):
    """What an allocator of virtual pages hands a request: aligned, consecutive runs."""
    span = layout.virtual_page_size
    return np.concatenate([page * span + np.arange(span) for page in pages])[:length]


def test_golden_3_2_slots():
    p, table = np.arange(20), np.array([[9, 2]])
    layout = dcp_layout(1, 4, 4)
    r0 = [36, -1, -1, -1, 37, -1, -1, -1, 38, -1, -1, -1, 39, -1, -1, -1, 8, -1, -1, -1]
    assert layout.slot_mapping(p, table, 0).tolist() == r0
    r3 = [-1, -1, -1, 36, -1, -1, -1, 37, -1, -1, -1, 38, -1, -1, -1, 39, -1, -1, -1, 8]
    assert layout.slot_mapping(p, table, 3).tolist() == r3
    layout = dcp_layout(4, 4, 4)
    pads = [-1] * 20
    assert layout.slot_mapping(p, table, 0).tolist() == [36, 37, 38, 39, *pads[:12], 8, 9, 10, 11]
    assert layout.slot_mapping(p, table, 1).tolist() == [*pads[:4], 36, 37, 38, 39, *pads[:12]]
    assert layout.slot_mapping(p, table, 3).tolist() == [*pads[:12], 36, 37, 38, 39, *pads[:4]]
    assert layout.pages_for(20) == 2 and layout.pages_for(16) == 1 and layout.pages_for(0) == 0


@given(LAYOUTS, st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_slots_equal_reference_and_each_token_has_one(sizes, requests, seed):
    rng = np.random.default_rng(seed)
    layout = dcp_layout(*sizes)
    width = 3
    table = rng.permutation(50)[: requests * width].reshape(requests, width).astype(np.int32)
    t = int(rng.integers(0, 40))
    positions = rng.integers(-1, width * layout.virtual_page_size, t).astype(np.int32)
    row = rng.integers(0, requests, t)
    written = np.zeros(t, int)
    for r in range(layout.world_size):
        slots = layout.slot_mapping(positions, table, r, row)
        np.testing.assert_array_equal(slots, reference.slot_mapping(positions, table, row, r, *sizes))
        written += slots >= 0
    np.testing.assert_array_equal(written, (positions >= 0).astype(int))  # no padding row reaches a cache


def test_bug_minus_one_slots_as_last_row():
    """A pad is -1 in every mapping, never the last row of the cache that -1 would index."""
    layout = dcp_layout(1, 2, 4)
    for r in range(2):
        assert layout.slot_mapping(np.array([-1, -1]), np.array([[5]]), r, np.array([0, -1])).tolist() == [-1, -1]
        rows, slots = layout.write_plan(np.array([-1, -1]), r)
        assert rows.size == slots.size == 0
        assert layout.write_plan(np.array([-1, -1]), r, shape="fixed").tolist() == [0, 0]
        assert layout.write_plan(np.array([-1]), r, shape="fixed", dummy=-1).tolist() == [-1]


def test_goldens_3_3_write_plan():
    v = np.array([256, 257, 258, 259, 512, 513])
    layout = dcp_layout(1, 2, 64)
    assert layout.write_plan(v, 0, shape="fixed").tolist() == [128, 0, 129, 0, 256, 0]
    assert layout.write_plan(v, 1, shape="fixed").tolist() == [0, 128, 0, 129, 0, 256]
    rows, slots = layout.write_plan(v, 0)
    assert rows.tolist() == [0, 2, 4] and slots.tolist() == [128, 129, 256]
    rows, slots = layout.write_plan(v, 1)
    assert rows.tolist() == [1, 3, 5] and slots.tolist() == [128, 129, 256]


def test_bug_index_k_scattered_twice():
    """Over the ranks every token is written once; the same location in two rows of a step is refused."""
    layout = dcp_layout(1, 4, 4)
    v = np.arange(16, 37)
    rows = np.concatenate([layout.write_plan(v, r)[0] for r in range(4)])
    assert sorted(rows.tolist()) == list(range(21))
    with pytest.raises(ValueError, match=r"locations has 18 in rows 2 and 4, needs each location once: a token is"):
        layout.write_plan(np.array([16, 17, 18, 19, 18]), 0)


def test_bug_page_not_scaled_3_3():
    """An allocator with page B instead of B * N: ragged pages, refused by name; with B * N ids agree on all ranks."""
    layout = dcp_layout(1, 2, 4)
    good = locations_of(layout, [3, 1], 13)[None]
    assert layout.page_table(good).tolist() == [[3, 1]]
    assert layout.replicated_page_table(good).tolist() == [[6, 7, 2, 3]]
    for r in range(2):
        rows, slots = layout.write_plan(good[0], r)
        np.testing.assert_array_equal(slots // 4, np.array([3, 1])[rows // 8])  # allocator page q is physical page q
    bad = np.concatenate([12 + np.arange(4), 4 + np.arange(4)])[None]
    with pytest.raises(ValueError, match=r"row 0, column 0 is 12, needs a multiple of 8.*world_size = 4 \* 2"):
        layout.page_table(bad)
    with pytest.raises(ValueError, match=r"row 0, column 4 is 4, needs 12 \(runs of a virtual page\)"):
        layout.page_table(np.concatenate([8 + np.arange(4), 4 + np.arange(4)])[None])
    with pytest.raises(ValueError, match=r"column 2 is 10, needs -1 \(the request ended before it\)"):
        layout.page_table(np.array([[8, -1, 10]]))
    assert layout.page_table(np.array([[8, 9, -1, -1], [-1, -1, -1, -1]])).tolist() == [[1], [-1]]


def test_golden_3_3_chunk_rows_start_inside_a_round():
    layout = dcp_layout(1, 4, 4)
    v = locations_of(layout, [2, 5], 32)
    for start in range(9):
        chunk = v[start : start + 13]
        for r in range(4):
            expected = chunk[(r - start) % 4 :: 4] // 4
            np.testing.assert_array_equal(layout.chunk_rows(chunk, start, r), expected)
    with pytest.raises(ValueError, match=r"row 0 is 33, needs the place .* position 0 has \(0 of 16\); is start"):
        layout.chunk_rows(v[1:], 0, 0)


def test_spans_3_3_b_1_b_2():
    spans = dcp_layout(1, 8, 64).spans(6400)
    assert (spans.page, spans.virtual_page, spans.kv_event_block) == (64, 512, 512)
    assert spans.capacity == 51200  # reported: M * c, not M
    assert spans.kv_rows == 6464
    assert spans.index_rows == (6400 + 64) * 8 == 51712 != 6400 * 8 + 64  # the last page would end out of bounds
    assert spans.draft_rows == 51712 and spans.request_headroom == 512
    last = spans.capacity + 511  # the allocator's page 0 is the dummy, so locations end one virtual page later
    assert dcp_layout(1, 8, 64).local(last) == spans.kv_rows - 1 and last == spans.index_rows - 1
    with pytest.raises(ValueError, match=r"tokens_per_rank is 100, needs a multiple of page_size = 64.*valid: 64"):
        dcp_layout(1, 8, 64).spans(100)


@given(st.integers(1, 6), st.lists(st.tuples(st.integers(0, 25), st.integers(0, 30)), max_size=4))
def test_gather_plan_3_4_with_interleave_1(n, requests):
    layout = dcp_layout(1, n, 1)
    lengths = np.array([a for a, _ in requests], np.int64)
    starts = np.array([b for _, b in requests], np.int64)
    plan = layout.gather_plan(lengths)
    expected_pad = -(-lengths // n)
    np.testing.assert_array_equal(plan.padded, expected_pad)
    assert plan.send_rows == expected_pad.sum()
    golden = [
        (p % n) * plan.send_rows + base + p // n
        for length, base in zip(lengths, np.cumsum(expected_pad) - expected_pad)
        for p in range(length)
    ]
    np.testing.assert_array_equal(plan.source_rows, golden)
    plan = layout.gather_plan(lengths, starts)
    np.testing.assert_array_equal(plan.padded, np.where(lengths == 0, 0, -(-(lengths + starts % n) // n)))
    for r in range(n):
        request, local = plan.rank_rows(r)
        for i, (length, start) in enumerate(requests):
            rows = local[request == i]
            if length == 0:
                assert rows.size == 0
                continue
            left, right = start % n > r, (start + length - 1) % n < r
            assert (rows == -1).sum() == left + right
            assert not left or rows[0] == -1
            assert not right or rows[-1] == -1


@given(LAYOUTS, st.lists(st.tuples(st.integers(0, 25), st.integers(0, 30)), max_size=4))
def test_gather_plan_rebuilds_every_range(sizes, requests):
    layout = dcp_layout(*sizes)
    lengths = np.array([a for a, _ in requests], np.int32)
    starts = np.array([b for _, b in requests], np.int32)
    plan = layout.gather_plan(lengths, starts)
    sends, source = reference.gather_plan(lengths, starts, sizes[0], sizes[1])
    np.testing.assert_array_equal(plan.source_rows, source)
    gathered = []
    for r in range(layout.world_size):
        request, local = plan.rank_rows(r)
        assert list(zip(request.tolist(), local.tolist())) == sends[r]
        assert len(local) == plan.send_rows
        gathered += [(i, layout.logical(r, x)) if x >= 0 else None for i, x in zip(request.tolist(), local.tolist())]
    wanted = [(i, p) for i, (a, b) in enumerate(requests) for p in range(b, b + a)]
    assert [gathered[row] for row in plan.source_rows] == wanted


def test_golden_3_7_replicated_table():
    layout = dcp_layout(1, 2, 64)
    table = np.array([[10, 11, 12, 13]], np.int32)
    assert layout.replicated_table(table, sub_blocks=2).tolist() == [list(range(20, 28))]
    assert layout.replicated_table(table).tolist() == [list(range(20, 28))]
    assert dcp_layout(1, 3, 64).replicated_table(np.array([[5, -1]])).tolist() == [[15, 16, 17, -1, -1, -1]]
    idle = layout.replicated_table(np.array([[1], [-1]]), lengths=np.array([3, 0]))
    assert idle.tolist() == [[2, 3], [0, 0]]
    with pytest.raises(ValueError, match=r"sub_blocks is 3, needs a divisor of page_size = 64"):
        layout.replicated_table(table, sub_blocks=3)
    with pytest.raises(ValueError, match=r"block_table has 1 columns, needs a multiple of sub_blocks = 2"):
        layout.replicated_table(table[:, :1], sub_blocks=2)
    with pytest.raises(IndexError, match=r"row 0, column 0 is 2147483647, its 2 index pages do not fit int32"):
        layout.replicated_table(np.array([[2**31 - 1]], np.int32))


@given(LAYOUTS, st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_replicated_table_has_a_page_of_its_own_for_every_block(sizes, sub, width, seed):
    layout = dcp_layout(1, sizes[1], sub * 2)
    rng = np.random.default_rng(seed)
    table = (rng.permutation(20)[:width][:, None] * sub + np.arange(sub)).reshape(1, -1)
    result = layout.replicated_table(table, sub_blocks=sub)
    np.testing.assert_array_equal(result, reference.replicated_table(table, sizes[1], sub))
    assert len(set(result[0].tolist())) == result.size


def test_kernel_block_table_keeps_slots_3_2(rng):
    layout = dcp_layout(2, 3, 8)
    table = np.array([[7, 2, -1]], np.int32)
    kernel = layout.kernel_block_table(table, 4)
    assert kernel.tolist() == [[14, 15, 4, 5, -1, -1]] and kernel.dtype == np.int32
    local = np.arange(16)
    np.testing.assert_array_equal(kernel[0, local // 4] * 4 + local % 4, table[0, local // 8] * 8 + local % 8)
    with pytest.raises(ValueError, match=r"kernel_block is 3, needs a divisor of page_size = 8"):
        layout.kernel_block_table(table, 3)


@given(LAYOUTS, st.integers(0, 2**32 - 1))
def test_bug_compact_gather_with_interleave_other_than_page(sizes, seed):
    """3.5: the general row map reads the right token for every S; the paged table exists only for S == B."""
    s, n, b = sizes
    layout = dcp_layout(*sizes)
    rng = np.random.default_rng(seed)
    width = 3
    pages = rng.integers(0, 6, (2, width))  # requests share pages
    gather = layout.block_gather(pages)
    assert gather.ids.tolist() == sorted(set(pages.reshape(-1).tolist()))
    # rank-major gathered buffer of (rank, page, row of the page)
    buffer = [(r, page, i) for r in range(n) for page in gather.ids.tolist() for i in range(b)]
    for request in range(2):
        p = np.arange(width * layout.virtual_page_size)
        rows = gather.rows(p, np.full(p.size, request))
        np.testing.assert_array_equal(rows, reference.block_rows(p, request, pages, s, n, b))
        for position, row in zip(p.tolist(), rows.tolist()):
            local = layout.local(position)
            assert buffer[row] == (layout.owner(position), pages[request, local // b], local % b)
        if s == b or n == 1:
            np.testing.assert_array_equal(gather.table[request, p // b] * b + p % b, rows)
    if s != b and n > 1:
        with pytest.raises(ValueError, match=r"interleave is \d+, needs page_size = \d+.*use rows\(positions\)"):
            _ = gather.table


def test_block_gather_leaves_out_dummy_entries_and_refuses():
    layout = dcp_layout(4, 2, 4)
    table = np.array([[7, 3, 99], [7, -1, -1], [50, 50, 50]])
    gather = layout.block_gather(table, np.array([16, 1, 0]))
    assert gather.ids.tolist() == [3, 7]
    assert gather.inverse.tolist() == [[1, 0, -1], [1, -1, -1], [-1, -1, -1]]
    assert gather.table.tolist() == [[1, 3, 0, 2, -1, -1], [1, 3, -1, -1, -1, -1], [-1] * 6]
    assert gather.rows(np.array([-1, 0, 4]), np.array([-1, 0, 1])).tolist() == [-1, 4, 12]
    with pytest.raises(IndexError, match=r"positions row 1 is 8 of request 1, its page was not gathered"):
        gather.rows(np.array([0, 8]), np.array([1, 1]))
    with pytest.raises(ValueError, match=r"row_to_request is not given"):
        gather.rows(np.array([0]))
    with pytest.raises(ValueError, match=r"lengths row 0 is 25, needs at most 24"):
        layout.block_gather(table, np.array([25, 0, 0]))
    with pytest.raises(IndexError, match=r"block_table row 1, column 1 is -1, length 9 needs a page there"):
        layout.block_gather(table, np.array([0, 9, 0]))
    with pytest.raises(IndexError, match=r"block_table row 0, column 0 is -2"):
        layout.block_gather(np.array([[-2]]))

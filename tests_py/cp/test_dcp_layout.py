"""The owner maps of cp.dcp_layout: goldens by section of the layout's specification, then properties."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.cp_dcp as reference
from sparsespan.cp import dcp_layout

LAYOUTS = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4)).map(lambda t: (t[0], t[1], t[0] * t[2]))


def test_goldens_3_1_local_len():
    assert dcp_layout(1, 4, 4).local_len(13).tolist() == [4, 3, 3, 3]
    assert dcp_layout(2, 4, 4).local_len(13).tolist() == [4, 4, 3, 2]
    assert dcp_layout(4, 4, 4).local_len(13).tolist() == [4, 4, 4, 1]
    assert dcp_layout(1, 4, 4).local_len(7).tolist() == [2, 2, 2, 1]
    assert dcp_layout(4, 4, 4).local_len(7).tolist() == [4, 3, 0, 0]
    lengths = np.array([1, 2, 128, 129, 256, 257], np.int32)
    golden = [[1, 0], [2, 0], [128, 0], [128, 1], [128, 128], [129, 128]]
    result = dcp_layout(128, 2, 128).local_len(lengths)
    assert result.tolist() == golden and result.dtype == np.int32


def test_golden_of_conformance_source_a_local_lens_interleave_4():
    lengths = np.array([0, 3, 4, 5, 8, 9, 12])
    layout = dcp_layout(4, 2, 4)
    assert layout.local_len(lengths, 0).tolist() == [0, 3, 4, 4, 4, 5, 8]
    assert layout.local_len(lengths, 1).tolist() == [0, 0, 0, 1, 4, 4, 4]


def test_golden_3_1_window_with_interleave_1():
    for n in range(1, 7):
        layout = dcp_layout(1, n, 1)
        for start in range(12):
            for length in range(12):
                for r in range(n):
                    first = start + (r - start) % n
                    count = max((start + length - first + n - 1) // n, 0)
                    local_first, got = layout.local_window(start, length, r)
                    assert got == count
                    assert layout.logical(r, local_first) == first


def test_golden_7_3_mtp_rows_see_themselves():
    layout = dcp_layout(1, 2, 4)
    rows = np.arange(5, 9)  # history 5, four verify rows
    assert layout.visible_len(rows, 0).tolist() == [3, 4, 4, 5]
    assert layout.visible_len(rows, 1).tolist() == [3, 3, 4, 4]


def test_golden_3_7_prefill_rows_of_one_rank():
    assert dcp_layout(2, 4, 2).visible_len(np.arange(8), 0).tolist() == [1, 2, 2, 2, 2, 2, 2, 2]


def test_bug_mtp_exclusive_count_drops_the_own_key():
    """vllm-ascend 11849: the owner of the query's own position counts one key more than before it."""
    layout = dcp_layout(4, 4, 4)
    p = np.arange(200)
    for r in range(4):
        inclusive, exclusive = layout.visible_len(p, r), layout.local_len(p, r)
        np.testing.assert_array_equal(inclusive - exclusive, layout.owner(p) == r)


def test_bug_empty_row_keeps_count_zero():
    """7.3: H = 127, S = 128, rank 1 of 2: the first row sees nothing here, the second one key."""
    assert dcp_layout(128, 2, 128).visible_len(np.array([127, 128]), 1).tolist() == [0, 1]


def test_bug_minus_one_is_not_owned_by_the_last_rank():
    for n in range(1, 6):
        layout = dcp_layout(1, n, 4)
        pads = np.array([-1, -1])
        assert layout.owner(pads).tolist() == [-1, -1]
        assert layout.local(pads).tolist() == [-1, -1]
        assert layout.logical(n - 1, pads).tolist() == [-1, -1]
        assert layout.visible_len(pads, n - 1).tolist() == [0, 0]


def test_pcp_and_dcp_both_shard_3_1():
    """N = pcp * dcp, r = pcp_rank * dcp + dcp_rank."""
    layout = dcp_layout(1, 2 * 4, 8)
    assert layout.owner(13) == 1 * 4 + 1


@given(LAYOUTS, st.integers(0, 400))
def test_owner_and_local_are_a_bijection(sizes, length):
    layout = dcp_layout(*sizes)
    p = np.arange(length)
    owner, local = layout.owner(p), layout.local(p)
    np.testing.assert_array_equal(owner, reference.owner(p, sizes[0], sizes[1]))
    np.testing.assert_array_equal(local, reference.local(p, sizes[0], sizes[1]))
    assert len(set(zip(owner.tolist(), local.tolist()))) == length
    for r in range(layout.world_size):
        mine = p[owner == r]
        np.testing.assert_array_equal(layout.logical(r, local[owner == r]), mine)
        np.testing.assert_array_equal(local[owner == r], np.arange(len(mine)))
        np.testing.assert_array_equal(layout.logical(r, np.arange(len(mine))), mine)


@given(LAYOUTS, st.lists(st.integers(0, 300), max_size=6))
def test_local_lengths_are_counts_and_sum_to_the_length(sizes, lengths):
    layout = dcp_layout(*sizes)
    array = np.array(lengths, np.int64)
    per_rank = layout.local_len(array)
    assert per_rank.shape == (len(lengths), layout.world_size)
    np.testing.assert_array_equal(per_rank.sum(-1), array)
    for i, length in enumerate(lengths):
        for r in range(layout.world_size):
            assert per_rank[i, r] == reference.local_len(length, r, sizes[0], sizes[1])
            assert layout.visible_len(length, r) == reference.visible_len(length, r, sizes[0], sizes[1])


@given(LAYOUTS, st.integers(0, 60), st.integers(0, 8))
def test_virtual_locations_follow_the_same_maps(sizes, place, page):
    """3.3: location q * B * N + i has the owner of position i and row q * B + local(i)."""
    layout = dcp_layout(*sizes)
    i = place % layout.virtual_page_size
    v = page * layout.virtual_page_size + i
    assert layout.owner(v) == layout.owner(i)
    assert layout.local(v) == page * layout.page_size + layout.local(i)


def test_shapes_dtypes_strides_threads_and_large_values(rng):
    layout = dcp_layout(3, 5, 6)
    p = rng.integers(-1, 1 << 20, (2, 3, 40)).astype(np.int32)
    result = layout.owner(p)
    assert result.shape == p.shape and result.dtype == np.int32
    np.testing.assert_array_equal(layout.owner(p[0][:, ::2]), result[0][:, ::2])
    assert layout.owner(np.empty((0, 4), np.int32)).shape == (0, 4)
    assert layout.local_len(np.empty(0, np.int64)).shape == (0, 5)
    assert layout.local_len(p.clip(0)).shape == (2, 3, 40, 5)
    top = np.iinfo(np.int64).max
    assert layout.visible_len(top, layout.owner(top)) == layout.local_len(top, layout.owner(top)) + 1
    big = rng.integers(0, 1 << 40, 100_000)
    np.testing.assert_array_equal(layout.owner(big), reference.owner(big, 3, 5))
    np.testing.assert_array_equal(layout.logical(2, layout.local(big)) - big, (2 - layout.owner(big)) * 3)


@pytest.mark.peer
def test_torch_tensors_come_back_as_torch():
    torch = pytest.importorskip("torch")
    layout = dcp_layout(1, 4, 4)
    result = layout.owner(torch.tensor([0, 5, -1]))
    assert isinstance(result, torch.Tensor) and result.tolist() == [0, 1, -1]
    slots = layout.slot_mapping(torch.arange(4), torch.tensor([[9]]), 1)
    assert isinstance(slots, torch.Tensor) and slots.tolist() == [-1, 36, -1, -1]


def test_print_compare_fingerprint_pickle():
    a = dcp_layout(1, 4, 64)
    assert repr(a) == "dcp_layout(interleave=1, world_size=4, page_size=64)"
    assert eval(repr(a)) == a
    for other in (dcp_layout(2, 4, 64), dcp_layout(1, 8, 64), dcp_layout(1, 4, 32)):
        assert a != other and a.fingerprint != other.fingerprint
    assert a == dcp_layout(1, 4, 64) and hash(a) == hash(dcp_layout(1, 4, 64))
    assert a.fingerprint == reference.fingerprint(repr(a)) == "d972a2e7de229534"
    assert pickle.loads(pickle.dumps(a)) == a == copy.deepcopy(a)
    assert a.transferable_pages is False and dcp_layout(64, 4, 64).transferable_pages
    with pytest.raises(AttributeError):
        a.page_size = 32


def test_refusals_at_construction_b_17():
    for name, sizes in {"interleave": (0, 2, 4), "world_size": (1, 0, 4), "page_size": (1, 2, 0)}.items():
        with pytest.raises(ValueError, match=f"dcp_layout: {name} is 0, needs at least 1"):
            dcp_layout(*sizes)
    with pytest.raises(ValueError, match=r"page_size is 10, needs a multiple of interleave = 4 .* page_size: 8 or 12"):
        dcp_layout(4, 2, 10)
    with pytest.raises(ValueError, match=r"page_size is 4, .* nearest valid page_size: 8, or interleave 1 or 4"):
        dcp_layout(8, 2, 4)
    with pytest.raises(ValueError, match=r"page_size \* world_size is 4294967296, needs at most 2147483647"):
        dcp_layout(1, 1 << 16, 1 << 16)
    with pytest.raises(ValueError, match=r"overflows 64 bits"):
        dcp_layout(1, 1 << 40, 1 << 40)


def test_refusals_of_the_maps():
    layout = dcp_layout(1, 4, 4)
    with pytest.raises(IndexError, match=r"owner: positions row 1, column 0 is -2, needs at least 0, or -1 for none"):
        layout.owner(np.array([[0, 1], [-2, 3]]))
    with pytest.raises(IndexError, match=r"local_len: lengths row 0, column 2 is -1, needs at least 0; give padding"):
        layout.local_len(np.array([3, 0, -1]))
    with pytest.raises(IndexError, match=r"rank is 4, needs 0 to 3 \(world_size = 4\)"):
        layout.local_len(np.array([3]), 4)
    with pytest.raises(IndexError, match=r"rank is -1, needs 0 to 3"):
        layout.logical(-1, np.array([3]))
    with pytest.raises(TypeError, match=r"cannot be interpreted as an integer"):
        layout.logical(None, np.array([3]))
    with pytest.raises(IndexError, match=r"is 2147483647, its position does not fit int32"):
        layout.logical(0, np.array([2**31 - 1], np.int32))
    with pytest.raises(TypeError, match=r"has dtype float64, needs int32 or int64"):
        layout.owner(np.array([1.0]))
    with pytest.raises(TypeError, match=r"is a list, needs a NumPy array"):
        layout.owner([1, 2])
    with pytest.raises(ValueError, match=r"length is -1, needs at least 0"):
        layout.local_window(0, -1, 0)


def test_the_lowest_bad_value_is_named_with_any_threads():
    layout = dcp_layout(1, 4, 4)
    p = np.zeros(200_000, np.int32)
    p[[70_000, 150_000]] = -7
    for _ in range(3):
        with pytest.raises(IndexError, match=r"row 0, column 70000 is -7"):
            layout.owner(p)

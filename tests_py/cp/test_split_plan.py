"""Properties that hold for every layout and flavor, and the independent twin."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsespan.reference.cp_split as reference
from sparsespan.cp import DECODE, PAD, PREFILL, split_plan

SCHEMES = ("zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat", "thd_even")
DECODE_PAD = 3
FLAVORS = {
    "sglang": ("zigzag", "interleave", "contiguous"),
    "vllm": ("zigzag_padded", "ceil_chunk"),
    "vllm_ascend": ("zigzag_padded", "ceil_chunk", "contiguous_flat"),
}


@st.composite
def batches(draw, scheme=None):
    """A ragged batch: (scheme, lengths, prefixes, N, kinds per row or None, pad_to or None)."""
    scheme = scheme or draw(st.sampled_from(SCHEMES))
    n = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 16]))
    edges = st.sampled_from([0, 1, n - 1, n, n + 1, 2 * n - 1, 2 * n, 4 * n])
    lengths = draw(st.lists(st.one_of(edges, st.integers(0, 70)), max_size=6))
    with_kinds = draw(st.booleans())
    # Of a prefill request the kind PAD pads the second half, of a decode request DECODE_PAD does.
    choice = st.sampled_from([PREFILL, PREFILL, DECODE, PAD, DECODE_PAD])
    modes = [draw(choice) if with_kinds else PREFILL for _ in lengths]
    if scheme == "thd_even":
        lengths = [length * (1 if mode in (DECODE, DECODE_PAD) else 2 * n) for length, mode in zip(lengths, modes)]
    kinds = None
    if with_kinds:
        kinds = []
        for length, mode in zip(lengths, modes):
            real = {PAD: length // 2, DECODE_PAD: (length + 1) // 2}.get(mode, length)
            kinds += [DECODE if mode in (DECODE, DECODE_PAD) else PREFILL] * real + [PAD] * (length - real)
    prefix = [draw(st.sampled_from([0, 1, 63, 5000])) for _ in lengths]
    pad_to = sum(lengths) + draw(st.integers(0, 3 * n)) if draw(st.booleans()) else None
    return scheme, lengths, prefix, n, kinds, pad_to


def cumulative(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def check(plan, kinds):
    """Everything that must hold for one plan, whatever it was made from."""
    n, total, cu = plan.world_size, plan.num_rows, plan.cu_seqlens
    kinds = np.zeros(total, np.int64) if kinds is None else np.asarray(kinds)
    # One entry more at the end, so that row -1 is padding of no request.
    kinds = np.append(kinds, PAD)
    request = np.append(np.repeat(np.arange(plan.num_requests), np.diff(cu)), -1)
    whole = np.append(plan.replicated, False)[request]
    every = [plan.rank_rows(r) for r in range(n)]
    assert [len(rows) for rows in every] == plan.counts.tolist()
    assert plan.padded_len >= plan.counts.max()
    # Each split row is on exactly one rank, each replicated row once on every rank.
    copies = np.bincount(np.concatenate(every)[np.concatenate(every) >= 0], minlength=total)
    np.testing.assert_array_equal(copies, np.where(whole[:-1], n, 1))
    # Gathering and restoring is the identity; rank 0's copy is the one that counts.
    x = np.append(np.arange(total) + 0.5, np.nan)
    gathered = np.full((n, plan.padded_len), np.nan)
    for r, rows in enumerate(every):
        gathered[r, : len(rows)] = np.where((r > 0) & whole[rows], np.inf, x[rows])
    np.testing.assert_array_equal(gathered.ravel()[plan.restore_index], x[:-1])
    np.testing.assert_array_equal(plan.owner, plan.restore_index // max(plan.padded_len, 1))
    check_rows(plan, every, kinds, request)
    check_sums(plan, kinds[:-1])


def check_rows(plan, every, kinds, request):
    total, cu = plan.num_rows, plan.cu_seqlens
    written = np.zeros(total, np.int64)
    slots = np.arange(total) * 3 + 7
    for r, rows in enumerate(every):
        real = kinds[rows] != PAD
        s = request[rows[real]]
        i = rows[real] - cu[s]
        np.testing.assert_array_equal(plan.positions(r)[real], plan.prefix_lens[s] + i)
        np.testing.assert_array_equal(plan.row_to_request(r), np.where(real, request[rows], -1))
        # Causal: a row sees the packed keys of its request up to its own, and nothing else; padding sees nothing.
        ks, ke = plan.ks_ke(r)
        np.testing.assert_array_equal(ks[real], plan.k_starts[s])
        np.testing.assert_array_equal(ke[real] - 1, plan.k_starts[s] + plan.positions(r)[real])
        assert (ke[real] <= plan.k_starts[s + 1]).all()
        assert not ks[~real].any() and not ke[~real].any()
        np.testing.assert_array_equal(plan.context_lens(r), ke - ks)
        # No padding row reaches a cache, and every real row reaches it once.
        mapped = plan.slot_mapping(slots, r)
        assert (mapped[~real] == -1).all()
        np.testing.assert_array_equal(mapped >= 0, plan.kv_write_mask(r))
        written[rows[mapped >= 0]] += 1
        np.testing.assert_array_equal(mapped[mapped >= 0], slots[rows[mapped >= 0]])
        check_lengths(plan, r, rows, real)
    np.testing.assert_array_equal(written, kinds[:-1] != PAD)


def check_lengths(plan, r, rows, real):
    """Segments, cumulative lengths and kept requests agree with the rows and so with each other."""
    segments = plan.segments(r)
    covered = np.concatenate([np.arange(a, a + m) for a, m in zip(segments.q_start, segments.q_len)] or [[]])
    np.testing.assert_array_equal(covered, np.flatnonzero(real))
    for s, start, q, kv in zip(segments.request, segments.q_start, segments.q_len, segments.kv_len):
        seen = kv - q + np.arange(q) + 1  # bottom-right causal
        np.testing.assert_array_equal(plan.context_lens(r)[start : start + q], seen)
        assert (plan.row_to_request(r)[start : start + q] == s).all()
    np.testing.assert_array_equal(plan.kept_requests(r), np.unique(segments.request))
    counts = plan.request_counts(r)
    assert counts.sum() == plan.real_counts[r] == real.sum()
    np.testing.assert_array_equal(np.flatnonzero(counts), plan.kept_requests(r))
    q, kv = plan.actual_seq_q(r), plan.actual_seq_kv(r)
    assert q.shape == kv.shape and (kv >= 0).all()
    each = np.diff(q, axis=-1, prepend=0)
    assert (each >= 0).all() and each.sum() == real.sum()
    np.testing.assert_array_equal(kv > 0, each > 0)
    front, back = plan.front_back(r)
    np.testing.assert_array_equal(np.sort(np.concatenate([front, back])), np.flatnonzero(real))


def check_sums(plan, kinds):
    split = ~np.repeat(plan.replicated, np.diff(plan.cu_seqlens)) & (kinds != PAD)
    whole = int(plan.real_lens[plan.replicated].sum())
    assert plan.real_counts.sum() == split.sum() + plan.world_size * whole
    last = plan.cu_seqlens[:-1] + plan.real_lens - 1
    there = plan.real_lens > 0
    np.testing.assert_array_equal(plan.last_row_index[there], plan.restore_index[last[there]])
    np.testing.assert_array_equal(plan.last_row_owner[there], plan.owner[last[there]])
    assert (plan.last_row_index[~there] == -1).all() and (plan.last_row_owner[~there] == -1).all()


def equals_twin(plan, twin):
    np.testing.assert_array_equal(plan.counts, twin.counts)
    assert plan.padded_len == twin.padded_len
    np.testing.assert_array_equal(plan.restore_index, twin.restore_index)
    np.testing.assert_array_equal(plan.last_row_owner, twin.last_row_owner)
    np.testing.assert_array_equal(plan.rank_costs(), twin.rank_costs())
    np.testing.assert_array_equal(plan.rank_costs("attention", 64), twin.rank_costs(64))
    slots = np.arange(plan.num_rows) + 100
    for r in range(plan.world_size):
        for name in ("rank_rows", "positions", "row_to_request", "request_counts", "kept_requests"):
            np.testing.assert_array_equal(getattr(plan, name)(r), getattr(twin, name)(r), err_msg=name)
        np.testing.assert_array_equal(plan.ks_ke(r), twin.ks_ke(r))
        np.testing.assert_array_equal(plan.slot_mapping(slots, r), twin.slot_mapping(slots, r))
        q, kv = twin.actual_seq(r)
        np.testing.assert_array_equal(plan.actual_seq_q(r), q)
        np.testing.assert_array_equal(plan.actual_seq_kv(r), kv)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_random_batches(scheme):
    @settings(max_examples=80)
    @given(batches(scheme))
    def run(batch):
        _, lengths, prefix, n, kinds, pad_to = batch
        args = (scheme, cumulative(lengths), prefix, n, kinds, pad_to)
        plan = split_plan(*args)
        check(plan, kinds)
        equals_twin(plan, reference.split_plan(*args))
        if pad_to is not None and not plan.replicated.any():
            assert plan.counts.min() == plan.counts.max() >= -(-pad_to // n)

    run()


@pytest.mark.parametrize("flavor", FLAVORS)
@settings(max_examples=80)
@given(data=st.data())
def test_random_batches_of_flavors(flavor, data):
    scheme = data.draw(st.sampled_from(FLAVORS[flavor]))
    n = data.draw(st.sampled_from([2, 3, 4, 8]))
    decodes = data.draw(st.integers(0, 0 if flavor == "sglang" else 3))
    # SGLang wants 2N rows of every request; the others take any length.
    least = 2 * n if flavor == "sglang" else 0
    lengths = data.draw(st.lists(st.integers(least, 60), min_size=1, max_size=4))
    kinds = [DECODE] * decodes + [PREFILL] * sum(lengths)
    lengths = [1] * decodes + lengths
    prefix = [data.draw(st.sampled_from([0, 9, 100])) for _ in lengths]
    pad_to = data.draw(st.sampled_from([None, sum(lengths) + 5]))
    args = (scheme, cumulative(lengths), prefix, n, kinds, pad_to, flavor)
    plan = split_plan(*args)
    check(plan, kinds)
    equals_twin(plan, reference.split_plan(*args))
    for r in range(n):
        plan.engine_metadata(r)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("n", [1, 2, 7, 64, 1024])
def test_edge_lengths(scheme, n):
    lengths = [0, 1, n - 1, n, 2 * n - 1, 2 * n, 0, 2 * n + 1]
    if scheme == "thd_even":
        lengths = [0, 2 * n, 0, 4 * n]
    for batch in ([], [0], [0, 0], lengths):
        plan = split_plan(scheme, cumulative(batch), None, n)
        rows = np.concatenate([plan.rank_rows(r) for r in range(n)])
        np.testing.assert_array_equal(np.sort(rows[rows >= 0]), np.arange(plan.num_rows))
        gathered = np.full((n, plan.padded_len), -1)
        for r in range(n):
            gathered[r, : plan.counts[r]] = plan.rank_rows(r)
        np.testing.assert_array_equal(gathered.ravel()[plan.restore_index], np.arange(plan.num_rows))
    if n <= 64:
        check(plan, None)


def test_exhaustive_small():
    """Every pair of lengths up to 2N + 2 for N = 1 to 4, every scheme."""
    cases = 0
    for n in range(1, 5):
        for a in range(2 * n + 3):
            for b in range(2 * n + 3):
                for scheme in SCHEMES[:-1]:
                    check(split_plan(scheme, [0, a, a + b], [0, 3], n), None)
                    cases += 1
    assert cases == 6 * (25 + 49 + 81 + 121)


def test_the_twin_is_independent():
    assert "_core" not in Path(reference.__file__).read_text()

"""Plans carried out in memory: every byte the decode layout needs arrives exactly once, and no other byte moves."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespan import cp
from sparsespan.reference import cp_transfer as reference

KV, INDEX = 5, 3  # bytes of a token in a layer, small so that whole caches fit in a test


@st.composite
def sides(draw, decode):
    dcp = draw(st.sampled_from([1, 1, 2, 3]))
    kv = "full" if decode else draw(st.sampled_from(["full", "layer_split", "interleave"]))
    if not decode and kv != "interleave":
        dcp = 1
    interleave = draw(st.sampled_from([1, 2, 3]))
    return cp.KvSide(
        tp=dcp * draw(st.integers(1, 3)), cp=1 if decode else draw(st.integers(1, 4)), pp=draw(st.integers(1, 3)),
        dcp=dcp, kv=kv, interleave=interleave, page_size=interleave * draw(st.integers(1, 3)),
        index_k=draw(st.sampled_from(["sharded", "replicated"])),
    )  # fmt: skip


@st.composite
def plans(draw, max_length=60):
    num_layers = draw(st.integers(0, 4))
    lengths = draw(st.lists(st.integers(0, max_length), max_size=3))
    present = [draw(st.integers(0, n)) for n in lengths]
    owners = draw(st.none() | st.sets(st.integers(0, max(num_layers - 1, 0))).map(sorted))
    if num_layers == 0:
        owners = None
    return cp.transfer_plan(
        draw(sides(False)), draw(sides(True)), lengths, num_layers=num_layers, kv_bytes=draw(st.sampled_from([KV, 0])),
        index_bytes=draw(st.sampled_from([INDEX, 0])), present=present, index_layers=owners,
        spread=draw(st.sampled_from(["balanced", "pages", "request", "first"])),
    )  # fmt: skip


@settings(max_examples=250)
@given(plans())
def test_each_needed_row_arrives_exactly_once_from_a_holder(plan):
    rows = reference.rows_of_plan(plan)
    needed = reference.needed_rows(plan)
    delivered = [row[1:] for row in rows]
    assert len(delivered) == len(set(delivered)), "a row arrives twice"
    assert set(delivered) == needed
    for src, _, _, part, layer, p in rows:
        assert reference.holds(plan.prefill, False, plan.num_layers, part, src, layer, p)
    size = {"kv": KV, "index": INDEX}
    assert plan.total_bytes == sum(size[row[2]] for row in delivered)


def local_length(block, ranks, cls, length):
    return sum(1 for p in range(length) if p // block % ranks == cls)


class Machine:
    """The caches of one side: [part, layer, slot, byte] per rank, with a shuffled page table per request and part."""

    def __init__(self, plan, side, decode, rng):
        self.plan, self.side, self.decode = plan, side, decode
        self.tables, self.caches, self.writes = {}, {}, {}
        for rank in range(side.world_size):
            for part, size in (("kv", plan.kv_bytes), ("index", plan.index_bytes)):
                pages = []
                for length in plan.lengths:  # pages for the whole request: the busiest class of any rank
                    block, ranks = side.shards(part, decode)
                    most = max(local_length(block, ranks, c, length) for c in range(ranks))
                    pages.append(-(-most // side.page_size))
                ids = rng.permutation(sum(pages) + 2)[: sum(pages)]
                self.tables[rank, part] = np.split(ids, np.cumsum(pages)[:-1]) if pages else []
                shape = (plan.num_layers, (sum(pages) + 2) * side.page_size, size)
                self.caches[rank, part] = np.zeros(shape, np.uint8)
                self.writes[rank, part] = np.zeros(shape[:2], np.int64)

    def slot(self, rank, part, s, p):
        block, ranks = self.side.shards(part, self.decode)
        local = p // (block * ranks) * block + p % block
        return (
            self.tables[rank, part][s][local // self.side.page_size] * self.side.page_size + local % self.side.page_size
        )

    def owned(self, rank, part):
        """Every (request, layer, position) of the layout, present tokens included."""
        plan = self.plan
        layers = range(plan.num_layers) if part == "kv" or plan.index_layers is None else plan.index_layers
        for s, length in enumerate(plan.lengths):
            for layer in layers:
                for p in range(length):
                    if reference.holds(self.side, self.decode, plan.num_layers, part, rank, layer, p):
                        yield s, layer, p


def content(part, s, layer, p, size):
    return np.frombuffer((hash((part == "kv", s, layer, p)) & (2**64 - 1)).to_bytes(8, "little"), np.uint8)[:size]


@settings(max_examples=120)
@given(plans(max_length=30), st.integers(0, 2**32 - 1))
def test_a_plan_carried_out_gives_the_decode_caches(plan, seed):
    rng = np.random.default_rng(seed)
    source, target = Machine(plan, plan.prefill, False, rng), Machine(plan, plan.decode, True, rng)
    sizes = {"kv": plan.kv_bytes, "index": plan.index_bytes}
    for (rank, part), cache in source.caches.items():
        for s, layer, p in source.owned(rank, part):
            cache[layer, source.slot(rank, part, s, p)] = content(part, s, layer, p, sizes[part])
    moved = 0
    for i, t in enumerate(plan):
        src_slots, dst_slots = plan.slots(i, source.tables[t.src, t.part][t.request],
                                          target.tables[t.dst, t.part][t.request])  # fmt: skip
        for layer in range(t.layer_begin, t.layer_end):
            block = source.caches[t.src, t.part][layer, src_slots]
            target.caches[t.dst, t.part][layer, dst_slots] = block
            np.add.at(target.writes[t.dst, t.part], (layer, dst_slots), 1)
            moved += block.size
    assert moved == plan.total_bytes == plan.sent_bytes().sum() == plan.received_bytes().sum()
    for (rank, part), cache in target.caches.items():
        expected, writes = np.zeros_like(cache), np.zeros_like(target.writes[rank, part])
        for s, layer, p in target.owned(rank, part) if sizes[part] else ():
            if p >= plan.present[s]:
                expected[layer, target.slot(rank, part, s, p)] = content(part, s, layer, p, sizes[part])
                writes[layer, target.slot(rank, part, s, p)] += 1
        np.testing.assert_array_equal(target.writes[rank, part], writes)
        np.testing.assert_array_equal(cache, expected)


@settings(max_examples=100)
@given(plans())
def test_lines_say_what_they_move(plan):
    for i, t in enumerate(plan):
        positions = plan.positions(i)
        assert len(positions) == t.tokens > 0 and (np.diff(positions) > 0).all()
        assert t.start <= positions[0] and positions[-1] < t.stop
        size = plan.kv_bytes if t.part == "kv" else plan.index_bytes
        assert t.bytes == t.tokens * size * (t.layer_end - t.layer_begin)
        for side, decode, begin, end in ((plan.prefill, False, t.src_page_begin, t.src_page_end),
                                         (plan.decode, True, t.dst_page_begin, t.dst_page_end)):  # fmt: skip
            block, ranks = side.shards(t.part, decode)
            pages = (positions // (block * ranks) * block + positions % block) // side.page_size
            assert (pages[0], pages[-1] + 1) == (begin, end)
    assert plan.traffic().sum() == plan.total_bytes


@settings(max_examples=100)
@given(plans(), plans())
def test_plans_compare_and_have_fingerprints(a, b):
    again = cp.transfer_plan(a.prefill, a.decode, a.lengths, num_layers=a.num_layers, kv_bytes=a.kv_bytes,
                             index_bytes=a.index_bytes, present=a.present, index_layers=a.index_layers,
                             spread=a.spread)  # fmt: skip
    assert again == a and again.fingerprint == a.fingerprint and a.diff(again) == []
    assert (a == b) == (a.fingerprint == b.fingerprint) == (a.diff(b) == [])
    assert json.loads(json.dumps(a.to_dict()))["figures"] == "modelled"
    assert "modelled" in str(a)


@settings(max_examples=150)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 400), st.integers(1, 5))
def test_balanced_loads_differ_by_at_most_one_page(cp_size, tp, decode_tp, length, page):
    sides = cp.KvSide(cp=cp_size, tp=tp, page_size=page), cp.KvSide(tp=decode_tp, page_size=page)
    plan = cp.transfer_plan(*sides, [length], num_layers=1, kv_bytes=1, index_bytes=0)
    pages = np.zeros(plan.prefill.world_size, int)
    for t in plan:
        pages[t.src] += t.src_page_end - t.src_page_begin
    assert pages.max() - pages.min() <= 1
    # Wrap-around touches few pairs: no more than senders + receivers - 1.
    assert len(plan) <= plan.prefill.world_size + decode_tp - 1

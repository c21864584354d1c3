"""The demo's journey: chunks of prefill over paged fp8 caches, then decode steps, checked on sampled rows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import attention, indexer, quant, transform
from .._runtime import build_info
from ..reference import attention as ref_attention
from ..reference import indexer as ref_indexer
from ..testing import compare_attn, compare_topk
from ..testing._model_inputs import BF16, Inputs, ModelDims, make_inputs, rope_table
from ._meter import Meter

__all__ = ["Demo"]

PAGE = 64
KV_LAYOUT = "fp8_656"
INDEX_LAYOUT = "index_132"


class Demo:
    """One request's caches and the ops that fill and read them. All arithmetic is sparsespan's."""

    def __init__(self, model: ModelDims, length: int, chunk: int, seed: int, tick: Callable[[int], None]) -> None:
        self.model = model
        self.chunk = chunk
        self.seed = seed
        self.tick = tick
        self.meter = Meter()
        pages = -(-length // PAGE)
        rng = np.random.default_rng(seed)
        # Pages are handed out in a random order, as a running engine's pool does.
        self.block_table = rng.permutation(pages).astype(np.int32)[None, :]
        self.kv = np.zeros((pages, PAGE, 656), np.uint8)
        self.index_k = np.zeros((pages, PAGE, 132), np.uint8)
        self.cos_sin = rope_table(model, length)
        self.rng = rng

    def _slots(self, positions: np.ndarray) -> np.ndarray:
        return self.block_table[0, positions // PAGE].astype(np.int64) * PAGE + positions % PAGE

    def _prepare(self, phase: str, x: Inputs, positions: np.ndarray) -> tuple[Any, Any, Any]:
        """RoPE, Hadamard, quantisation and cache writes. Returns q (latent, rope), index q fp8, index weights."""
        m, tokens, model = self.meter, len(positions), self.model
        shape = f"[{tokens}, {model.heads}, 64]"
        q_rope = m.time(
            phase,
            "apply_rope q",
            shape,
            lambda: transform.apply_rope(x.q_rope, positions, self.cos_sin, True),
            moved=2.0 * x.q_rope.nbytes,
        )
        k_rope = transform.apply_rope(x.k_rope, positions, self.cos_sin, True)
        index_q, index_k = self._rotate_index(phase, x, positions)
        q8, q_scale = m.time(
            phase,
            "act_quant index q",
            f"[{tokens}, {model.index_heads}, 128]",
            lambda: quant.act_quant(index_q, scale_fmt="ue8m0"),
            moved=1.5 * index_q.nbytes,
        )
        slots = self._slots(positions)
        m.time(
            phase,
            "concat_and_cache_mla",
            f"[{tokens}, 576] -> {KV_LAYOUT}",
            lambda: quant.concat_and_cache_mla(x.c_kv, k_rope, self.kv, slots, KV_LAYOUT, PAGE),
            moved=tokens * (1152.0 + 656.0),
        )
        m.time(
            phase,
            "indexer_k_quant_and_cache",
            f"[{tokens}, 128] -> {INDEX_LAYOUT}",
            lambda: quant.indexer_k_quant_and_cache(index_k, self.index_k, slots, PAGE, INDEX_LAYOUT),
            moved=tokens * (256.0 + 132.0),
        )
        weights = x.index_weights * q_scale.reshape(tokens, model.index_heads)
        return (x.q_latent, q_rope), q8, weights

    def _rotate_index(self, phase: str, x: Inputs, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The indexer's own order: RoPE on the first 64 dims, then Hadamard on all 128."""
        interleaved = self.model.index_rope_interleaved
        rotated = []
        for value in (x.index_q, x.index_k):
            pe = transform.apply_rope(np.ascontiguousarray(value[..., :64]), positions, self.cos_sin, interleaved)
            rotated.append(np.concatenate([pe, value[..., 64:]], axis=-1))
        q = self.meter.time(
            phase,
            "hadamard index q",
            f"{list(x.index_q.shape)}",
            lambda: transform.hadamard_transform(rotated[0], 128**-0.5),
            moved=2.0 * x.index_q.nbytes,
        )
        return q, transform.hadamard_transform(rotated[1], 128**-0.5)

    def _attend(self, phase: str, q: Any, slots: np.ndarray, valid: int) -> Any:
        model, tokens = self.model, len(slots)
        return self.meter.time(
            phase,
            "sparse_mla",
            f"[{tokens}, {model.heads}, 576] x {model.topk} {KV_LAYOUT}",
            lambda: attention.sparse_mla(q, self.kv, slots, model.sm_scale, layout=KV_LAYOUT, page_size=PAGE),
            flops=2.0 * model.heads * valid * (576 + 512),
            moved=valid * 656.0,
        )

    def prefill(self, length: int) -> None:
        """Chunks of one prompt."""
        for start in range(0, length, self.chunk):
            self._prefill_chunk(start, min(length, start + self.chunk))

    def _prefill_chunk(self, start: int, stop: int) -> None:
        """Gather the index keys once a chunk, select, translate, attend."""
        positions = np.arange(start, stop)
        tokens = stop - start
        q, q8, weights = self._prepare("prefill", make_inputs(self.model, tokens, (self.seed, start)), positions)
        k8, k_scale = self.meter.time(
            "prefill",
            "gather_indexer_k",
            f"[{stop}, 128]",
            lambda: quant.gather_indexer_k(self.index_k, self.block_table, np.array([0, stop]), PAGE, INDEX_LAYOUT),
            moved=2.0 * stop * 132,
        )
        ks, ke = np.zeros(tokens, np.int32), (positions + 1).astype(np.int32)
        packed = self.meter.time(
            "prefill",
            "select",
            f"[{tokens}, {self.model.index_heads}, 128] x {stop}",
            lambda: indexer.select(q8, k8, weights, ks, ke, k_scale=k_scale, topk=self.model.topk),
            flops=2.0 * self.model.index_heads * 128 * float(ke.sum()),
            moved=stop * 132.0,
        )
        slots = indexer.to_slots(packed, np.zeros(tokens, np.int32), self.block_table, PAGE, ks=ks)
        out, lse, _ = self._attend("prefill", q, slots, int((packed >= 0).sum()))
        self._check("prefill", q, q8, weights, (k8, k_scale), ke, packed, slots, (out, lse))
        self.tick(tokens)

    def decode(self, start: int, steps: int) -> None:
        """One token a step; the first and the last are checked."""
        for position in range(start, start + steps):
            self._decode_step(position, position in (start, start + steps - 1))

    def _decode_step(self, position: int, checked: bool) -> None:
        """Scores straight from the paged index cache."""
        x = make_inputs(self.model, 1, (self.seed, position, 1))
        q, q8, weights = self._prepare("decode", x, np.array([position]))
        lens = np.array([position + 1], np.int32)
        logical = self.meter.time(
            "decode",
            "paged_select",
            f"[1, {self.model.index_heads}, 128] x {position + 1}",
            lambda: indexer.paged_select(
                q8, self.index_k, weights, lens, self.block_table, PAGE, topk=self.model.topk, layout=INDEX_LAYOUT
            ),
            flops=2.0 * self.model.index_heads * 128 * (position + 1),
            moved=(position + 1) * 132.0,
        )
        slots = indexer.to_slots(logical, np.zeros(1, np.int32), self.block_table, PAGE)
        out, lse, _ = self._attend("decode", q, slots, int((logical >= 0).sum()))
        if checked:
            cu = np.array([0, position + 1])
            keys = quant.gather_indexer_k(self.index_k, self.block_table, cu, PAGE, INDEX_LAYOUT)
            self._check("decode", q, q8, weights, keys, lens, logical, slots, (out, lse))
        self.tick(1)

    def _check(self, phase, q, q8, weights, keys, lengths, selected, slots, result) -> None:  # type: ignore[no-untyped-def]
        """Hold one row of this call against the float64 references on the same (dequantised) inputs."""
        row = np.array([self.rng.integers(len(selected))])
        k8, k_scale = keys
        length = int(lengths[row[0]])
        logits = ref_indexer.mqa_logits(
            q8[row], k8[:length], weights[row], np.zeros(1, np.int64), np.array([length]), k_scale=k_scale[:length]
        )
        op = "select" if phase == "prefill" else "paged_select"
        self._hold(
            phase,
            op,
            "the best scores: 2e-4",
            _edge_gap(selected[row[0]], logits[0]),
            lambda: compare_topk(selected[row], logits, self.model.topk, lengths=np.array([length])),
        )
        used = slots[row][slots[row] >= 0]
        kv_rows = quant.read_kv(self.kv, used, KV_LAYOUT, PAGE)
        q_row = np.concatenate([q[0][row], q[1][row]], axis=-1).astype(BF16)
        packed = np.arange(len(used), dtype=np.int32)[None, :]
        want = ref_attention.sparse_mla(q_row, kv_rows, packed, self.model.sm_scale)[:2]
        got = (result[0][row], result[1][row])
        out_abs = _out_abs(kv_rows)
        self._hold(
            phase,
            "sparse_mla",
            f"out {out_abs:.2g} or 2.4%, lse 3e-5",
            float(np.abs(np.asarray(got[0], np.float64) - want[0]).max()),
            lambda: compare_attn(got, want, out_abs=out_abs),
        )

    def _hold(self, phase: str, op: str, bound: str, error: float, compare: Callable[[], None]) -> None:
        """Book one comparison; a failure is told in words and fails the line."""
        passed = True
        try:
            compare()
        except AssertionError as failure:
            print(f"{phase} {op}: {failure}", file=sys.stderr)
            passed = False
        self.meter.line(phase, op).check(error, bound, passed)


def _out_abs(kv_rows: np.ndarray) -> float:
    """FlashMLA's bound on out; at levels that round the weights to bfloat16 their share of values of this size.

    Rounding moves a weight by 2^-9 of itself at most, so an output by 2^-9 of the weighted mean of |v|. Twice the plain
    mean leaves room for outputs whose keys are larger than most.
    """
    narrow = build_info()["isa"].startswith(("avx512_bf16", "amx"))
    return max(8e-4, 2.0**-8 * float(np.abs(kv_rows[:, :512].astype(np.float64)).mean())) if narrow else 8e-4


def _edge_gap(selected: np.ndarray, logits: np.ndarray) -> float:
    """How far the chosen scores fall short of the best ones, both sorted: 0 where the sets are equal."""
    chosen = np.sort(logits[selected[selected >= 0]])[::-1]
    best = np.sort(logits)[::-1][: len(chosen)]
    return float(np.abs(chosen - best).max(initial=0.0))

"""fp8 in and out, and the KV caches: bound by bandwidth, compared with a copy and with what NumPy or torch composes."""

from __future__ import annotations

import numpy as np
from peers import BF16, FP8, to_torch, torch_or_none
from timing import compare

from sparsespan import quant

PAGE = 64


def _dequant_rows(m: int, n: int):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((m, n), dtype=np.float32).astype(FP8)
    scale = np.exp2(rng.integers(-8, 0, (m // 128, n // 128))).astype(np.float32)
    out = np.empty((m, n), BF16)
    peers = {}
    torch = torch_or_none()
    if torch is not None:
        tw, ts = to_torch(w), torch.from_numpy(scale)

        def composed(tw=tw, ts=ts):  # blocks by views: nothing but the conversion and the product
            blocks = tw.view(m // 128, 128, n // 128, 128).to(torch.float32) * ts[:, None, :, None]
            return blocks.to(torch.bfloat16).view(m, n)

        peers["torch to, mul, to bf16"] = composed
    yield from compare(
        "weight_dequant", f"[{m}, {n}] -> bf16", lambda: quant.weight_dequant(w, scale, out=out), peers,
        moved=3.0 * w.size, copy=True,
    )  # fmt: skip


def _act_rows(count: int):
    x = np.random.default_rng(1).standard_normal((count, 7168), dtype=np.float32).astype(BF16)
    out = (np.empty(x.shape, FP8), np.empty((count, 56), np.float32))
    peers = {}
    torch = torch_or_none()
    if torch is not None:
        t = to_torch(x)

        def composed(t=t):
            blocks = t.float().view(count, 56, 128)
            scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 448
            return (blocks / scale).to(torch.float8_e4m3fn), scale

        peers["torch composed"] = composed
    yield from compare(
        "act_quant", f"[{count}, 7168] bf16", lambda: quant.act_quant(x, out=out), peers, moved=3.0 * x.size, copy=True
    )


def _cache_rows(tokens: int, quick: bool):
    rng = np.random.default_rng(2)
    c_kv = rng.standard_normal((tokens, 512), dtype=np.float32).astype(BF16)
    k_pe = rng.standard_normal((tokens, 64), dtype=np.float32).astype(BF16)
    slots = rng.permutation(tokens).astype(np.int64)
    wide = np.zeros((tokens // PAGE, PAGE, 576), BF16)
    narrow = np.zeros((tokens // PAGE, PAGE, 656), np.uint8)
    back = np.zeros_like(wide)
    write, read, convert = quant.concat_and_cache_mla, quant.read_kv, quant.convert_kv
    write(c_kv, k_pe, wide, slots, "bf16_576", PAGE)
    write(c_kv, k_pe, narrow, slots, "fp8_656", PAGE)
    both = tokens * (1152.0 + 656.0)
    yield from compare(
        "convert_kv", f"{tokens} tokens bf16_576 -> fp8_656",
        lambda: convert(wide, "bf16_576", "fp8_656", out=narrow), moved=both, copy=True,
    )  # fmt: skip
    yield from compare(
        "convert_kv", f"{tokens} tokens fp8_656 -> bf16_576",
        lambda: convert(narrow, "fp8_656", "bf16_576", out=back), moved=both, copy=True,
    )  # fmt: skip
    if quick:
        return
    yield from compare(
        "concat_and_cache_mla", f"{tokens} tokens fp8_656", lambda: write(c_kv, k_pe, narrow, slots, "fp8_656", PAGE),
        moved=both, copy=True,
    )  # fmt: skip
    rows_out = np.empty((tokens, 576), BF16)
    gathered = {"numpy take": lambda: np.take(wide.reshape(-1, 576), slots, axis=0, out=rows_out)}
    yield from compare(
        "read_kv", f"{tokens} slots bf16_576", lambda: read(wide, slots, "bf16_576", PAGE, out=rows_out), gathered,
        moved=tokens * 2304.0, copy=True,
    )  # fmt: skip
    yield from compare(
        "read_kv", f"{tokens} slots fp8_656", lambda: read(narrow, slots, "fp8_656", PAGE, out=rows_out),
        moved=both, copy=True,
    )  # fmt: skip
    keys = rng.standard_normal((tokens, 128), dtype=np.float32).astype(BF16)
    index = np.zeros((tokens // PAGE, PAGE, 132), np.uint8)
    yield from compare(
        "indexer_k_quant_and_cache", f"{tokens} tokens index_132",
        lambda: quant.indexer_k_quant_and_cache(keys, index, slots, PAGE), moved=tokens * 388.0, copy=True,
    )  # fmt: skip


def rows(quick: bool):
    yield from _dequant_rows(2048, 2048 if quick else 7168)
    if not quick:
        yield from _act_rows(2048)
    yield from _cache_rows(8192 if quick else 65536, quick)

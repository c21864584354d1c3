"""Cache layouts as Python objects, read from the core's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from .. import _core
from .._interop import call

__all__ = ["KvField", "KvLayout", "kv_layout", "kv_layout_names"]


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


@dataclass(frozen=True, repr=False)
class KvField:
    """One field of a token: ``count`` elements of ``dtype`` at byte ``offset``.

    The offset counts from the token's first byte; with ``page_tail`` from the token's place in the block behind the
    values of the whole page.
    """

    name: str
    dtype: np.dtype[Any]
    count: int
    offset: int
    page_tail: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the field per token."""
        return self.count * self.dtype.itemsize

    def __repr__(self) -> str:
        if self.page_tail:
            place = f"page_size * token_stride + {self.nbytes} * offset_in_page"
        else:
            place = f"{self.offset}..{self.offset + self.nbytes}"
        return f"{self.name}: {self.count} {self.dtype.name} at {place}"


@dataclass(frozen=True, repr=False)
class KvLayout:
    """The byte map of a cache layout; see :func:`kv_layout`.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
        Of the cache array ``[pages, page_size, width]``.
    width : int
        Elements of ``dtype`` per token.
    dim : int
        Values per token after decoding.
    decoded : numpy.dtype
        Of a decoded value.
    bytes_per_token : int
    fields : tuple of KvField
    """

    name: str
    dtype: np.dtype[Any]
    width: int
    dim: int
    decoded: np.dtype[Any]
    bytes_per_token: int
    fields: tuple[KvField, ...]

    @property
    def token_stride(self) -> int:
        """Bytes between neighbouring tokens of a page: fields at the page's tail do not count."""
        return sum(f.nbytes for f in self.fields if not f.page_tail)

    def zeros(self, pages: int, page_size: int) -> np.ndarray:
        """Return an empty cache, ``[pages, page_size, width]``."""
        return np.zeros((pages, page_size, self.width), self.dtype)

    def __repr__(self) -> str:
        head = f"KvLayout {self.name}: {self.bytes_per_token} bytes per token in {self.dtype.name} "
        head += f"[pages, page_size, {self.width}], decodes to {self.dim} {self.decoded.name}"
        return "\n  ".join([head, *map(repr, self.fields)])


def kv_layout_names() -> tuple[str, ...]:
    """Names that :func:`kv_layout` knows.

    Examples
    --------
    >>> from sparsespan.quant import kv_layout_names
    >>> kv_layout_names()
    ('f32_576', 'bf16_576', 'fp8_656', 'index_132', 'index_bf16', 'index_f32')
    """
    return tuple(_core.quant.kv_layout_names())


def kv_layout(name: str) -> KvLayout:
    """Return the byte map of a cache layout.

    Parameters
    ----------
    name : str
        One of :func:`kv_layout_names`.

    Raises
    ------
    ValueError
        If there is no such layout; the message lists those that exist.

    Notes
    -----
    ``fp8_656`` is FlashMLA's V3.2 token (vLLM ``fp8_ds_mla``): 512 e4m3, 4 float32 scales for 128 elements each, 64
    bfloat16 rope values. ``index_132`` is DeepGEMM's page: the values of all tokens, then all scales, so that a token's
    132 bytes do not lie together. The other layouts hold plain values.

    Examples
    --------
    >>> from sparsespan.quant import kv_layout
    >>> kv_layout("fp8_656")
    KvLayout fp8_656: 656 bytes per token in uint8 [pages, page_size, 656], decodes to 576 bfloat16
      latent: 512 float8_e4m3fn at 0..512
      scale: 4 float32 at 512..528
      rope: 64 bfloat16 at 528..656
    """
    known, dtype, width, dim, decoded, nbytes, fields = call(_core.quant.kv_layout, name)
    return KvLayout(
        known,
        _dtype(dtype),
        width,
        dim,
        _dtype(decoded),
        nbytes,
        tuple(KvField(f, _dtype(d), count, offset, tail) for f, d, count, offset, tail in fields),
    )

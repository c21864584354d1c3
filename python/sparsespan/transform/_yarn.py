"""Rotary frequencies, plain and by YaRN, their table and the softmax scale that goes with them."""

from __future__ import annotations

from typing import Any

from .. import _core
from .._interop import call

__all__ = ["yarn_cos_sin", "yarn_frequencies", "yarn_softmax_scale"]


def yarn_frequencies(
    dim: int = 64,
    *,
    base: float = 10000.0,
    factor: float = 1.0,
    original_max_position: int = 4096,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    arithmetic: str = "float32",
    out: Any = None,
) -> Any:
    """Angle per position of each of the ``dim / 2`` rotary pairs.

    Parameters
    ----------
    dim : int
        Rotary dims, even.
    base : float
        Theta: 10000 (DeepSeek-V3.2), 1e6 (GLM-5, GLM-5.1), 8e6 (GLM-5.2).
    factor : float
        Stretch of the context. 1 gives plain rope and the next three do nothing; DeepSeek-V3.2 uses 40. Whether a
        model stretches at all is the caller's to say: DeepSeek's own code does so only when the served length exceeds
        ``original_max_position``, transformers and vLLM whenever the checkpoint's config asks for YaRN.
    original_max_position : int
        Context length of the pretraining, in tokens.
    beta_fast, beta_slow : float
        Turns within the original context above which a pair keeps its frequency, and below which it is divided by
        ``factor``; in between the two are blended linearly over the pair's index.
    arithmetic : {"float32", "float64"}
        See Notes.
    out : array [dim / 2], optional
        Written instead of a new array.

    Returns
    -------
    array [dim / 2], float32 (float64 if ``arithmetic="float64"``)

    Raises
    ------
    TypeError
        If ``out`` has another dtype.
    ValueError
        If ``dim`` is odd, ``base <= 1``, ``factor < 1``, ``beta_slow <= 0``, ``beta_fast < beta_slow``, or ``out``
        does not fit.

    Notes
    -----
    ``f_i = base ** (-2 i / dim)``; with ``factor != 1``: ``f_i / factor * ramp_i + f_i * (1 - ramp_i)``,
    ``ramp_i = clip((i - low) / (high - low), 0, 1)``, ``low = floor(c(beta_fast))``, ``high = ceil(c(beta_slow))``,
    ``c(r) = dim * ln(original_max_position / (2 pi r)) / (2 ln(base))``, clamped to ``[0, dim - 1]``. Source:
    DeepSeek-V3.2 ``precompute_freqs_cis``; YaRN is arXiv 2309.00071.

    ``arithmetic="float32"`` rounds after every step as that function does, and gives its bits (the power is rounded
    correctly, which is what PyTorch's CPU power gives for the bases above). They matter: a last-bit change of a
    frequency moves the angle at position 131072 by up to 0.008. transformers and vLLM order the same steps otherwise
    and differ from it in the last bit. ``"float64"`` is the formula itself, for measuring what the others lose.

    Examples
    --------
    >>> from sparsespan.transform import yarn_frequencies
    >>> yarn_frequencies(64, factor=40)[[10, 16, 23]]
    array([5.6234129e-02, 5.5000004e-03, 3.3338038e-05], dtype=float32)
    """
    return call(
        _core.transform.yarn_frequencies,
        dim,
        base,
        factor,
        original_max_position,
        beta_fast,
        beta_slow,
        arithmetic,
        out=out,
    )


def yarn_cos_sin(
    max_positions: int,
    dim: int = 64,
    *,
    base: float = 10000.0,
    factor: float = 1.0,
    original_max_position: int = 4096,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    mscale: float = 1.0,
    mscale_all_dim: float = 1.0,
    arithmetic: str = "float32",
    out: Any = None,
    threads: int = 0,
) -> Any:
    """Table of cos and sin for :func:`apply_rope`.

    Parameters
    ----------
    max_positions : int
        Rows of the table: positions ``0 .. max_positions - 1``.
    dim, base, factor, original_max_position, beta_fast, beta_slow
        As for :func:`yarn_frequencies`; ``factor=1`` gives the table of plain rope.
    mscale, mscale_all_dim : float
        cos and sin are multiplied by ``m(mscale) / m(mscale_all_dim)``, ``m(s) = 0.1 * s * ln(factor) + 1``. Equal
        values (DeepSeek-V3.2 has 1 and 1) leave them alone; ``mscale_all_dim=0`` gives the amplitude of the paper.
    arithmetic : {"float32", "float64"}
        See Notes.
    out : array [max_positions, dim], float32, optional
        Written instead of a new array.
    threads : int
        0 takes :func:`sparsespan.num_threads`.

    Returns
    -------
    array [max_positions, dim], float32
        ``cos[dim / 2] | sin[dim / 2]`` in each row, as in vLLM's ``cos_sin_cache``.

    Raises
    ------
    TypeError
        If ``out`` has another dtype.
    ValueError
        As :func:`yarn_frequencies`; also if ``max_positions`` or an mscale is negative, or the size overflows.

    Notes
    -----
    ``"float32"`` follows DeepSeek-V3.2 ``precompute_freqs_cis``: ``angle = float32(position) * f_i`` rounded to
    float32 (near position 131072 that is up to 0.004 off the true angle, in the released code too), then cos and sin of
    that very angle in float64, rounded once. ``"float64"`` keeps frequency and angle in float64: the true
    values. Reference of the latter: :func:`sparsespan.reference.transform.yarn_cos_sin`.

    Examples
    --------
    >>> from sparsespan.transform import yarn_cos_sin
    >>> table = yarn_cos_sin(4096, 64, factor=40)  # DeepSeek-V3.2
    >>> table.shape, table[1, [0, 32]]
    ((4096, 64), array([0.5403023 , 0.84147096], dtype=float32))
    """
    return call(
        _core.transform.yarn_cos_sin,
        max_positions,
        dim,
        base,
        factor,
        original_max_position,
        beta_fast,
        beta_slow,
        mscale,
        mscale_all_dim,
        arithmetic,
        out=out,
        threads=threads,
    )


def yarn_softmax_scale(head_dim: int, factor: float = 1.0, mscale_all_dim: float = 1.0) -> float:
    """Softmax scale of attention under YaRN: ``head_dim ** -0.5 * m ** 2``.

    Parameters
    ----------
    head_dim : int
        Query-key dims of the expanded heads, nope and rope together: 192 (DeepSeek-V3.2), 256 (GLM-5). Not the 576 of
        the latent cache.
    factor : float
        As for :func:`yarn_frequencies`; 1 gives ``head_dim ** -0.5``.
    mscale_all_dim : float
        ``m = 0.1 * mscale_all_dim * ln(factor) + 1``.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If ``head_dim < 1``, ``factor < 1`` or ``mscale_all_dim < 0``.

    Notes
    -----
    Source: DeepSeek-V3.2 ``MLA.__init__``. It holds for MLA only: the indexer keeps its plain ``128 ** -0.5``.

    Examples
    --------
    >>> from sparsespan.transform import yarn_softmax_scale
    >>> round(yarn_softmax_scale(192, factor=40), 10)
    0.1352337789
    >>> yarn_softmax_scale(256)
    0.0625
    """
    return float(call(_core.transform.yarn_softmax_scale, head_dim, factor, mscale_all_dim))

"""Which layers own an indexer and which reuse the last one's choice."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

__all__ = ["index_share_layers"]

_WORDS = {"full": "full", "shared": "shared", "F": "full", "S": "shared"}


def _field(config: Any, name: str, default: Any = None) -> Any:
    value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return default if value is None else value


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"index_share_layers: {name} is {value!r}, needs an integer")
    value = operator.index(value)
    if value < least:
        raise ValueError(f"index_share_layers: {name} is {value}, needs at least {least}")
    return int(value)


def _explicit(name: str, kinds: Any, layers: int) -> list[str]:
    if not isinstance(kinds, (str, list, tuple)):
        raise TypeError(f"index_share_layers: {name} is {kinds!r}, needs a list or a string")
    if len(kinds) != layers:
        raise ValueError(f"index_share_layers: {name} has {len(kinds)} entries, needs num_hidden_layers = {layers}")
    for layer, kind in enumerate(kinds):
        if not isinstance(kind, str) or kind not in _WORDS:
            raise ValueError(f'index_share_layers: {name} has {kind!r} at layer {layer}, needs "full" or "shared"')
    return [_WORDS[kind] for kind in kinds]


def index_share_layers(config: Any) -> list[str]:
    """Tell for each layer whether it runs an indexer ("full") or reuses the last full layer's indices ("shared").

    Parameters
    ----------
    config : mapping or object with attributes
        ``num_hidden_layers``, and the first of these that is there: ``indexer_types`` (a list of "full" and "shared"),
        ``index_topk_pattern`` (a string of F and S), ``index_topk_freq`` (default 1: every layer is full) with
        ``index_skip_topk_offset`` (default 2).

    Returns
    -------
    list of str
        "full" or "shared" per layer. The first layer is always full.

    Raises
    ------
    TypeError
        If a number is no integer.
    ValueError
        If a list or pattern has the wrong length or an unknown entry, or the first layer would be shared.

    Notes
    -----
    With a frequency, layer ``i`` is full when ``max(i - offset + 1, 0) % freq == 0``. Source: transformers
    ``glm_moe_dsa`` (GLM-5.2: frequency 4, offset 3).

    Examples
    --------
    >>> from sparsespan.indexer import index_share_layers
    >>> layers = index_share_layers({"num_hidden_layers": 8, "index_topk_freq": 4, "index_skip_topk_offset": 3})
    >>> "".join(kind[0] for kind in layers)
    'fffsssfs'
    """
    layers = _whole("num_hidden_layers", _field(config, "num_hidden_layers"), 0)
    if (types := _field(config, "indexer_types")) is not None:
        kinds = _explicit("indexer_types", types, layers)
    elif (pattern := _field(config, "index_topk_pattern")) is not None:
        kinds = _explicit("index_topk_pattern", pattern, layers)
    else:
        freq = max(_whole("index_topk_freq", _field(config, "index_topk_freq", 1), 0), 1)
        offset = _whole("index_skip_topk_offset", _field(config, "index_skip_topk_offset", 2), 0)
        kinds = ["full" if max(i - offset + 1, 0) % freq == 0 else "shared" for i in range(layers)]
    if kinds and kinds[0] != "full":
        raise ValueError("index_share_layers: the first layer is shared, needs to be full: it has nobody to share with")
    return kinds

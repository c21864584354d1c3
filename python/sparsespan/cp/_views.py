"""What a plan hands out in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = ["CpSegments", "NextNRows", "StaticBatch"]


class CpSegments(NamedTuple):
    """Runs of consecutive real rows of one request and part, in local order.

    Query j of a segment sees ``kv_len - q_len + j + 1`` keys (bottom-right causal). ``request`` indexes block tables:
    a table gathered with it and these lengths cannot be filtered differently.
    """

    request: np.ndarray
    part: np.ndarray
    """0 front (or the only piece), 1 back."""
    q_start: np.ndarray
    """First local row."""
    q_len: np.ndarray
    kv_len: np.ndarray


class NextNRows(NamedTuple):
    """Rows of decode requests with several tokens each (speculative verification)."""

    request: np.ndarray
    rows: np.ndarray
    """[D, next_n] local rows, -1 = none."""
    context_lens: np.ndarray
    """[D, next_n] visible keys, the row's own included; 0 = none."""


@dataclass(frozen=True)
class StaticBatch:
    """One rank's rows in buffers of fixed size, as a captured graph replays them.

    Padding: row -1, position 0, request -1, ks = ke = 0, length 0, slot -1; cumulative query lengths stay level.
    """

    rows: np.ndarray
    positions: np.ndarray
    row_to_request: np.ndarray
    ks: np.ndarray
    ke: np.ndarray
    context_lens: np.ndarray
    actual_seq_q: np.ndarray
    actual_seq_kv: np.ndarray
    slot_mapping: np.ndarray | None

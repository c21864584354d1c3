"""Scales of a paged cache are looked at before anything is stored."""

import numpy as np
import pytest

from sparsespan.indexer import paged_mqa_logits, paged_select


def test_the_first_bad_scale_is_named_by_any_threads(rng):
    """Scales are looked at in stretches of 512 pages by all threads."""
    pages, page_size = 1100, 4
    cache = np.zeros((2 * pages, page_size, 132), np.uint8)
    tails = cache.reshape(2 * pages, -1)[:, page_size * 128 :].view(np.float32)
    table = rng.permutation(2 * pages).reshape(2, pages)
    lens = np.array([4 * pages - 7, 4 * pages - 2])
    q, weights = np.ones((2, 3, 128), np.float32), np.ones((2, 3), np.float32)
    for row, position in ((1, 4 * pages - 3), (1, 2050), (0, 4 * pages - 8), (0, 2049)):  # each before the one above
        tails[table[row, position // page_size], position % page_size] = -2
        out = np.full((2, 5), 77, np.int32)
        for threads in (1, 2, 3):
            with pytest.raises(ValueError, match=rf"a scale of -2 at request {row}, position {position},"):
                paged_select(q, cache, weights, lens, table, page_size, 5, out=out, threads=threads)
        assert (out == 77).all()
    tails[:] = 1
    tails[table[0, -2], 1] = tails[table[1, -1], 2] = np.nan  # the first token behind each length
    paged_select(q, cache, weights, lens, table, page_size, 5, threads=2)


def test_pages_of_any_size_in_a_cache_without_pages():
    """Sizes are counted in 64 bits: nothing overflows (UBSan looks) where nothing is stored."""
    q, weights, table = np.ones((1, 3, 128), np.float32), np.ones((1, 3), np.float32), np.zeros((1, 1), np.int32)
    for size in (2**31, 2**54, 2**55):
        cache = np.zeros((0, size, 132), np.uint8)
        assert (paged_select(q, cache, weights, np.array([0]), table, size, 4) == -1).all()
        assert np.isneginf(paged_mqa_logits(q, cache, weights, np.array([0]), table, size, 8)).all()

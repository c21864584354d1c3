"""What every op refuses of an array before it looks at dtype or shape."""

import numpy as np
import pytest

from sparsespan.quant import act_quant, read_kv
from sparsespan.transform import hadamard_transform


def test_the_other_byte_order_is_refused_not_misread():
    swapped = np.ones((2, 4), np.float32).astype(np.dtype(np.float32).newbyteorder("S"))
    with pytest.raises(TypeError, match=r"x has elements in the other byte order \('[<>]'\), needs native ones"):
        hadamard_transform(swapped)
    slots = np.array([1]).astype(np.dtype(np.int64).newbyteorder("S"))
    with pytest.raises(TypeError, match=r"slots has elements in the other byte order"):
        read_kv(np.ones((1, 2, 128), np.float32), slots, "index_f32", 2)


def test_misaligned_memory_is_refused():
    x = np.zeros(4 * 128 + 1, np.uint8)[1:].view(np.float32).reshape(1, 128)
    with pytest.raises(
        ValueError, match=r"x starts at an address that is no multiple of its element size; copy it first"
    ):
        act_quant(x)
    assert act_quant(x.copy())[1].shape == (1, 1)

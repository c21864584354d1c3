"""What stays behind after a call with another library's tensors: nothing."""

import gc
import os
import weakref

import numpy as np
import pytest


@pytest.mark.peer
@pytest.mark.skipif("SPARSESPAN_SANITIZED" in os.environ, reason="peers are not built with sanitizers")
def test_tensors_are_free_when_the_call_is_over():
    """A cycle of Python objects would hold gigabytes until the collector comes by."""
    torch = pytest.importorskip("torch")
    from sparsespan.attention import sparse_mha

    q, k, v = torch.ones(3, 2, 8), torch.ones(5, 2, 8), torch.ones(5, 2, 8)
    indices = torch.zeros(3, 1, dtype=torch.int32)
    sparse_mha(q, k, v, indices, 0.1)
    alive = weakref.ref(k)
    gc.disable()
    try:
        sparse_mha(q, k, v, indices, 0.1)
        with pytest.raises(IndexError):
            sparse_mha(q, k, v, indices + 5, 0.1)
        del k
        assert alive() is None
    finally:
        gc.enable()
    assert np.isfinite(sparse_mha(q, v, v, indices, 0.1)[1].numpy()).all()

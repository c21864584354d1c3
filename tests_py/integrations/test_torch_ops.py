"""torch.ops.sparsespan: what opcheck and torch.compile ask of an op."""

import os

import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif("SPARSESPAN_SANITIZED" in os.environ, reason="peers are not built with sanitizers"),
]


def data():
    torch.manual_seed(2)
    ks, ke = torch.tensor([0, 0, 2], dtype=torch.int32), torch.tensor([1, 5, 6], dtype=torch.int32)
    index = (torch.randn(3, 4, 8), torch.randn(6, 8), torch.randn(3, 4), ks, ke)
    picks = torch.tensor([[0, -1], [4, 1], [5, 3]], dtype=torch.int32)
    return {
        "mqa_logits": index,
        "select": (*index, 2),
        "sparse_mla": (torch.randn(3, 2, 24), torch.randn(6, 24), picks, 0.2, 16),
        "sparse_mha": (torch.randn(3, 2, 8), torch.randn(6, 2, 8), torch.randn(6, 2, 4), picks, 0.3),
    }


@pytest.mark.parametrize("name", ["mqa_logits", "select", "sparse_mla", "sparse_mha"])
def test_opcheck(name):
    from sparsespan.integrations import torch as ops

    torch.library.opcheck(getattr(ops, name), data()[name])


def test_compile_keeps_the_bits():
    from sparsespan.integrations import torch as ops

    q, k, weights, ks, ke, topk = data()["select"]
    attend = data()["sparse_mla"]

    def step(q, k, x):
        chosen = ops.select(q * 2, k, weights, ks, ke, topk)
        return ops.sparse_mla(x, attend[1], chosen, 0.2, 16)[0] + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, attend[0]), step(q, k, attend[0]))

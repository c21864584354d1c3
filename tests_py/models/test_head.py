"""The head's vocabulary spread over ranks: the bits of one rank, a part of the weight on each."""

import numpy as np
import pytest

from sparsespan import comm
from sparsespan.models import Grid, Ranks, load, write_tiny
from sparsespan.models._head import Head

SMALL = {"index_topk": 16, "n_routed_experts": 4, "num_hidden_layers": 2, "n_group": 1, "topk_group": 1}


@pytest.mark.parametrize("vocab", [1, 2, 7, 64])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_any_vocabulary_over_any_ranks(rng, vocab, rows):
    w, x = rng.standard_normal((vocab, 12)).astype(np.float32), rng.standard_normal((rows, 12)).astype(np.float32)
    want = Head(w)(x)
    assert want.shape == (rows, vocab) and want.dtype == np.float32

    def run(world):
        head = Head(w, world)
        return head(x), len(head.part.weight), world.trace()["all_gather"]["bytes"]

    found = comm.run_ranks(3, run)
    assert sum(part for _, part, _ in found) == vocab
    for logits, part, moved in found:
        assert logits.tobytes() == want.tobytes() and moved == (vocab - part) * rows * 4


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("grid", [Grid(tp=2), Grid(cp=3), Grid(tp=2, cp=2), Grid(tp=2, pp=2)])
def test_in_a_model(tmp_path, rng, grid, tied):
    path = write_tiny(tmp_path / "m", "deepseek_v32", dtype="bfloat16", tie_word_embeddings=tied, **SMALL)
    prompts = [rng.integers(0, 256, n) for n in (9, 4)]

    def answers(ranks=None):
        model = load(path, ranks=ranks)
        pool = model.pool(256)
        requests = [pool.open() for _ in prompts]
        first = model.prefill(pool, requests, prompts)
        said = first.tobytes(), model.decode(pool, requests, first.argmax(1)).tobytes()
        return said, 0 if model.head is None else model.head.part.nbytes

    want, whole = answers()
    found = comm.run_ranks(grid.ranks, lambda world: answers(grid.join(world)[0]))
    assert all(said == want for said, _ in found)
    assert sum(held for _, held in found) == whole
    assert {held > 0 for _, held in found[-grid.tp * grid.cp :]} == {True}


def test_ranks_that_only_share_rows_keep_the_whole(tmp_path):
    path = write_tiny(tmp_path / "m", "deepseek_v32", **SMALL)
    whole = load(path).head.part.nbytes
    assert comm.run_ranks(2, lambda world: load(path, ranks=Ranks(cp=world)).head.part.nbytes) == [whole] * 2

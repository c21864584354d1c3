"""A model on pipeline stages, alone and with TP, CP and DCP: the bits of one rank, own layers only, errors that end."""

import threading
import time

import numpy as np
import pytest

from sparsespan import comm, cp, models
from sparsespan.comm import CommAborted, CommError
from sparsespan.models import Dcp, Grid, Ranks, write_tiny
from sparsespan.models import _forward as forward
from sparsespan.pipeline import MessageError

SMALL = {"index_topk": 16, "n_routed_experts": 4, "num_hidden_layers": 4}
STEPS = 3


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    types = {"glm": ["full", "shared", "full", "shared"], "spread": ["full", "shared", "shared", "shared"]}
    glm = {n: write_tiny(folder / n, "glm_moe_dsa", **SMALL, indexer_types=t) for n, t in types.items()}
    bf16 = {"dtype": "bfloat16", "tie_word_embeddings": True, "n_group": 2, "topk_group": 1}
    return {
        "v32": write_tiny(folder / "v32", "deepseek_v32", **SMALL, n_group=2, topk_group=1),
        "bf16": write_tiny(folder / "bf16", "deepseek_v32", **SMALL, **bf16),
        **glm,
    }


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, n) for n in (37, 2, 20)]


def answers(model, prompts, chunk=0, page_size=64):
    """Logits behind the prompts and behind one more token, then greedy tokens."""
    pool = model.pool(640, page_size)
    requests = [pool.open() for _ in prompts]
    first = model.prefill(pool, requests, prompts, chunk=chunk)
    second = model.decode(pool, requests, first.argmax(1))
    assert pool.lengths(requests).tolist() == [len(p) + 1 for p in prompts]
    own = model.pool(640, page_size)
    return first, second, model.generate(prompts, STEPS, pool=own, chunk=chunk, stop_at_eos=False)


@pytest.fixture(scope="module")
def one_rank(paths, prompts):
    kept = {}

    def want(name, dcp=False):
        if (name, dcp) not in kept:
            ranks = Ranks(tp=comm.ThreadComm(1)[0], dcp=Dcp(cp.dcp_layout(1, 1, 4))) if dcp else Ranks()
            kept[name, dcp] = answers(models.load(paths[name], ranks=ranks), prompts, page_size=4 if dcp else 64)
        return kept[name, dcp]

    return want


GRIDS = {
    "pp2": Grid(pp=2),
    "pp4": Grid(pp=4),
    "pp3 uneven": Grid(pp=3, stage_layers=(1, 2, 1)),
    "pp2 x cp2": Grid(pp=2, cp=2),
    "tp2 x cp2 x pp2": Grid(tp=2, cp=2, pp=2, scheme="interleave"),
    "tp2 x pp2": Grid(tp=2, pp=2, stage_layers=(3, 1)),
    "pp2 x dcp2": Grid(tp=2, dcp=2, pp=2, page_size=4, stage_layers=(1, 3)),
}
SCHEMES = {
    f"cp3 {s} x pp2": Grid(cp=3, pp=2, scheme=s, stage_layers=(1, 3))
    for s in ("zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat")
}
CASES = [(n, g) for g in GRIDS for n in ("v32", "glm")] + [("glm", g) for g in SCHEMES]
CASES += [("spread", "pp4"), ("bf16", "pp2 x cp2"), ("bf16", "pp3 uneven")]


def on_grid(path, grid, prompts, chunk):
    def rank(world):
        model = models.load(path, ranks=grid.join(world)[0])
        return answers(model, prompts, chunk, grid.page_size)

    return comm.run_ranks(grid.ranks, rank)


@pytest.mark.parametrize("name, which", CASES)
def test_stages_have_the_bits_of_one_rank(paths, prompts, one_rank, name, which):
    grid = (GRIDS | SCHEMES)[which]
    want = one_rank(name, grid.dcp > 1)
    for first, second, tokens in on_grid(paths[name], grid, prompts, chunk=11):
        assert first.tobytes() == want[0].tobytes()
        assert second.tobytes() == want[1].tobytes()
        assert tokens == want[2]


def test_whole_prompts_and_drawn_tokens(paths, prompts):
    """One pass; tokens that the last stage draws are the same on every stage, and those of one rank."""
    options = {"temperature": 1.0, "seed": 5, "stop_at_eos": False}
    want = models.load(paths["glm"]).generate(prompts, 5, **options)

    def rank(world):
        said = []
        model = models.load(paths["glm"], ranks=Grid(pp=2).join(world)[0])
        tokens = model.generate(prompts, 5, on_token=lambda b, token: said.append((b, token)), **options)
        return tokens, said

    for tokens, said in comm.run_ranks(2, rank):
        assert tokens == want and sorted(said) == sorted((b, t) for b, new in enumerate(want) for t in new)


def test_a_stage_has_and_reads_its_own(paths, monkeypatch):
    read = {}
    plain = models.Checkpoint.__getitem__

    def noted(checkpoint, name):
        read.setdefault(threading.current_thread().name, set()).add(name)
        return plain(checkpoint, name)

    monkeypatch.setattr(models.Checkpoint, "__getitem__", noted)

    def rank(world):
        grid = Grid(pp=3, cp=2, stage_layers=(1, 2, 1))
        model = models.load(paths["glm"], ranks=grid.join(world)[0])
        pool = model.pool(64)
        return [layer.index for layer in model.layers], sorted(pool.caches.kv), sorted(pool.caches.index_k)

    found = comm.run_ranks(6, rank)
    assert found == [([0], [0], [0])] * 2 + [([1, 2], [1, 2], [2])] * 2 + [([3], [3], [])] * 2
    for thread, names in read.items():
        stage = int(thread.split()[1]) // 2
        layers = {int(name.split(".")[2]) for name in names if ".layers." in name}
        assert layers == ({0}, {1, 2}, {3})[stage]
        rest = {name for name in names if ".layers." not in name}
        ends = ({"model.embed_tokens.weight"}, set(), {"model.norm.weight", "lm_head.weight"})
        assert rest == ends[stage]


def test_what_crosses_a_cut_is_counted(paths, prompts):
    """Hidden rows of the rank's own shard, indices where a group is cut, a header each; logits from the last stage."""
    rows, header = 59, 16 * 8
    for cut, indices in (((2, 2), 0), ((1, 3), 16 * 4)):

        def rank(world, cut=cut):
            ranks, groups = Grid(pp=2, cp=2, stage_layers=cut).join(world)
            model = models.load(paths["glm"], ranks=ranks)
            pool = model.pool(128 + 64)
            groups["pp"].reset_trace()
            model.prefill(pool, [pool.open() for _ in prompts], prompts)
            return {name: op["bytes"] for name, op in groups["pp"].trace().items() if op["bytes"]}

        found = comm.run_ranks(4, rank)
        width, kinds = 64 * 4 + indices, 2 if indices else 1
        logits = len(prompts) * models.Checkpoint(paths["glm"]).config.vocab_size * 4
        assert found[0] == found[1] == {"broadcast": logits}
        assert sum(r["recv"] for r in found[2:]) == rows * width + 2 * kinds * header


def test_stages_overlap(paths, monkeypatch):
    """Stage 0 ends pass 1 while stage 1 has not ended pass 0: it is held there until stage 0 has."""
    prompt = np.arange(40) % 256
    ended = threading.Event()
    plain = forward._pass

    def held(model, step, *args):
        if model.layers[0].index > 0 and step.number == 0:
            assert ended.wait(30), "stage 0 did not go on"
        found = plain(model, step, *args)
        if model.layers[0].index == 0 and step.number == 1:
            ended.set()
        return found

    want = models.load(paths["v32"])
    pool = want.pool(64)
    want = want.prefill(pool, [pool.open()], [prompt])
    monkeypatch.setattr(forward, "_pass", held)

    def rank(world):
        model = models.load(paths["v32"], ranks=Grid(pp=2).join(world)[0])
        pool = model.pool(64)
        return model.prefill(pool, [pool.open()], [prompt], chunk=10)

    assert [a.tobytes() for a in comm.run_ranks(2, rank)] == [want.tobytes()] * 2


def test_few_passes_are_in_flight(paths, monkeypatch):
    """A stage behind that takes no more holds the first one up after two passes (and the one it computes)."""
    begun, early = [], []
    plain = forward._pass

    def counted(model, step, *args):
        if model.layers[0].index == 0:
            begun.append(step.number)
        elif step.number == 0:
            until = time.monotonic() + 30
            while len(begun) < 4 and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.2)
            early.extend(begun)
        return plain(model, step, *args)

    monkeypatch.setattr(forward, "_pass", counted)

    def rank(world):
        model = models.load(paths["v32"], ranks=Grid(pp=2).join(world)[0])
        pool = model.pool(64)
        return model.prefill(pool, [pool.open()], [np.arange(60) % 256], chunk=6)

    comm.run_ranks(2, rank)
    # Pass 0 has been taken; 1 and 2 wait; 3 has been computed and stands before its send.
    assert early == [0, 1, 2, 3] and len(begun) == 10


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_on_one_stage_ends_all(paths, prompts, monkeypatch, failing):
    plain = models.DecoderLayer.prefill

    def broken(layer, *args, **options):
        if layer.index == failing:
            raise ZeroDivisionError("a planted error")
        return plain(layer, *args, **options)

    monkeypatch.setattr(models.DecoderLayer, "prefill", broken)
    ends = {}

    def rank(world):
        model = models.load(paths["v32"], ranks=Grid(pp=4, cp=2).join(world)[0])
        try:
            model.generate(prompts, 2, chunk=11)
        except Exception as error:
            ends[world.rank] = error
            raise

    with pytest.raises(ZeroDivisionError, match="a planted error"):
        comm.run_ranks(8, rank, timeout=60)
    assert sorted(ends) == list(range(8))
    for at, error in ends.items():
        # Of the two ranks that fail, one may hear of the other before it comes so far.
        assert isinstance(error, (ZeroDivisionError, CommAborted) if at // 2 == failing else CommAborted)
        assert "a planted error" in str(error)


def test_a_stage_that_leaves_a_generation_ends_all(paths, prompts):
    """A callback that raises, and caches too small for a request, on one stage alone: told, or out of time."""
    ends = {}

    def rank(world, pool_tokens, on_token, patience):
        world.timeout = patience
        model = models.load(paths["v32"], ranks=Grid(pp=2).join(world)[0])
        try:
            model.generate(prompts, 3, pool=model.pool(pool_tokens[world.rank]), on_token=on_token[world.rank])
        except Exception as error:
            ends[world.rank] = error

    def leaving(b, token):
        raise ZeroDivisionError("a planted error")

    comm.run_ranks(2, lambda world: rank(world, (256, 256), (leaving, None), 60))
    assert isinstance(ends[0], ZeroDivisionError) and isinstance(ends[1], CommAborted)
    # run_ranks closes the communicator of the rank that has left: who waits for it is told.
    comm.run_ranks(2, lambda world: rank(world, (256, 64), (None, None), 60))
    assert isinstance(ends[0], CommError) and isinstance(ends[1], models.PoolFull)


def test_stages_that_follow_other_lengths_are_told(paths):
    def rank(world):
        model = models.load(paths["v32"], ranks=Grid(pp=2).join(world)[0])
        pool = model.pool(64)
        model.prefill(pool, [pool.open()], [np.arange(20)], chunk=(10, 5)[world.rank])

    with pytest.raises(MessageError, match=r"stage 1: message of micro-batch 0 from stage 0: its batch is another one"):
        comm.run_ranks(2, rank, timeout=60)


def test_refusals_leave_the_stages_usable(paths, prompts, one_rank):
    def rank(world):
        model = models.load(paths["v32"], ranks=Grid(pp=2).join(world)[0])
        pool = model.pool(128)
        request = pool.open()
        for tokens in ([[5, 5000]], [[]], [[1], [2]], [np.zeros(1000, int)]):
            with pytest.raises((ValueError, models.PoolFull)):
                model.prefill(pool, [request], tokens)
        with (
            pytest.raises(ValueError, match="this part ends with layer 1")
            if world.rank == 0
            else pytest.raises(ValueError, match="this part begins with layer 2")
        ):
            model.logits(np.zeros((1, 64), np.float32)) if world.rank == 0 else model.embed([1])
        return model.prefill(pool, [request], [prompts[2]])

    for logits in comm.run_ranks(2, rank):
        assert logits[0].tobytes() == one_rank("v32")[0][2].tobytes()

"""The output projection: identities between its modes, what travels with the weight, counted bytes, refusals."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsespan.reference.cp_rows as reference
from sparsespan import cp, quant
from sparsespan.comm import CommError, RankMismatch, ThreadComm, run_ranks

BF16 = ml_dtypes.bfloat16
HEADS, V, HIDDEN = 8, 3, 5
SCHEMES = ("zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat")


def shards(w, n):
    return np.split(w, n)


@settings(max_examples=25)
@given(n=st.sampled_from([1, 2, 4, 8]), t=st.integers(0, 5), tail=st.sampled_from([(), (V,), (2, 2)]))
def test_exchange_and_back(n, t, tail):
    """Z_r = X[:, columns of r] in the order of the tokens; the way back is the inverse."""
    x = np.random.default_rng(t).integers(0, 255, (n, t, HEADS, *tail)).astype(np.uint8)

    def rank(comm):
        z = cp.exchange_heads(comm, x[comm.rank])
        return z, cp.exchange_heads(comm, z, back=True)

    for (z, back), mine, want in zip(run_ranks(n, rank), x, reference.exchange_heads(list(x))):
        np.testing.assert_array_equal(z, want)
        np.testing.assert_array_equal(back, mine)


def project(n, x, w, mode, **options):
    """Each rank's result; x is a list of the ranks' tokens."""

    def rank(comm):
        linear = shards(w, n)[comm.rank] if mode in ("gather_weight", "a2a_rs") else w.copy()
        if mode == "broadcast":
            linear = cp.LinearShard({"weight": linear if comm.rank == n - 1 else np.zeros_like(linear)})
            return cp.o_proj(comm, x[comm.rank], linear, mode, owner=n - 1, **options)
        return cp.o_proj(comm, x[comm.rank], linear, mode, **options)

    return run_ranks(n, rank)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_modes_agree(rng, n, dtype):
    """sum_r Z_r W_r = X W, and block r of the reduce-scatter is what rank r gets from the whole weight."""
    x = [rng.standard_normal((3, HEADS, V)).astype(dtype) for _ in range(n)]
    w = rng.standard_normal((HEADS * V, HIDDEN)).astype(dtype)
    want = reference.o_proj(x, shards(w, n))
    # 24 products of size 1 added in float32; in bfloat16 each of n partial sums and their sum are rounded (2^-9 of at
    # most about 12 each).
    tolerance = 1e-5 if dtype is np.float32 else (n + 1) * 12 * 2.0**-9
    modes = {mode: project(n, x, w, mode) for mode in ("full", "gather_weight", "a2a_rs", "broadcast")}
    for results in modes.values():
        for got, expected in zip(results, want):
            assert got.shape == (3, HIDDEN) and got.dtype == dtype
            np.testing.assert_allclose(got.astype(float), expected, atol=tolerance)
    for r in range(n):  # the same whole weight, the same product
        assert modes["gather_weight"][r].tobytes() == modes["full"][r].tobytes() == modes["broadcast"][r].tobytes()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mode", ["full", "gather_weight", "a2a_rs"])
@pytest.mark.parametrize("n", [2, 4])
def test_any_plan_sharded_or_replicated(rng, scheme, mode, n):
    """Ranks with different numbers of rows; integers in float32, so that sums are exact in any order."""
    plan = cp.split_plan(scheme, [0, 5, 5, 18], [0, 0, 0], n)
    x = rng.integers(-4, 5, (18, HEADS, V)).astype(np.float32)
    w = rng.integers(-4, 5, (HEADS * V, HIDDEN)).astype(np.float32)
    want = x.reshape(18, -1) @ w
    local = [cp.split(x, plan, r) for r in range(n)]
    for r, got in enumerate(project(n, local, w, mode, plan=plan)):
        np.testing.assert_array_equal(got, cp.split(want, plan, r))
    for got in project(n, local, w, mode, plan=plan, replicated=True):
        np.testing.assert_array_equal(got, want)


def dequant(x, params):
    """A projection in fp8: block scales of the weight, a smoothing vector and an input scale per column."""
    weight = quant.weight_dequant(params["weight"], params["weight_scale"], 128).astype(np.float32)
    x = x.astype(np.float32) * params["smooth"] * params["input_scale"]
    return (x @ weight * params["out_scale"]).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_quantisation_parameters_travel_with_the_weight(rng, n):
    """Every input-side parameter, cut or per rank, must arrive: leaving one behind changes the result."""
    columns, hidden, t = 512, 128, 3
    weight = rng.integers(-8, 9, (columns, hidden)).astype(ml_dtypes.float8_e4m3fn)
    scale = 2.0 ** rng.integers(-2, 3, (columns // 128, hidden // 128)).astype(np.float32)
    smooth = 2.0 ** rng.integers(-1, 2, columns).astype(np.float32)
    input_scale = 2.0 ** np.arange(n, dtype=np.float32)  # each rank's quantiser has its own
    out_scale = 2.0 ** rng.integers(-1, 2, hidden).astype(np.float32)
    bias = rng.integers(-3, 4, hidden).astype(np.float32)
    x = rng.integers(-4, 5, (n, t, columns)).astype(np.float32)
    per_column = np.repeat(input_scale, columns // n)
    want = (x * smooth * per_column) @ (weight.astype(np.float32) * np.repeat(scale, 128, 0).repeat(128, 1))
    want = want * out_scale + bias  # powers of two and small integers: exact

    def rank(comm):
        cut = {"weight": weight, "weight_scale": scale, "smooth": smooth}
        shard = cp.LinearShard(
            {name: np.split(value, n)[comm.rank] for name, value in cut.items()},
            per_rank={"input_scale": input_scale[comm.rank]},
            same={"out_scale": out_scale},
            bias=bias,
            apply=dequant,
        )
        early = cp.igather_weight(comm, shard)
        outs = [cp.o_proj(comm, x[comm.rank], shard, mode) for mode in ("gather_weight", "a2a_rs")]
        return [*outs, cp.o_proj(comm, x[comm.rank], shard, "gather_weight", gathered=early)]

    for outs, expected in zip(run_ranks(n, rank), want):
        for got in outs:
            np.testing.assert_array_equal(got, expected)


def test_gathered_weights_go_into_a_pool():
    pool = {"weight": np.zeros((4, 2), np.float32)}

    def rank(comm):
        shard = cp.LinearShard({"weight": np.full((2, 2), comm.rank + 1, np.float32)})
        mine = pool if comm.rank == 0 else None
        work = cp.igather_weight(comm, shard, out=mine)
        while not work.test():
            pass
        return work.wait()["weight"]

    first, second = run_ranks(2, rank)
    assert first is pool["weight"]
    assert first.tolist() == second.tolist() == [[1, 1], [1, 1], [2, 2], [2, 2]]


@pytest.mark.parametrize("lengths", [(16,), (5, 8)])
@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("replicated", [False, True])
def test_counted_bytes_are_the_formulas(n, lengths, replicated):
    model = cp.AttentionDims("test", 1, HIDDEN, HEADS, 4, 512, 4, 64, V)
    total = sum(lengths)
    plan = cp.split_plan("contiguous_flat", np.cumsum([0, *lengths]), [0] * len(lengths), n)
    w = np.zeros((HEADS * V, HIDDEN), BF16)
    x = np.zeros((total, HEADS, V), BF16)

    def rank(comm):
        counted = []
        for mode in ("gather_weight", "a2a_rs"):
            comm.reset_trace()
            mine = cp.split(x, plan, comm.rank)
            cp.o_proj(comm, mine, shards(w, n)[comm.rank], mode, plan=plan, replicated=replicated)
            counted.append({op: row["bytes"] for op, row in comm.trace().items()})
        return counted

    wanted = []
    for scheme in ("dsa_cp_prefill", "dsa_cp_decode"):
        volume = cp.volume(
            scheme, tokens=list(lengths), ranks=n, model=model, restore="none", replicated_state=replicated
        )
        rows = {}
        for row in volume.rows:
            if row.what != "latent KV":
                rows[row.primitive] = rows.get(row.primitive, 0) + row.received
        wanted.append(rows)
    assert run_ranks(n, rank) == [wanted] * n


COMM = ThreadComm(2)[0]
X, W = np.zeros((3, 8), np.float32), np.zeros((8, 5), np.float32)
PLAN = cp.split_plan("contiguous_flat", [0, 6], [0], 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: cp.o_proj(COMM, X, W, "half"), ValueError, "mode is 'half', needs one of 'full', 'gather_weight'"),
        (lambda: cp.o_proj(COMM, X, lambda x: x, "gather_weight"), TypeError, "linear is a callable, mode"),
        (lambda: cp.o_proj(COMM, X, lambda x: x, "broadcast"), TypeError, "its weights must travel"),
        (lambda: cp.o_proj(COMM, X, W, replicated=True), ValueError, "plan is None, replicated=True needs the plan"),
        (lambda: cp.o_proj(COMM, X[:2], W, plan=PLAN), ValueError, "x_local has 2 rows, needs the 3 that the"),
        (lambda: cp.o_proj(ThreadComm(3)[0], X, W, plan=PLAN), ValueError, "comm has 3 ranks, needs the plan's 2"),
        (lambda: cp.o_proj(COMM, X, W[:4]), ValueError, "weight of 4 input columns, needs 8 as x_local has here"),
        (lambda: cp.o_proj(COMM, X, lambda x: x[:2]), ValueError, r"linear gave shape \(2, 8\), needs \[3, hidden\]"),
        (lambda: cp.o_proj(COMM, np.zeros((3, 7)), W, "a2a_rs"), ValueError, "x has 7 columns or heads, needs a"),
        (
            lambda: cp.o_proj(COMM, np.zeros((2, 3, 4)), W, "a2a_rs"),
            ValueError,
            "x_local has 3 heads, needs a multiple",
        ),
        (lambda: cp.o_proj(COMM, X, W, gathered=object()), ValueError, "gathered is given, mode 'full' needs None"),
        (lambda: cp.o_proj(7, X, W), TypeError, "o_proj: comm is a int, needs a Communicator"),
        (lambda: cp.o_proj(COMM, X, None), TypeError, "o_proj: linear is None, mode 'full' needs a LinearShard"),
        (lambda: cp.gather_weight(COMM, W), TypeError, "shard is a ndarray, needs a cp.LinearShard"),
        (lambda: cp.LinearShard({}), ValueError, "cut is empty, needs at least the weight"),
        (lambda: cp.LinearShard({"weight": W}, same={"weight": W}), ValueError, "weight stands in two mappings"),
        (lambda: cp.LinearShard({"weight": W}, same={"scale": W}), ValueError, "apply is missing for scale"),
        (
            lambda: cp.broadcast_weight(COMM, cp.LinearShard({"w": W}, per_rank={"s": 1}, apply=max), 0),
            ValueError,
            "per_rank s, needs none",
        ),
        (lambda: cp.exchange_heads(COMM, np.zeros(4)), ValueError, r"x has shape \[4\], needs \[tokens, columns"),
        (lambda: cp.exchange_heads(COMM, np.zeros((3, 4)), back=True), ValueError, "has 3 tokens, needs a multiple"),
        (lambda: cp.exchange_heads(COMM, X, out=np.zeros((6, 4))), TypeError, "out is float64, needs float32"),
        (lambda: cp.exchange_heads(COMM, X, out=np.zeros((3, 8), "f4")), ValueError, r"needs \[6, 4\]"),
        (lambda: cp.exchange_heads(COMM, X[:, ::2]), ValueError, "exchange_heads: x"),
        (lambda: cp.exchange_heads(COMM, X.astype("S1")), TypeError, "dtype that ranks cannot exchange"),
        (lambda: cp.exchange_heads(COMM, None), TypeError, "x is not given"),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.timeout(20)
def test_ranks_with_different_numbers_of_tokens_are_told():
    def rank(comm):
        with pytest.raises(RankMismatch, match="shape differs"):
            cp.o_proj(comm, np.zeros((2 + comm.rank, 8), np.float32), W[:4], "a2a_rs")

    run_ranks(2, rank, timeout=5)


@pytest.mark.timeout(20)
def test_a_failing_projection_ends_the_others_in_words():
    def rank(comm):
        def linear(z):
            if comm.rank == 1:
                raise ZeroDivisionError("no weights")
            return z @ W[:4]

        cp.o_proj(comm, X, linear, "a2a_rs")

    with pytest.raises(ZeroDivisionError):
        run_ranks(2, rank, timeout=5)


@pytest.mark.timeout(20)
def test_ranks_of_different_modes_are_told():
    def rank(comm):
        with pytest.raises(CommError):
            cp.o_proj(comm, X, W[:4], "a2a_rs" if comm.rank else "gather_weight", timeout=1)

    run_ranks(2, rank, timeout=5)


@pytest.mark.parametrize("x", [np.ones((2, 4), np.int64), np.ones(4, np.float32), [[1.0]]])
def test_what_is_no_array_of_numbers_to_project_is_refused(x):
    with pytest.raises(TypeError, match="o_proj: x_local"):
        cp.o_proj(ThreadComm(1)[0], x, np.full((4, 2), 0.5, np.float32))

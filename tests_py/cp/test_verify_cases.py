"""``sparsespan.verification`` from a test: one case, the caller's ranks, results that are off."""

import dataclasses

import numpy as np
import pytest

from sparsespan import cp, verification
from sparsespan._commands.verify import CHOICES
from sparsespan.comm import run_ranks
from sparsespan.verification import _checks, _decode, _prefill

pytestmark = pytest.mark.timeout(60)
MODEL = verification.Model(heads=8)
PREFILL = verification.Case("prefill", verification.batch("mine", [9, 30], [0, 20]), cp=2, model=MODEL)
DECODE = verification.Case("decode", verification.batch("mine", [70, 3], part="decode"), dcp=2, model=MODEL)


@pytest.mark.parametrize("case", [PREFILL, DECODE], ids=["prefill", "decode"])
def test_check_passes_and_tells(case):
    result = verification.check(case)
    assert result["passed"] and result["name"] == case.name


@pytest.mark.parametrize("case", [PREFILL, DECODE], ids=["prefill", "decode"])
def test_ranks_may_be_the_callers(case):
    results = run_ranks(2, lambda comm: verification.check(case, comm))
    assert all(result["passed"] and result["checks"][0]["ranks"] == 2 for result in results)


def test_a_communicator_of_another_size_is_refused():
    with pytest.raises(ValueError, match="comm has 3 ranks"):
        run_ranks(3, lambda comm: verification.check(PREFILL, comm))


def test_a_wrong_operator_is_found(monkeypatch):
    right = cp.prefill_attention

    def wrong(comm, *args, **kwargs):
        result = right(comm, *args, **kwargs)
        if comm.rank == 1:
            result.lse[3, 2] = np.nextafter(result.lse[3, 2], np.float32(9))
        return result

    monkeypatch.setattr(cp, "prefill_attention", wrong)
    with pytest.raises(AssertionError, match=r"rank 1: lse: row \d+ is off by .* \(first of 1 rows\)"):
        verification.check(PREFILL)


def test_an_unpaid_collective_is_found(monkeypatch):
    right = cp.dcp_decode

    def chatty(comm, *args, **kwargs):
        comm.all_gather(np.zeros(1, np.int8))
        return right(comm, *args, **kwargs)

    monkeypatch.setattr(cp, "dcp_decode", chatty)
    with pytest.raises(AssertionError, match=r"attention, all_gather: \d+ bytes counted"):
        verification.check(DECODE)


def _later(call, name, change):
    """The call with one of its keyword or positional arguments changed."""

    def wrong(*args, **kwargs):
        if isinstance(name, int):
            args = (*args[:name], change(args[name]), *args[name + 1 :])
        else:
            kwargs[name] = change(kwargs[name])
        return call(*args, **kwargs)

    return wrong


# What engines got wrong, and what no rank by itself can see.
MISTAKES = {
    "rope by local rows": (PREFILL, cp.CpPlan, "positions", lambda f: lambda plan, r, **k: np.arange(plan.counts[r])),
    "a prefix added twice": (
        PREFILL,
        cp.CpPlan,
        "positions",
        lambda f: lambda plan, r, **k: f(plan, r, **k) + plan.prefix_lens[plan.row_to_request(r)],
    ),
    "one key less": (PREFILL, cp, "prefill_attention", lambda f: _later(f, "topk", lambda k: k - 1)),
    "the query's own key left out": (DECODE, cp, "dcp_select", lambda f: _later(f, 4, lambda lens: lens - 1)),
    "another rank's shard": (DECODE, cp, "dcp_write_kv", lambda f: _later(f, 6, lambda rank: 1 - rank)),
    "another interleave": (DECODE, cp, "dcp_write_kv", lambda f: _later(f, 5, lambda _: cp.dcp_layout(2, 2, 64))),
    "heads of a neighbour": (DECODE, cp, "dcp_decode", lambda f: _later(f, 1, lambda q: np.roll(q, 1, axis=1))),
    "scores in base 2": (DECODE, cp, "dcp_decode", lambda f: _later(f, 6, lambda scale: scale * np.log2(np.e))),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_known_mistakes_are_found(monkeypatch, mistake):
    case, owner, name, wrong = MISTAKES[mistake]
    (_prefill if case is PREFILL else _decode).oracle(case.model, case.batch)
    monkeypatch.setattr(owner, name, wrong(getattr(owner, name)))
    with pytest.raises((AssertionError, ValueError, IndexError), match=r"is off by|has NaN|position"):
        verification.check(case)


def test_the_one_rank_answer_is_never_written():
    """Threads share it: a rank that works in place must work on its own copy."""
    for case, part in ((PREFILL, _prefill), (DECODE, _decode)):
        before = [array.copy() for array in part.oracle(case.model, case.batch).results()]
        verification.verify([case], fault=verification.Fault("flip"))
        after = part.oracle(case.model, case.batch).results()
        assert all(a.tobytes() == b.tobytes() for a, b in zip(before, after))


def test_bits_and_tolerance():
    want = np.array([[1.0, -np.inf], [0.0, 2.0]], np.float32)
    assert _checks.bits("x", want.copy(), want).passed
    minus_zero = want.copy()
    minus_zero[1, 0] = -0.0
    found = _checks.bits("x", minus_zero, want, rows=np.array([7, 9]))
    assert not found.passed and "row 9 is off by 0" in found.note
    near = _checks.Tolerance(0.1, 0.0)
    assert _checks.within("x", want + np.float32(0.05), want, near).passed
    assert not _checks.within("x", want + np.float32(0.2), want, near).passed
    for bad in (np.nan, np.inf, -np.inf):
        lost = want.copy()
        lost[1, 1] = bad
        assert not _checks.within("x", lost, want, near).passed
    wrong = _checks.within("x", want[:1], want, near)
    assert not wrong.passed and not wrong.bitwise and "one rank has" in wrong.note
    leaked = want.copy()
    leaked[0, 0] = np.nan
    for check in (_checks.bits("x", leaked, leaked.copy()), _checks.within("x", leaked, leaked.copy(), near)):
        assert not check.passed and "x has NaN in 1 rows, first in row 0" in check.note
    empty = np.zeros((0, 3), np.float32)
    assert _checks.bits("x", empty, empty).passed and _checks.within("x", empty, empty, near).passed


def test_names_stand_in_one_order_in_command_and_package():
    assert CHOICES["scheme"] == verification.SCHEMES
    assert CHOICES["combine"] == verification.COMBINES
    assert CHOICES["index_k"] == verification.INDEX_KS
    assert CHOICES["batches"] == verification.BATCHES
    assert CHOICES["o_proj"] == verification.O_PROJS


def test_the_table_is_the_whole_product():
    found = verification.cases(verification.TABLE, joint=False)
    parts = {part: sum(case.part == part for case in found) for part in verification.PARTS}
    splits = 3 * len(verification.SCHEMES) * len(verification.BATCHES)
    assert parts == {
        "prefill": splits,
        "layer": splits,
        "o_proj": 3 * len(verification.O_PROJS),
        "decode": 3 * 3 * 3 * len(verification.INDEX_KS) * 2,
    }
    assert len({case.name for case in found}) == len(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"part": "train"}, "part"),
        ({"scheme": "spiral"}, "scheme"),
        ({"model": dataclasses.replace(MODEL, heads=3), "tp": 2}, "heads is 3"),
        ({"part": "decode"}, "prefill rows"),
    ],
)
def test_refusals(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(PREFILL, **change)


def test_models_and_faults_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'v3\.2'"):
        verification.Model("v1")
    with pytest.raises(ValueError, match="'fp8_656'"):
        verification.Model(layout="f32_576")
    with pytest.raises(ValueError, match="'flip'"):
        verification.Fault("burn")
    with pytest.raises(ValueError, match="'threads'"):
        verification.open_team("smoke")
    with pytest.raises(ValueError, match="'ragged'"):
        verification.batch("square")

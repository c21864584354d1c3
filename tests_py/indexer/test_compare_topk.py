"""The oracle itself: it passes what is right and names each planted fault."""

import numpy as np
import pytest

from sparsespan.indexer import topk
from sparsespan.testing import compare_topk


def case(rng):
    scores = rng.standard_normal((6, 100))
    lengths, starts = np.array([60, 5, 0, 90, 12, 30]), np.array([20, 3, 0, 10, 50, 0])
    return scores, lengths, starts, topk(scores.astype(np.float32), 12, lengths, starts)


def test_right_answers_pass(rng):
    scores, lengths, starts, got = case(rng)
    compare_topk(got, scores, 12, lengths, starts)
    compare_topk(got.astype(np.int64), scores, 12, lengths, starts)
    row = np.where(got == -1, -1, got - starts[:, None])
    compare_topk(row, scores, 12, lengths, starts, base="row")
    shuffled = got.copy()
    shuffled[0] = rng.permutation(got[0])
    compare_topk(shuffled, scores, 12, lengths, starts)
    compare_topk(topk(scores.astype(np.float32), 40), scores, 40)


def test_ties_may_go_either_way():
    scores = np.array([[1.0, 5.0, 5.0, 5.0, 0.0]])
    for got in ([1, 2], [3, 1], [2, 3]):
        compare_topk(np.array([got]), scores, 2, rtol=0, atol=0)
    infinite = np.array([[np.inf, np.inf, -np.inf, 0.0, -np.inf]])
    compare_topk(np.array([[1, 3, 0, 4]]), infinite, 4)
    with pytest.raises(AssertionError, match=r"rank 1 among the chosen is 0"):
        compare_topk(np.array([[1, 3]]), infinite, 2)


def test_near_ties_pass_within_the_tolerance_only():
    scores = np.array([[1.0, 1.00005, 3.0]])
    compare_topk(np.array([[0, 2]]), scores, 2)
    with pytest.raises(AssertionError, match=r"rank 1 among the chosen is 1, the best there is 1.00005"):
        compare_topk(np.array([[0, 2]]), scores, 2, rtol=1e-6, atol=1e-6)


def plant(fault, got, scores, lengths, starts):
    if fault == "one too few":
        got[0, -1] = -1
    elif fault == "one too many":
        got[1, 5] = 8
    elif fault == "something in an empty row":
        got[2, 0] = 0
    elif fault == "hole":
        got[1, 5], got[1, 2] = got[1, 2], -1
    elif fault == "other padding":
        got[1, 5] = 2**31 - 1
    elif fault == "before the window":
        got[0, 0] = 19
    elif fault == "behind the window":
        got[0, 3] = 80
    elif fault == "minus two":
        got[3, 0] = -2
    elif fault == "duplicate":
        got[0, 3] = got[0, 4]
    elif fault == "worse":
        window = scores[0, 20:80]
        got[0, 7] = 20 + int(np.argmin(window))
    elif fault == "just before":  # start - 1 is -1 from the window's start: not padding
        got[3, 11] = 9
    elif fault == "row of another":
        got[0] = got[3]


@pytest.mark.parametrize(
    "fault, message",
    [
        ("one too few", r"row 0: 11 indices are given, needs 12 \(window of 60\)"),
        ("one too many", r"row 1: 6 indices are given, needs 5"),
        ("something in an empty row", r"row 2: 1 indices are given, needs 0"),
        ("hole", r"row 1: -1 at place 2, before the padding begins"),
        ("other padding", r"row 1: 6 indices are given, needs 5"),
        ("before the window", r"row 0: index 19 lies before the window, at 20"),
        ("behind the window", r"row 0: index 60 \(from the window's start\) at place 3 lies outside the window of 60"),
        ("minus two", r"row 3: index -12 \(from the window's start\) at place 0 lies outside"),
        ("duplicate", r"row 0: index \d+ \(from the window's start\) is given more than once"),
        ("worse", r"row 0: the score of rank \d+ among the chosen is .*, the best there is"),
        ("just before", r"row 3: index 9 lies before the window, at 10"),
        ("row of another", r"row 0: "),
    ],
)
def test_faults_are_named(rng, fault, message):
    scores, lengths, starts, got = case(rng)
    plant(fault, got, scores, lengths, starts)
    with pytest.raises(AssertionError, match=message):
        compare_topk(got, scores, 12, lengths, starts)


def test_a_slow_drift_through_the_tolerance_is_found():
    """Rank by rank each score is near enough, yet the best one was missed for one that no tie explains."""
    scores = 1 + 0.9e-4 * np.arange(8)[None, ::-1]
    with pytest.raises(AssertionError, match=r"index 0 .* above the 7th best .* and is not chosen"):
        compare_topk(np.arange(1, 8)[None], scores, 7, rtol=0, atol=1e-4)


def test_ill_posed_comparisons_are_refused(rng):
    scores, lengths, starts, got = case(rng)
    for arguments, message in [
        ((got[:, :3], scores, 12), r"got has shape \[6, 3\], needs \[T, k\] = \[6, 12\]"),
        ((got.astype(float), scores, 12), r"got has dtype float64"),
        ((got, scores, 12, lengths + 80, starts), r"a window leaves the 100 columns"),
        ((got, scores, 12, lengths[:2]), r"need shape \[6\]"),
        ((got, np.where(scores > 2, np.nan, scores) * np.nan, 12), r"scores has NaN inside the window of row 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare_topk(*arguments)

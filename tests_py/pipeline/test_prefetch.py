"""The layer loop on paper: does a broadcast hide behind a layer?"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespan.pipeline import simulate_prefetch
from sparsespan.reference import layer_shard as twin


@settings(deadline=None)
@given(
    seconds=st.lists(st.integers(0, 9), min_size=1, max_size=9),
    broadcast=st.integers(0, 12),
    lanes=st.integers(1, 3),
    data=st.data(),
)
def test_prefetch_times_equal_the_twin(seconds, broadcast, lanes, data):
    k = data.draw(st.integers(0, max(0, len(seconds) - 2)))
    made = simulate_prefetch(seconds, float(broadcast), k, bandwidth=1.0, lanes=lanes)
    makespan, waits = twin.simulate_prefetch(seconds, broadcast, k, lanes=lanes)
    assert made.makespan == makespan and made.stall.tolist() == waits.tolist()
    assert made.hidden == (waits.max() == 0)
    np.testing.assert_array_equal(made.start, np.cumsum(made.stall) + np.cumsum([0, *seconds[:-1]]))
    assert (made.ready - made.issued == broadcast).all()


@pytest.mark.parametrize("t", [1, 2, 3, 4])
@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("lanes", [1, 4])
def test_equal_layers_hide_by_the_closed_rule(t, d, k, lanes):
    assert simulate_prefetch(t, d, k, layers=8, bandwidth=1, lanes=lanes).hidden == (k * t >= d and lanes * t >= d)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer_seconds": []}, "layer_seconds is empty"),
        ({"layer_seconds": [1.0, -1.0, 1.0]}, "layer_seconds holds -1 at 1"),
        ({"prefetch": 2}, "prefetch is 2, needs 0 to 1, the maximum for 3 layers"),
        ({"weight_bytes": -1}, "weight_bytes is -1"),
        ({"bandwidth": float("nan")}, "bandwidth is nan"),
        ({"latency": float("inf")}, "latency is inf"),
        ({"lanes": 0}, "lanes is 0"),
        ({"layers": 3}, "layers is given, needs None"),
        ({"layer_seconds": 1.0}, "layers is None, needs at least 1"),
    ],
)
def test_prefetch_refusals(arguments, words):
    with pytest.raises(ValueError, match="simulate_prefetch: ") as error:
        simulate_prefetch(**{"layer_seconds": [1.0] * 3, "weight_bytes": 1.0, "prefetch": 1, **arguments})
    assert words in str(error.value)

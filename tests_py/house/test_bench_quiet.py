"""When a bench's sample counts: who spins, who waited, and what stands around a call."""

import threading
import time

import pytest

from sparsespan import _core


def test_rest_is_when_no_thread_runs_any_more(bench):
    quiet = bench("quiet")
    if quiet._running() is None:
        pytest.skip("this system does not tell which threads run")
    start = time.perf_counter()
    _core.probe_per_thread("generic", 1 << 16, 1)
    long = int((1 << 16) * 0.15 / max(time.perf_counter() - start, 1e-6))
    ended = []

    def busy():
        _core.probe_per_thread("generic", long, 1)  # without the GIL
        ended.append(time.perf_counter())

    thread = threading.Thread(target=busy)
    thread.start()
    time.sleep(0.01)
    while not ended and time.perf_counter() - start < 30:  # patience may end before a busy machine lets it finish
        quiet.come_to_rest()
    rested = time.perf_counter()
    thread.join()
    assert ended and rested >= ended[0]
    assert quiet.come_to_rest() < quiet.PATIENCE_SECONDS


def test_patience_ends_and_a_system_that_tells_nothing_gets_a_pause(bench, monkeypatch):
    quiet = bench("quiet")
    monkeypatch.setattr(quiet, "PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr(quiet, "_running", lambda: 1)
    assert 0.02 <= quiet.come_to_rest() < 5
    monkeypatch.setattr(quiet, "BLIND_SECONDS", 0.015)
    monkeypatch.setattr(quiet, "_running", lambda: None)
    assert quiet.come_to_rest() == 0.015


def test_others_share_is_what_threads_waited_and_what_the_host_kept(bench, monkeypatch):
    quiet = bench("quiet")
    now = {"clock": 0.0, "stolen": 0.0, "delays": {7: "5 1000000000 3"}}
    monkeypatch.setattr(quiet.time, "perf_counter", lambda: now["clock"])
    monkeypatch.setattr(quiet, "_stolen", lambda: now["stolen"])
    monkeypatch.setattr(quiet, "_told", lambda name: now["delays"])
    waits = quiet.Waits(2)
    now |= {"clock": 10.0, "delays": {7: "9 1600000000 9", 8: "9 400000000 1"}}  # 8 began meanwhile
    assert waits.share() == pytest.approx((0.6 + 0.4) / 2 / 10)
    now["stolen"] = 0.3
    assert waits.share() == pytest.approx(0.08)
    now["delays"] = {}
    assert waits.share() == pytest.approx(0.03)


@pytest.fixture
def events(bench, monkeypatch):
    """What a sample does, in order."""
    timing, session = bench("timing"), bench("session")
    seen = []
    monkeypatch.setattr(timing, "come_to_rest", lambda: (seen.append("rest"), 0.1)[1])
    monkeypatch.setattr(timing.Waits, "share", lambda self: 0.0)  # a machine in use is no matter of these tests
    monkeypatch.setattr(session.Session, "probe", lambda self, isa: (seen.append("probe"), [100.0])[1])
    session.SESSION.best = dict.fromkeys(session.ORDER, 100.0)
    return seen


def test_a_peers_own_pool_is_at_rest_when_the_probe_runs(bench, events):
    """A pool that spins on after the call must not make its own sample slow, nor the probe's pool the peer's call."""
    timing, session = bench("timing"), bench("session")
    peer = timing.Run("peer", "", lambda: (events.append("call"), timing.Took(0.01))[1])
    peer.prepare()
    assert peer.rest == 0.1  # planned with
    del events[:]
    peer.take(1)
    assert events == ["rest", "probe", "rest", "call", "call", "rest", "probe"]
    ours = timing.Run("ours", session.SESSION.top(), peer.call)
    ours.prepare()
    del events[:]
    ours.take(1)
    assert events == ["rest", "call", "probe", "call", "probe"]
    for run in (peer, ours):
        run.samples[1].others = 0.0  # whatever else this machine has to do
    assert list(peer.fast()) == list(ours.fast()) == [1]


def test_a_sample_is_judged_by_what_happened_meanwhile_too(bench, monkeypatch, events):
    timing, session = bench("timing"), bench("session")
    top = session.SESSION.top()
    for seconds, others, fast in ((5.0, 0.2, False), (5.0, 0.01, True), (0.002, 0.2, False)):
        run = timing.Run("run", top, lambda: None, seconds=seconds)
        run.samples[0] = timing.Sample(seconds, [100.0, 100.0], others)
        assert (0 in run.fast()) is fast
    slow = iter([[50.0], [100.0], [100.0]])
    monkeypatch.setattr(session.Session, "probe", lambda self, isa: next(slow))
    run = timing.Run("run", top, lambda: timing.Took(5.0))
    run.prepare()  # the first probe was hit, the second not; one behind the call is enough
    assert run.samples[0].rates == [100.0, 100.0] and next(slow, None) is None


def test_a_probe_is_made_again_while_it_is_slow(bench, monkeypatch):
    session = bench("session")
    mine = session.Session(best={"generic": 100.0})
    rates = iter([[10.0, 90.0], [60.0, 70.0], [50.0, 99.0], [99.0, 99.0]])
    monkeypatch.setattr(session.Session, "probe", lambda self, isa: next(rates))
    assert mine.probe_again("generic", 3) == [60.0, 70.0]
    assert mine.probe_again("generic", 3) == [99.0, 99.0]
    assert next(rates, None) is None


def test_a_layer_gets_more_turns_until_three_pairs_are_fast(bench, monkeypatch):
    layer, session = bench("bench_transformers"), bench("session")
    session.SESSION.best = dict.fromkeys(session.ORDER, 100.0)
    monkeypatch.setattr(session.Session, "probe", lambda self, isa: [100.0])
    quiet_after, made = [0], []

    def forward(kind, length):
        made.append(kind)
        seconds = 1.0 if kind == "sparsespan" else 6.0
        others = 0.0 if len(made) > quiet_after[0] else 0.3
        return {
            "seconds": seconds * (1 + others), "linear_seconds": 0.5, "cpu_seconds": 1.0, "others": others,
            "grown": 1.0, "sample": [1.0],
        }  # fmt: skip

    monkeypatch.setattr(layer, "_forward", forward)
    for disturbed, turns, pairs in ((0, 3, 3), (3, 4, 3), (4, 5, 3), (99, 5, 0)):
        quiet_after[0] = disturbed
        del made[:]
        found = layer._turns()
        assert made.count("sparsespan") == made.count("eager") == turns and made.count("sdpa") == 1
        row = layer._time_row("eager", found["sparsespan"], found["eager"])
        assert row["pairs"] == pairs and row["ratio"] == pytest.approx(6.0)


def test_who_sits_turns_out_still_gets_the_three_pairs_that_a_goal_needs(bench, events):
    timing, session = bench("timing"), bench("session")
    levels = session.SESSION.levels()
    for level, fast, enough in (("", 2, False), ("", 3, True), (levels[-1], 2, False), (levels[0], 1, len(levels) > 1)):
        run = timing.Run("run", level, lambda: None, stride=8)
        run.samples = {8 * i: timing.Sample(1.0, [100.0, 100.0]) for i in range(fast)}
        assert timing._enough([run], 15) is enough
        assert timing._enough([run], 1)

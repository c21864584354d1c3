import pytest

from sparsespan import _core
from sparsespan._runtime import available_isas
from sparsespan.testing import each_isa


def test_the_probe_measures_every_level():
    for isa in each_isa():
        # Only the plumbing is tested: on a machine whose cores are taken, even a millisecond may count as twenty.
        assert _core.probe(isa, 1 << 14) > 1e5
        assert _core.probe(isa, 1 << 14, threads=2) > 1e5


def test_the_probe_refuses():
    with pytest.raises(ValueError, match=r"probe: isa is \"sse9\", needs generic"):
        _core.probe("sse9")
    with pytest.raises(ValueError, match=r"probe: iterations is 0, needs at least 1"):
        _core.probe("generic", 0)
    for isa in {"avx512_bf16", "amx"} - set(available_isas()):
        with pytest.raises(ValueError, match=rf"probe: isa is \"{isa}\", which cannot run here: \w"):
            _core.probe(isa)

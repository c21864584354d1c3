import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from make_stubs import STUBS, generate

sys.path.pop(0)


@pytest.mark.skipif("SPARSESPAN_SANITIZED" in os.environ, reason="the generator runs in its own process")
def test_stubs_are_what_the_extension_says():
    checked_in = {str(p.relative_to(STUBS)): p.read_text() for p in STUBS.rglob("*.pyi")}
    assert checked_in == generate(), "run ./dev stubs"

"""Generate python/sparsespan/_core/*.pyi from the built extension; test_stubs.py compares."""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STUBS = ROOT / "python" / "sparsespan" / "_core"


def generate() -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pybind11_stubgen",
                "sparsespan._core",
                "-o",
                folder,
                "--exit-code",
                "--numpy-array-wrap-with-annotated",
            ],
            check=True,
        )
        base = Path(folder) / "sparsespan" / "_core"
        found = {str(p.relative_to(base)): p.read_text() for p in sorted(base.rglob("*.pyi"))}
    if not found:
        raise RuntimeError("pybind11-stubgen wrote no stub")
    return found


if __name__ == "__main__":
    if "--write" in sys.argv:
        for old in STUBS.rglob("*.pyi"):
            old.unlink()
        for name, text in generate().items():
            target = STUBS / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)

"""The house's own rules, read off the source: who may include whom, how large a room may be."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
if not (ROOT / ".git").exists():
    pytest.skip("not a checkout", allow_module_level=True)

# A family may include itself and what is listed for it: the floors below, never sideways or up.
BELOW = {
    "core": set(),
    "kernels": {"core"},
    "comm": {"core"},
    "quant": {"core", "kernels", "comm"},
    "transform": {"core", "kernels", "comm"},
    "pipeline": {"core", "kernels", "comm"},
    "attention": {"core", "kernels", "comm", "quant", "transform", "pipeline"},
    "indexer": {"core", "kernels", "comm", "quant", "transform", "pipeline"},
    "parallel": {"core", "kernels", "comm", "quant", "transform", "pipeline", "attention", "indexer"},
}
BELOW["bindings"] = set(BELOW)


def tracked(*patterns):
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).exists()]


def includes(path):
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.M)


def test_includes_go_down_only():
    files = tracked("csrc/*.h", "csrc/*.cpp")
    assert len(files) > 20
    wrong = []
    for path in files:
        family = path.relative_to(CSRC).parts[0]
        for include in includes(path):
            target = include.split("/")[0]
            if target in BELOW and target != family and target not in BELOW[family]:
                wrong.append(f"{path.relative_to(ROOT)} includes {include}")
    assert wrong == []


def test_only_bindings_know_python_and_only_core_knows_openmp():
    for path in tracked("csrc/*.h", "csrc/*.cpp"):
        family = path.relative_to(CSRC).parts[0]
        text = path.read_text()
        for include in includes(path):
            if include.startswith(("pybind11", "Python.h")):
                assert family == "bindings", path
            assert not include.startswith(("torch", "mpi.h", "ATen")), path
            if include.startswith("Eigen"):
                assert family != "kernels", path
        assert "#pragma omp" not in text, path
        if "GOMP_" in text or "omp.h" in text:
            assert family == "core", path


def test_isa_files_use_intrinsics_only():
    """Standard-library and Eigen inline functions built with wide flags could be merged into the baseline path."""
    allowed = {"immintrin.h", "stdint.h", "string.h", "math.h"}
    files = tracked("csrc/kernels/simd/*", "csrc/kernels/body/*", "csrc/kernels/avx*", "csrc/kernels/amx*")
    assert files
    for path in files:
        for include in includes(path):
            assert include in allowed or include.startswith("kernels/"), f"{path}: {include}"


def test_rooms_are_small():
    large = []
    for path in tracked("*.h", "*.cpp", "*.py"):
        lines = len(path.read_text().splitlines())
        if lines > 300:
            large.append(f"{path.relative_to(ROOT)}: {lines} lines")
    assert large == []


def test_python_functions_are_short():
    long = []
    for path in tracked("python/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                start = first.end_lineno if documented else node.lineno
                if node.end_lineno - start > 50:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert long == []


def test_the_core_never_aborts_and_never_asserts():
    for path in tracked("csrc/*.h", "csrc/*.cpp"):
        for line in path.read_text().splitlines():
            code = line.split("//")[0]
            assert not re.search(r"(?<!static_)\bassert\s*\(|\babort\s*\(|\bexit\s*\(", code), f"{path}: {line}"


def test_no_march_native():
    flag = "-march" + "=native"
    for path in tracked("CMakeLists.txt", "CMakePresets.json", "pyproject.toml", "dev", "*.cmake"):
        assert flag not in path.read_text(), path


def test_the_version_is_one():
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    assert f"VERSION {version} " in (ROOT / "CMakeLists.txt").read_text()
    assert f'__version__ = "{version}"' in (ROOT / "python/sparsespan/__init__.py").read_text()

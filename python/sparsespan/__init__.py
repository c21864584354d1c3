"""DeepSeek Sparse Attention over long spans: exact, quick ops for the CPU, with a NumPy reference for each.

The families are modules: :mod:`quant`, :mod:`transform`, :mod:`indexer`, :mod:`attention`. Every op has a float64
twin of the same name under :mod:`reference`. Importing the package imports no torch.
"""

from __future__ import annotations

from ._pool import empty_kv_pool
from ._runtime import build_info, num_threads, set_max_isa, set_num_threads

__version__ = "0.1.0"
__all__ = ["__version__", "build_info", "empty_kv_pool", "num_threads", "set_max_isa", "set_num_threads"]

"""`python layer_process.py KIND LENGTH`: time and peak memory of one forward of DeepSeek-V3.2's attention module.

KIND is an attn_implementation of transformers: sparsespan, eager or sdpa. Random weights at the real sizes, bfloat16;
which keys a row attends to is what the module's own indexer says. Prints one JSON line; `others` in it is what
others took of the time.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from quiet import Waits, come_to_rest


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status")


def _layer(torch, kind: str):
    from transformers.models.deepseek_v32 import modeling_deepseek_v32 as theirs

    config = theirs.DeepseekV32Config(attn_implementation=kind)
    with torch.device("meta"):
        module = theirs.DeepseekV32Attention(config, 0).eval()
    module = module.to_empty(device="cpu").to(torch.bfloat16)
    for name, parameter in module.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            torch.nn.init.normal_(parameter, std=0.02)
    return module, theirs.DeepseekV32RotaryEmbedding(config)


def _mask(torch, kind: str, length: int):
    """What transformers hands to a layer: the model makes it once for all layers, so it is not part of the time."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    where = {"batch_size": 1, "q_length": length, "kv_length": length, "dtype": torch.bfloat16}
    return ALL_MASK_ATTENTION_FUNCTIONS[kind](**where, allow_is_causal_skip=False)


def _linear_seconds(torch, module) -> list[float]:
    """A cell that gathers the time of the linear layers: any implementation needs it."""
    spent, began = [0.0], [0.0]
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(lambda *_: began.__setitem__(0, time.perf_counter()))
            layer.register_forward_hook(lambda *_: spent.__setitem__(0, spent[0] + time.perf_counter() - began[0]))
    return spent


def main() -> None:
    import torch

    from sparsespan.integrations.transformers import register

    kind, length = sys.argv[1], int(sys.argv[2])
    register()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    module, rotary = _layer(torch, kind)
    hidden = torch.randn(1, length, module.hidden_size, dtype=torch.bfloat16)
    cos_sin = rotary(hidden, torch.arange(length)[None])
    mask = _mask(torch, kind, length)
    few = 64
    module(hidden[:, :few], tuple(x[:, :few] for x in cos_sin), _mask(torch, kind, few))  # thread pools, code made late
    linear = _linear_seconds(torch, module)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    come_to_rest()
    waits, start, cpu = Waits(torch.get_num_threads()), time.perf_counter(), time.process_time()
    out = module(hidden, cos_sin, mask)[0]
    seconds, cpu, others = time.perf_counter() - start, time.process_time() - cpu, waits.share()
    peak = _status("VmHWM")
    sample = out[0, :: length // 8, :16].float().flatten().tolist()
    told = {
        "seconds": seconds, "cpu_seconds": cpu, "linear_seconds": linear[0], "peak": peak, "grown": peak - before,
        "sample": sample, "others": others,
    }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()

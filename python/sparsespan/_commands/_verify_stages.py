"""``sparsespan verify --stages A B``: two implementations, stage by stage."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._verify_stages_text import planted_table, report_text

__all__ = ["add_options", "asked", "run"]

_LENGTHS, _DECODED = (41, 23, 7), 3
_OURS = ("stages", "checkpoint", "prompt", "decode", "tolerance", "capture", "plant", "planted")
_SHARED = ("model", "topk", "seed", "timeout", "json")


def add_options(parser: Any) -> None:
    """Add the options."""
    group = parser.add_argument_group("stages of a whole model (instead of the operators)")
    group.add_argument(
        "--stages", nargs="*", metavar=("A", "B"),
        help="run A and B over the same tokens and name the first stage, layer and token that differs and the bug it "
        "looks like; each is a grid (one, tp2, cp4:interleave, dcp2:ag_rs, pp2xcp2; @bf16 or @fp8 behind it), "
        "transformers, or a captured file.npz",
    )  # fmt: skip
    group.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: a tiny one of --model, made for this")
    group.add_argument("--prompt", action="append", metavar="TEXT", help="prompt (several: a batch; default: three of "
                       "random tokens)")  # fmt: skip
    group.add_argument("--decode", type=int, default=_DECODED, metavar="N", help="tokens that are then fed one by one "
                       f"(default {_DECODED})")  # fmt: skip
    group.add_argument("--tolerance", type=float, help="largest relative error of a row that counts as rounding")
    group.add_argument("--capture", type=Path, metavar="FILE", help="write A's stages to FILE.npz")
    group.add_argument("--plant", metavar="BUG[@LAYER]", help="plant a bug in B, to see it found; BUG is one of those "
                       "that --planted lists")  # fmt: skip
    group.add_argument("--planted", action="store_true", help="plant every known bug, one after the other, and print "
                       "what is found")  # fmt: skip


def asked(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask for this part."""
    given = (name for name in _OURS if getattr(arguments, name) != arguments.defaults(name))
    return arguments.models is None and any(given)


def _tokens(arguments: argparse.Namespace, path: Path, vocab: int) -> tuple[list[Any], list[Any]]:
    import numpy as np

    from .. import models

    rng = np.random.default_rng(arguments.seed)
    if arguments.prompt:
        tokenizer = models.open_tokenizer(path)
        prompts = [np.array(tokenizer.encode(text), np.int64) for text in arguments.prompt]
    else:
        prompts = [rng.integers(0, vocab, n) for n in _LENGTHS]
    if any(not len(p) for p in prompts):
        raise ValueError("--prompt: a prompt is empty, needs at least one token")
    return prompts, [rng.integers(0, vocab, arguments.decode) for _ in prompts]


@contextlib.contextmanager
def _checkpoint(arguments: argparse.Namespace) -> Iterator[Path]:
    from .. import models

    if arguments.checkpoint is not None:
        yield arguments.checkpoint
        return
    kind = {"v3.2": "deepseek_v32", "glm-5": "glm_moe_dsa"}[arguments.model]
    with tempfile.TemporaryDirectory() as folder:
        # Most rows see more keys than they may choose, some fewer; of GLM's layers the last takes the indices before.
        topk = 16 if arguments.topk is None else arguments.topk
        yield models.write_tiny(Path(folder) / "model", kind, seed=arguments.seed, index_topk=topk, num_hidden_layers=4)


class _Session:
    """Captures by name, over the same tokens."""

    def __init__(self, arguments: argparse.Namespace, path: Path) -> None:
        from .. import models
        from ..verification import stages

        self.arguments, self.path = arguments, path
        self.facts = stages.Facts.load(path)
        config = models.Checkpoint(path).config
        self.layers, self.model_type = config.num_hidden_layers, config.model_type
        self.prompts, self.decoded = _tokens(arguments, path, min(config.vocab_size, 256))
        for name in arguments.stages or ():
            if name.endswith(".npz"):
                file = stages.Captured.load(name)
                self.prompts, self.decoded = file.prompts, file.decoded
                break
        self._kept: dict[str, Any] = {}

    def get(self, name: str, plant: tuple[str, int] | None = None) -> Any:
        """What an implementation computed; kept, unless something is planted in it."""
        from ..verification import stages

        if plant is not None:
            with stages.planted(*plant):
                found = stages.capture(self.path, self.prompts, self.decoded, name, timeout=self.arguments.timeout)
            found.name = f"{name} + {plant[0]}"
            return found
        if name not in self._kept:
            if name.endswith(".npz"):
                self._kept[name] = stages.Captured.load(name)
            elif name.partition("@")[0] == "transformers":
                dtypes = {"": "float32", "f32": "float32", "bf16": "bfloat16"}
                dtype = dtypes.get(name.partition("@")[2])
                if dtype is None:
                    raise ValueError(f"{name!r}: transformers runs in f32 or bf16")
                self._kept[name] = stages.capture_transformers(self.path, self.prompts, self.decoded, dtype)
            else:
                self._kept[name] = stages.capture(
                    self.path, self.prompts, self.decoded, name, timeout=self.arguments.timeout
                )
        return self._kept[name]


def _plant(arguments: argparse.Namespace, session: _Session) -> tuple[str, int] | None:
    from ..verification import stages

    if arguments.plant is None:
        return None
    name, _, at = arguments.plant.partition("@")
    if name not in stages.PLANTS:
        raise ValueError(f"--plant is {name!r}, needs one of {', '.join(stages.PLANTS)}")
    if at and (not at.isdigit() or int(at) >= session.layers):
        raise ValueError(f"--plant: layer is {at!r}, needs 0 to {session.layers - 1}")
    b = arguments.stages[1]
    if b.endswith(".npz") or b.startswith("transformers"):
        raise ValueError(f"--plant plants in B, which is {b}: needs our model on a grid")
    return name, int(at) if at else -1


def _check(arguments: argparse.Namespace) -> None:
    for name, value in vars(arguments).items():
        if name not in (*_OURS, *_SHARED, "command", "run", "defaults") and value != arguments.defaults(name):
            raise ValueError(f"--{name.replace('_', '-')} is not for --stages, needs to be left out")
    if not 0 < arguments.timeout < math.inf:
        raise ValueError(f"--timeout is {arguments.timeout:g}, needs seconds above 0")
    names = arguments.stages or []
    if len(names) != (0 if arguments.planted else 2):
        raise ValueError(
            f"--stages has {len(names)} names, needs "
            + ("none with --planted, which brings its own" if arguments.planted else "two: A and B")
        )
    if arguments.planted and arguments.plant:
        raise ValueError("--plant and --planted are both given, needs one: one bug, or all of them")
    if arguments.decode < 0:
        raise ValueError(f"--decode is {arguments.decode}, needs at least 0")
    if arguments.tolerance is not None and not 0 <= arguments.tolerance < 10:
        raise ValueError(f"--tolerance is {arguments.tolerance:g}, needs 0 or more")
    path = arguments.capture
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise ValueError(f"--capture is {str(path)!r}, needs a file in a directory that exists")


def _compare(arguments: argparse.Namespace, session: _Session) -> int:
    from ..verification import stages

    plant = _plant(arguments, session)
    a = session.get(arguments.stages[0])
    if arguments.capture is not None:
        a.save(arguments.capture)
        print(f"wrote {arguments.capture}", file=sys.stderr)
    b = session.get(arguments.stages[1], plant)
    report = stages.compare(a, b, session.facts, arguments.tolerance)
    head = {"model_type": session.model_type, "requests": len(a.prompts), "prefill_rows": int((~a.decode).sum()),
            "decode_rows": int(a.decode.sum())}  # fmt: skip
    print(json.dumps(head | report.document()) if arguments.json else report_text(head, report))
    return 0 if report.finding is None else 1


def _planted(arguments: argparse.Namespace, session: _Session) -> int:
    """Every plant in the layer in the middle; 0 if each is named where it is."""
    from ..verification import stages

    layer = min(1, session.layers - 1)
    rows = []
    plain = session.facts.dims.yarn_factor == 1
    for plant in stages.PLANTS.values():
        if plant.yarn and plain:
            continue
        report = stages.compare(
            session.get(plant.against), session.get(plant.grid, (plant.name, layer)), session.facts, arguments.tolerance
        )
        found = report.finding
        right = found is not None and (found.stage, found.layer, found.bug) == (plant.stage, layer, plant.bug)
        rows.append({
            "planted": plant.name, "what": plant.words, "bug": plant.bug, "stage": plant.stage, "layer": layer,
            "a": plant.against, "b": plant.grid, "named": right, "found": report.document()["finding"],
        })  # fmt: skip
        if not arguments.json:
            print(planted_table(rows[-1:], head=len(rows) == 1), flush=True)
    named = sum(bool(row["named"]) for row in rows)
    if arguments.json:
        print(json.dumps({"model_type": session.model_type, "planted": rows, "named": named}))
    else:
        print(f"{named} of {len(rows)} planted bugs were named, with their stage and layer")
    return 0 if named == len(rows) else 1


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    try:
        _check(arguments)
        with _checkpoint(arguments) as path:
            session = _Session(arguments, path)
            return _planted(arguments, session) if arguments.planted else _compare(arguments, session)
    except KeyboardInterrupt:
        print("sparsespan verify: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, IndexError, OSError, RuntimeError) as error:
        print(f"sparsespan verify: {error}", file=sys.stderr)
        return 2

"""Checkpoints on disk: what is written is read; files that lie are refused before anything is mapped."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from sparsespan import cli, models
from sparsespan.models import Checkpoint, CheckpointError, TensorFile, write_tensors, write_tiny

SMALL = {"num_hidden_layers": 2, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "vocab_size": 272}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "v32", "deepseek_v32", **SMALL)


@pytest.fixture
def copy(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "copy")
    return tmp_path / "copy"


def test_round_trip(rng, tmp_path):
    dtypes = [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int64, np.uint8, np.bool_]
    tensors = {f"t{i}": rng.integers(0, 2, (3, i)).astype(d) for i, d in enumerate(dtypes)}
    tensors["scalar"] = np.array(2.5, np.float32)
    write_tensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    file = TensorFile(tmp_path / "x.safetensors")
    assert set(file.tensors) == set(tensors)
    for name, want in tensors.items():
        got = file.read(name)
        assert got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()
    assert not file.read("t2").flags.writeable


def test_misaligned_tensors_are_copied(tmp_path):
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    write_raw(tmp_path / "x", header, b"\x07" + np.float32(1.5).tobytes())
    got = TensorFile(tmp_path / "x").read("b")
    assert got[0] == 1.5 and got.flags.aligned


def write_raw(path, header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE = [
    (b"", b"", None, "is no JSON"),
    (b"{}", b"", 1 << 62, "header claims 4611686018427387904 bytes"),
    (b"{}", b"", 100_000_001, "header claims 100000001 bytes"),
    (b"{}", b"", 3, "cut off or no safetensors"),
    (b"[]", b"", None, "no JSON object"),
    (b"\xff\xfe", b"", None, "is no JSON"),
    (b"[" * 100000, b"", None, "is no JSON"),
    (b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [], "data_offsets": [0, 4]}}', bytes(4), None, "there twice"),
    ({"a": entry("F31")}, bytes(4), None, "dtype 'F31', needs one of"),
    ({"a": entry(["F32"])}, bytes(4), None, r"dtype \['F32'\]"),
    ({"a": entry(shape=(-1,))}, bytes(4), None, r"shape \[-1\]"),
    ({"a": entry(shape=(True,))}, bytes(4), None, "shape"),
    ({"a": entry(shape=(1,) * 9)}, bytes(4), None, "shape"),
    ({"a": entry(shape=(1 << 62, 1 << 62))}, bytes(4), None, "needs .* for F32"),
    ({"a": entry(offsets=(4, 0))}, bytes(4), None, "has -4 bytes"),
    ({"a": entry(offsets=(0, 4.0))}, bytes(4), None, "data_offsets"),
    ({"a": entry(offsets=(-4, 0))}, bytes(4), None, "data_offsets"),
    ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), None, "needs exactly dtype, shape and data_offsets"),
    ({"a": 3}, bytes(4), None, "needs exactly"),
    ({"a": entry(), "b": entry()}, bytes(4), None, "'b' begins at byte 0 and overlaps 'a'"),
    ({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12), None, "'b' begins at byte 8 and leaves a hole behind 'a'"),
    ({"a": entry(offsets=(4, 8))}, bytes(8), None, "leaves a hole behind the header"),
    ({"a": entry()}, bytes(3), None, "holds 3 bytes of data, needs 4: it is cut off"),
    ({"a": entry()}, bytes(5), None, "bytes that belong to no tensor"),
]  # fmt: skip


@pytest.mark.parametrize("size", [0, 7])
def test_files_without_a_header(tmp_path, size):
    (tmp_path / "x").write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match=f"has {size} bytes, needs at least 8: it is cut off"):
        TensorFile(tmp_path / "x")


@pytest.mark.parametrize("header, data, length, words", HOSTILE)
def test_hostile_files(tmp_path, header, data, length, words):
    write_raw(tmp_path / "x", header, data, length)
    with pytest.raises(CheckpointError, match=words):
        TensorFile(tmp_path / "x")


def test_every_cut_of_a_file_is_refused(tmp_path):
    write_tensors(tmp_path / "whole", {"a": np.arange(3, dtype=np.float32), "b": np.ones(2, np.uint8)})
    whole = (tmp_path / "whole").read_bytes()
    for n in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:n])
        with pytest.raises(CheckpointError):
            TensorFile(tmp_path / "cut")


def test_no_single_changed_byte_gets_through_wrongly(tmp_path, rng):
    """A changed header byte is refused, or leaves tensors that still lie inside the file."""
    write_tensors(tmp_path / "whole", {"a": np.arange(3, dtype=np.float32), "b": np.ones(2, np.uint8)})
    whole = bytearray((tmp_path / "whole").read_bytes())
    header = int.from_bytes(whole[:8], "little")
    for place in range(8 + header):
        for value in rng.integers(0, 256, 3):
            changed = bytearray(whole)
            changed[place] = value
            (tmp_path / "x").write_bytes(changed)
            try:
                file = TensorFile(tmp_path / "x")
            except CheckpointError:
                continue
            assert sum(file.read(name).nbytes for name in file.tensors) == len(whole) - 8 - header


def edit(path, name, change):
    document = json.loads((path / name).read_text())
    change(document)
    (path / name).write_text(json.dumps(document))


def rewrite(path, change):
    file = TensorFile(path / "model.safetensors")
    tensors = {name: file.read(name).copy() for name in file.tensors}
    change(tensors)
    write_tensors(path / "model.safetensors", tensors)


def test_one_error_lists_missing_unexpected_and_misshapen(copy):
    def change(tensors):
        del tensors["model.norm.weight"]
        del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
        tensors["model.layers.1.self_attn.rotary"] = np.ones(2, np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].T.copy()
        tensors["model.layers.0.input_layernorm.weight"] = np.ones(64, np.int32)

    rewrite(copy, change)
    with pytest.raises(CheckpointError) as error:
        Checkpoint(copy)
    text = str(error.value)
    assert "2 missing: model.layers.1.mlp.experts.3.up_proj.weight, model.norm.weight" in text
    assert "1 unexpected: model.layers.1.self_attn.rotary" in text
    assert "2 misshapen:" in text and "lm_head.weight is [64, 272], needs [272, 64]" in text
    assert "model.layers.0.input_layernorm.weight is I32, needs F32 or BF16 or F16" in text


def test_long_lists_are_cut(copy):
    edit(copy, "config.json", lambda c: c.update(num_hidden_layers=6))
    with pytest.raises(CheckpointError, match=r"missing: (model\.\S+, ){12}and \d+ more$"):
        Checkpoint(copy)


def test_draft_layers_are_left_alone(copy):
    rewrite(copy, lambda t: t.update({"model.layers.2.eh_proj.weight": np.ones((2, 2), np.float32)}))
    assert "model.layers.2.eh_proj.weight" in Checkpoint(copy)


def test_float8_scales(tmp_path):
    path = write_tiny(tmp_path / "x", "glm_moe_dsa", dtype="float8", num_hidden_layers=2)
    assert Checkpoint(path).info("model.layers.1.self_attn.o_proj.weight").dtype == "F8_E4M3"
    name = "model.layers.1.self_attn.o_proj.weight"
    broken = tmp_path / "broken"
    for change, words in (
        (lambda t: t.pop(name + "_scale_inv"), f"{name} is F8_E4M3 without"),
        (lambda t: t.update({name + "_scale_inv": np.ones((9, 9), np.float32)}), r"_scale_inv is F32 \[9, 9\], needs"),
        (lambda t: t.update({name: t[name].astype(np.float32)}), "stands beside a weight that is F32"),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype(ml_dtypes.float8_e4m3fn)}),
            "lm_head.weight is F8",
        ),
    ):
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(path, broken)
        rewrite(broken, change)
        with pytest.raises(CheckpointError, match=words):
            Checkpoint(broken)
    shutil.rmtree(broken)
    shutil.copytree(path, broken)
    edit(broken, "config.json", lambda c: c.pop("quantization_config"))
    with pytest.raises(CheckpointError, match="is F8_E4M3, needs F32 or BF16 or F16"):
        Checkpoint(broken)


def test_shards_hold_the_same_tensors(tiny, tmp_path):
    sharded = write_tiny(tmp_path / "x", "deepseek_v32", shards=3, **SMALL)
    assert len(list(sharded.glob("model-*.safetensors"))) == 3
    one, three = Checkpoint(tiny), Checkpoint(sharded)
    assert set(one.names()) == set(three.names())
    assert all(one[name].tobytes() == three[name].tobytes() for name in one.names())


INDEX = "model.safetensors.index.json"


def test_hostile_index(tmp_path):
    path = write_tiny(tmp_path / "x", "deepseek_v32", shards=2, **SMALL)
    index, shard = (path / INDEX).read_text(), "model-00001-of-00002.safetensors"
    (tmp_path / "secret.safetensors").write_bytes((path / shard).read_bytes())
    name = "model.embed_tokens.weight"
    for value in ("../secret.safetensors", "/etc/passwd", "a/b", "..", ".hidden", "a\\b", ""):
        edit(path, INDEX, lambda d, v=value: d["weight_map"].update({name: v}))
        with pytest.raises(CheckpointError, match="is no plain file name"):
            Checkpoint(path)
        (path / INDEX).write_text(index)
    for change, words in (
        (lambda d: d["weight_map"].update({name: "absent.safetensors"}), "absent.safetensors: is missing"),
        (
            lambda d: d["weight_map"].update({name: "model-00002-of-00002.safetensors"}),
            "which the index has in model-00002",
        ),
        (lambda d: d["weight_map"].pop(name), "which the index has in no file"),
        (lambda d: d["weight_map"].update({"ghost": shard}), r"do not hold: ghost \(in model-00001"),
        (lambda d: d.pop("weight_map"), "needs weight_map"),
        (lambda d: d["weight_map"].update({name: 3}), "needs weight_map"),
    ):
        edit(path, INDEX, change)
        with pytest.raises(CheckpointError, match=words):
            Checkpoint(path)
        (path / INDEX).write_text(index)
    Checkpoint(path)
    data = (path / shard).read_bytes()
    (path / shard).write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=f"{shard}: holds .* is cut off"):
        Checkpoint(path)


def test_folders_that_are_no_checkpoint(tmp_path, copy):
    with pytest.raises(CheckpointError, match="is no folder"):
        Checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"config\.json: is missing"):
        Checkpoint(tmp_path)
    (copy / "config.json").write_text('{"model_type": "deepseek_v32", "model_type": "deepseek_v32"}')
    with pytest.raises(CheckpointError, match="'model_type' stands there twice"):
        Checkpoint(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no JSON"):
        Checkpoint(copy)
    shutil.copy(tmp_path / "copy" / "tokenizer.json", copy / "config.json")
    with pytest.raises(CheckpointError, match="model_type is missing"):
        Checkpoint(copy)
    (copy / "model.safetensors").unlink()
    (copy / "config.json").write_text(json.dumps(models.tiny_config("deepseek_v32")))
    with pytest.raises(CheckpointError, match="has neither model"):
        Checkpoint(copy)


def test_make_tiny_command(tmp_path, capsys):
    assert cli.main(["make-tiny", "glm_moe_dsa", "--out", str(tmp_path / "a"), "--json", "--dtype", "bfloat16"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layers"] == 8 and told["tensors"] == len(list(Checkpoint(tmp_path / "a").names()))
    assert json.loads((tmp_path / "a" / "config.json").read_text())["max_position_embeddings"] >= 32768
    assert cli.main(["make-tiny", "glm_moe_dsa", "--out", str(tmp_path / "a")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert cli.main(["make-tiny", "glm_moe_dsa", "--out", str(tmp_path / "b"), "--seed", "-1"]) == 2
    assert cli.main(["make-tiny", "glm_moe_dsa", "--out", str(tmp_path / "b"), "--shards", "0"]) == 2
    with pytest.raises(ValueError, match="model is 'llama'"):
        models.tiny_config("llama")
    with pytest.raises(ValueError, match="dtype is 'int4'"):
        write_tiny(tmp_path / "c", "glm_moe_dsa", dtype="int4")

"""What a new user may get wrong: each ends in words that name it, never in a traceback or a wait."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from sparsespan import cli
from sparsespan._commands._run_rank import fingerprint
from sparsespan._commands._run_text import TokenPrinter
from sparsespan.models import (
    Checkpoint,
    CheckpointError,
    TensorFile,
    load,
    open_tokenizer,
    parse_config,
    sample,
    tiny_config,
    write_tiny,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bad") / "tiny", "deepseek_v32", num_hidden_layers=2)


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


def _run(capsys, path, *options):
    code = cli.main(["run", str(path), "--prompt", "hello", "--max-new-tokens", "2", *options])
    return code, capsys.readouterr()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "^config.json: hidden_size is missing, needs a whole number from 1"),
        ({"model_type": []}, r"model_type is \[\], needs one of deepseek_v32"),
        ({"architectures": ["LlamaForCausalLM"]}, r"architectures is \['LlamaForCausalLM'\], needs"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers is 10+, needs a whole number from 1 to 10000"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, needs a finite number"),
        ({"routed_scaling_factor": float("inf")}, "routed_scaling_factor is inf, needs a finite number"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({"dtype": 0}, "dtype is 0, needs"),
        ({"rope_parameters": 0}, "rope_parameters is 0, needs an object"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta is 0, needs a finite number >= 1"),
    ],
)
def test_config_fields(change, words):
    with pytest.raises(CheckpointError, match=words):
        parse_config(tiny_config("deepseek_v32", **change))


def test_a_huge_number_of_experts_is_refused_at_once(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"n_routed_experts": 2**30, "first_k_dense_replace": 0}))
    with pytest.raises(CheckpointError, match="n_routed_experts = 1073741824 needs 6442450944 tensors of experts"):
        Checkpoint(copy)


def test_numbers_of_thousands_of_digits_are_no_json(copy):
    (copy / "config.json").write_text('{"vocab_size": ' + "1" * 5000 + "}")
    with pytest.raises(CheckpointError, match="is no JSON: "):
        Checkpoint(copy)
    header = ('{"a":' + "1" * 5000 + "}").encode()
    (copy / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="its header is no JSON: "):
        TensorFile(copy / "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(copy, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read: is no regular file"):
        Checkpoint(copy)


def test_a_correction_bias_with_nan_is_refused(copy):
    file = TensorFile(copy / "model.safetensors")
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    with (copy / "model.safetensors").open("r+b") as raw:
        raw.seek(file._start + file.tensors[name].begin)
        raw.write(np.float32(np.nan).tobytes())
    with pytest.raises(ValueError, match="e_score_correction_bias holds NaN"):
        load(copy)


def _tokenizer(copy, **vocab):
    document = json.loads((copy / "tokenizer.json").read_text())
    document["model"]["vocab"].update(vocab)
    (copy / "tokenizer.json").write_text(json.dumps(document))


def test_tokens_outside_the_vocabulary_are_refused_before_the_ranks_begin(copy, capsys):
    _tokenizer(copy, h=99999)
    code, said = _run(capsys, copy)
    assert code == 2
    assert "tokenizer.json gives token 99999, the model's vocabulary has 272" in said.err


def test_tokens_that_are_no_numbers_are_refused(copy):
    pytest.importorskip("tokenizers")
    _tokenizer(copy, h="x")
    with pytest.raises(CheckpointError, match="tokenizers package refuses it"):
        open_tokenizer(copy)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature", "inf"], "--temperature is inf, needs a finite number"),
        (["--timeout", "inf"], "--timeout is inf, needs more than 0 seconds, and a finite number"),
        (
            ["--trace", "/nowhere/trace.json"],
            "--trace is '/nowhere/trace.json', needs a file in a directory that exists",
        ),
        (["--trace", "/"], "--trace is '/', needs a file"),
        (["--decode-tp", "3"], "decode grid: tp is 3, which does not divide"),
        (["--prompt", "\udcff"], "--prompt: is no UTF-8 text"),
    ],
)
def test_options_are_refused(tiny, capsys, options, words):
    code, said = _run(capsys, tiny, *options)
    assert code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert words in said.err


@pytest.mark.parametrize("grid", [[], ["--cp", "2"]], ids=["one rank", "cp2"])
def test_a_pool_that_memory_cannot_hold_ends_in_words(tiny, capsys, grid):
    code, said = _run(capsys, tiny, "--pool", str(10**14), *grid)
    assert code == 1
    assert "out of memory: pool: 100000000000000 tokens of 2 layers" in said.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_a_full_disk_costs_the_trace_and_not_the_tokens(tiny, capsys):
    code, said = _run(capsys, tiny, "--trace", "/dev/full", "--json")
    assert code == 1
    assert len(json.loads(said.out)["tokens"]) == 2
    assert "--trace /dev/full cannot be written: No space left on device" in said.err


@pytest.mark.parametrize("grid", [[], ["--cp", "2"]], ids=["one rank", "cp2"])
def test_a_closed_pipe_ends_without_a_traceback(tiny, grid):
    command = [sys.executable, "-m", "sparsespan.cli", "run", str(tiny), "--prompt", "hello", "--ignore-eos", *grid]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(60) == 141  # as by the signal SIGPIPE
    assert "Traceback" not in said


def test_an_interrupt_before_the_ranks_begin_ends_with_130(tiny, capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsespan.models.Checkpoint", interrupt)
    code, said = _run(capsys, tiny)
    assert (code, said.err) == (130, "\nsparsespan run: interrupted\n")


def test_line_ends_of_a_prompt_file_are_kept(tiny, tmp_path, capsys):
    (tmp_path / "prompt").write_bytes(b"a\r\nb")
    command = ["run", str(tiny), "--prompt-file", str(tmp_path / "prompt"), "--max-new-tokens", "1", "--json"]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == 4


def test_shards_have_a_tensor_each(tmp_path):
    names = write_tiny(tmp_path / "a", "deepseek_v32", num_hidden_layers=1, shards=15)
    assert all(TensorFile(path).tensors for path in names.glob("*.safetensors"))
    with pytest.raises(ValueError, match="shards is 1000, needs at most 20, one for each tensor"):
        write_tiny(tmp_path / "b", "deepseek_v32", num_hidden_layers=1, shards=1000)
    with pytest.raises(ValueError, match="is a file, needs a new folder"):
        write_tiny(tmp_path / "a" / "config.json", "deepseek_v32", num_hidden_layers=1)


def test_a_tiny_temperature_takes_the_best():
    logits = np.array([[1.0, 3.0, 2.0], [-5.0, -7.0, -6.0]], np.float32)
    assert sample(logits, 1e-320).tolist() == [1, 0]


def test_other_weights_beside_the_same_norms_have_another_fingerprint(tiny, copy):
    before = fingerprint(Checkpoint(copy))
    assert before == fingerprint(Checkpoint(tiny))
    file = TensorFile(copy / "model.safetensors")
    with (copy / "model.safetensors").open("r+b") as raw:
        place = file.tensors["model.layers.1.self_attn.o_proj.weight"]
        raw.seek(file._start + (place.begin + place.end) // 2)
        raw.write(np.float32(0.5).tobytes())
    assert fingerprint(Checkpoint(copy)) != before


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_of_a_prefill_on_a_terminal_alone(tiny, monkeypatch, terminal):
    from sparsespan.models import Stopwatch

    monkeypatch.setattr("sparsespan._commands._run_text._EVERY", 0.0)
    shown, text = (_Terminal() if terminal else io.StringIO()), io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    tell = TokenPrinter(open_tokenizer(tiny), text)
    with Stopwatch(on_layer=tell.progress):
        (tokens,) = load(tiny).generate([list(b"hello")], 2, chunk=3, stop_at_eos=False, on_token=lambda _, t: tell(t))
    assert len(tokens) == 2
    lines = [line.removeprefix("\x1b[K") for line in shown.getvalue().split("\r")]
    want = [f"prefill: {done} of 5 tokens, layer {layer} of 2 (rank 0)" for done in (0, 3) for layer in (1, 2)]
    assert lines == (["", *want, ""] if terminal else [""])

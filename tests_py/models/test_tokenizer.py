"""Text to tokens and back."""

import json

import pytest

from sparsespan import models
from sparsespan._commands._run_text import TokenPrinter

TEXTS = ["plain", "", "  two  spaces\n\ttab", "Größe: 3 €, 深い 🙂", "a</s>b<s><pad>", "<s", "\x00\x7f"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models.write_tiny(tmp_path_factory.mktemp("tokenizer") / "glm", "glm_moe_dsa", num_hidden_layers=1)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_tokens(folder, text):
    tokenizer = models.open_tokenizer(folder)
    assert isinstance(tokenizer, models.ByteTokenizer)
    tokens = tokenizer.encode(text)
    if "<s>" not in text:
        assert tokens == list(text.encode())
    assert tokenizer.decode(tokens) == text.replace("</s>", "").replace("<s>", "").replace("<pad>", "")


@pytest.mark.peer
@pytest.mark.parametrize("text", TEXTS)
def test_as_the_tokenizers_package(folder, text):
    peer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = models.open_tokenizer(folder).encode(text)
    assert tokens == peer.encode(text).ids
    assert models.open_tokenizer(folder).decode(tokens) == peer.decode(tokens)


def _with_merges(folder, target):
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["vocab"]["ab"] = 259
    document["model"]["merges"] = [["a", "b"]]
    target.mkdir()
    (target / "tokenizer.json").write_text(json.dumps(document))
    return target


@pytest.mark.peer
def test_merges_go_to_the_package(folder, tmp_path):
    pytest.importorskip("tokenizers")
    tokenizer = models.open_tokenizer(_with_merges(folder, tmp_path / "merges"))
    assert tokenizer.encode("cab") == [99, 259]
    assert tokenizer.decode([99, 259]) == "cab"


def test_refusals(folder, tmp_path, monkeypatch):
    merges = _with_merges(folder, tmp_path / "merges")
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(models.CheckpointError, match="needs the tokenizers package: pip install tokenizers"):
        models.open_tokenizer(merges)
    (merges / "tokenizer.json").write_text("{")
    with pytest.raises(models.CheckpointError, match="is no JSON that can be read"):
        models.open_tokenizer(merges)


def test_characters_are_printed_whole_and_tame(folder, capsys):
    import sys

    printer = TokenPrinter(models.open_tokenizer(folder), sys.stdout)
    seen = []
    for token in [*"é€".encode(), 65, 27, 0xFF]:
        printer(token)
        seen.append(capsys.readouterr().out)
    assert seen == ["", "é", "", "", "€", "A", "\ufffd", ""]
    printer.end()
    assert capsys.readouterr().out == "\ufffd\n"

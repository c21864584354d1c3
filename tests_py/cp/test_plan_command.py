"""``sparsespan plan cp``: tables, one JSON document, a drawing, and refusals in words."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from sparsespan import cp
from sparsespan.cli import main

ORDER = ["plan", "cp", "--model", "v3.2", "--tokens", "65536", "--cp", "1,2,4,8,16,32"]


def run(capsys, *arguments):
    code = main(list(arguments))
    return code, *capsys.readouterr()


def test_prints_every_table_that_reviewers_ask_for(capsys):
    code, out, err = run(capsys, *ORDER)
    assert (code, err) == (0, "")
    titles = [block.splitlines()[0] for block in out.split("\n\n")]
    assert [t.split(":")[0].split(" (")[0] for t in titles[1:]] == [
        "Volume of one step",
        "Primitives at 32 ranks",
        "Models side by side",
        "Work of the busiest rank",
        "Load balance",
        "DSA-CP o_proj with bf16 weights",
    ]
    assert all("modelled" in t for t in titles[1:]), "every table says what its figures are"
    volume = {line.split()[0]: line for line in out.split("\n\n")[1].splitlines()[3:]}
    assert list(volume) == ["1", "2", "4", "8", "16", "32"]
    assert "20.4x" in volume["8"] and "93.4 GiB" in volume["8"] and "4.59 GiB" in volume["8"]


def test_json_is_one_document_that_agrees_with_the_api(capsys):
    code, out, err = run(capsys, *ORDER, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["figures"] == "modelled" and document["models"] == ["v3.1", "v3.2"]
    for step in document["steps"]:
        for name, figures in step["models"].items():
            n = step["ranks"]
            assert figures["cp_received"] == cp.volume("zigzag", model=name, tokens=65536, ranks=n).received
            assert figures["tp_received"] == cp.volume("tp", model=name, tokens=65536, ranks=n).received
    assert document["o_proj"][3]["break_even_all_reduce"] == 8192
    # Work: 16384 FLOP per scored pair and layer; tensor parallelism does not divide the indexer.
    pairs = 65536 * 65537 // 2
    for step in document["steps"]:
        work = step["models"]["v3.2"]["work"]
        assert work["tp_indexer"] == pytest.approx(pairs * 16384 * 61 / 1e12)
        assert work["cp_indexer"] == pytest.approx(work["tp_indexer"] / step["ranks"])
        assert step["models"]["v3.1"]["work"]["tp_attention"] == pytest.approx(
            pairs * 81920 * 61 / step["ranks"] / 1e12)  # fmt: skip


def test_published_balance_of_contiguous_and_zigzag(capsys):
    """Contiguous: 1 - 1/N above the mean; with 2N dividing L the zigzag is exact (specification sheet, 1.9)."""
    _, out, _ = run(capsys, *ORDER, "--json", "--tokens", "8192")
    balance = json.loads(out)["balance"]
    for i, n in enumerate((1, 2, 4, 8, 16, 32)):
        assert balance["zigzag"]["all_keys"][i] == 0
        assert balance["contiguous"]["all_keys"][i] == pytest.approx(1 - 1 / n, abs=2e-4)
        assert balance["contiguous"]["topk"][i] == pytest.approx(0.143 if n > 1 else 0, abs=1e-3)


@pytest.mark.parametrize("lengths", [[65536], [13, 7], [0, 1, 31], []])
def test_volumes_count_the_rows_that_split_plan_gives(lengths):
    """Two ways to the busiest rank's rows: the closed formula of the volume and the plan's own list."""
    cu_seqlens = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    for n in (1, 2, 4, 8, 32):
        for scheme in ("zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat"):
            plan = cp.split_plan(scheme, cu_seqlens, None, n)
            row = cp.volume(scheme, tokens=lengths, ranks=n).rows[0]
            assert row.chunk == int(plan.padded_len) * 1152, (scheme, n)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--scheme", "interleave", "--tokens", "32768,8192,20000", "--prefix", "4096,0,0", "--svg-cp", "4"],
        ["--scheme", "contiguous", "--model", "v3.1", "--svg-cp", "32"],
        ["--model", "glm-5.2", "--cp", "64,1", "--svg-cp", "64", "--scheme", "zigzag_padded"],
        ["--tokens", "0", "--cp", "1"],
        ["--tokens", "3", "--scheme", "ceil_chunk", "--cache", "fp8", "--weights", "int8"],
    ],
)
def test_draws_a_well_formed_picture(capsys, tmp_path, more):
    target = tmp_path / "plan.svg"
    code, out, err = run(capsys, *ORDER, *more, "--svg", str(target))
    assert code == 0 and "Volume of one step" in out and err == f"wrote {target}\n"
    root = ElementTree.parse(target).getroot()
    width, height = float(root.get("width")), float(root.get("height"))
    words = " ".join(t.text for t in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "modelled" in words and "Who owns which tokens" in words and "What moves in one layer" in words
    for element in root.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w, h = (float(element.get(k)) for k in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + w <= width + 0.01 and y + h <= height + 0.01
    target.unlink()


def test_owned_tokens_are_drawn_to_scale(tmp_path):
    target = tmp_path / "plan.svg"
    assert main([*ORDER, "--svg", str(target), "--svg-cp", "4", "--scheme", "contiguous"]) == 0
    root = ElementTree.parse(target).getroot()
    rects = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    lanes = [r for r in rects if r.get("fill") == "#f1f5f9" and r.get("rx") == "3"]
    assert len(lanes) == 4
    left, width = float(lanes[0].get("x")), float(lanes[0].get("width"))
    for r, lane in enumerate(lanes):
        piece = rects[rects.index(lane) + 1]
        assert float(piece.get("x")) == pytest.approx(left + width * r / 4, abs=0.02)
        assert float(piece.get("width")) == pytest.approx(width / 4, abs=0.02)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "v9"], "model is 'v9', needs 'v3.1', 'v3.2'"),
        (["--scheme", "ring"], "scheme is 'ring', needs one of 'zigzag'"),
        (["--cp", "0,2"], "cp has 0, needs sizes >= 1"),
        (["--tokens=-1"], "-1"),
        (["--prefix", "1,2"], "prefix has 2 numbers, needs one or one for each of 1 requests"),
        (["--cache", "nvfp4"], "cache is 'nvfp4', needs 'bf16' or 'fp8'"),
        (["--weights", "int4"], "weights is 'int4', needs one of"),
        (["--svg", "x.svg", "--svg-cp", "3"], "--svg-cp is 3, needs one of --cp 1,2,4,8,16,32"),
        (["--svg", "x.svg", "--cp", "128", "--svg-cp", "128"], "--svg-cp is 128, needs at most 64 ranks"),
        (["--svg", "/nonexistent/x.svg"], "No such file or directory: '/nonexistent/x.svg'"),
    ],
)
def test_bad_input_is_refused_in_words(capsys, more, words):
    code, out, err = run(capsys, *ORDER, *more)
    assert code == 2 and out == ""
    assert err.startswith("sparsespan plan cp: ") and words in err and "Traceback" not in err


def test_numbers_that_are_none(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "cp", "--cp", "1,two"])
    assert stop.value.code == 2
    assert "'1,two' is no list of integers such as 1,2,4" in capsys.readouterr().err

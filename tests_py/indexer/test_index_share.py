from types import SimpleNamespace

import pytest

from sparsespan.indexer import index_share_layers


def letters(**config):
    return "".join(kind[0].upper() for kind in index_share_layers(config))


def test_glm_5_2():
    kinds = letters(num_hidden_layers=78, index_topk_freq=4, index_skip_topk_offset=3)
    assert [i for i, kind in enumerate(kinds) if kind == "F"] == [0, 1, 2, *range(6, 75, 4)]
    assert kinds.count("F") == 21


def test_transformers_case():
    assert letters(num_hidden_layers=8, index_topk_freq=4, index_skip_topk_offset=3) == "FFFSSSFS"


def test_defaults_and_precedence():
    assert letters(num_hidden_layers=5) == "FFFFF"
    assert letters(num_hidden_layers=5, index_topk_freq=0) == "FFFFF"
    assert letters(num_hidden_layers=6, index_topk_freq=2) == "FFSFSF"  # offset 2
    both = {"num_hidden_layers": 3, "index_topk_freq": 2, "index_topk_pattern": "FSS"}
    assert letters(**both) == "FSS"
    assert letters(**both, indexer_types=["full", "full", "shared"]) == "FFS"
    assert letters(**(both | {"index_topk_pattern": None})) == "FFS"
    assert index_share_layers(SimpleNamespace(num_hidden_layers=2, index_topk_pattern="FS")) == ["full", "shared"]
    assert index_share_layers({"num_hidden_layers": 0}) == []


@pytest.mark.parametrize(
    "config, error, message",
    [
        ({}, TypeError, r"num_hidden_layers is None, needs an integer"),
        ({"num_hidden_layers": -1}, ValueError, r"num_hidden_layers is -1, needs at least 0"),
        ({"num_hidden_layers": 2.0}, TypeError, r"num_hidden_layers is 2.0"),
        ({"num_hidden_layers": 3, "indexer_types": ["full"]}, ValueError, r"indexer_types has 1 entries, needs .* = 3"),
        ({"num_hidden_layers": 1, "indexer_types": ["half"]}, ValueError, r"indexer_types has 'half' at layer 0"),
        ({"num_hidden_layers": 2, "index_topk_pattern": "FX"}, ValueError, r"index_topk_pattern has 'X' at layer 1"),
        (
            {"num_hidden_layers": 2, "index_topk_pattern": "SF"},
            ValueError,
            r"the first layer is shared, needs to be full",
        ),
        (
            {"num_hidden_layers": 2, "index_topk_freq": 4, "index_skip_topk_offset": 0},
            ValueError,
            r"the first layer is",
        ),
        ({"num_hidden_layers": 2, "index_topk_freq": "4"}, TypeError, r"index_topk_freq is '4', needs an integer"),
        ({"num_hidden_layers": 2, "index_topk_freq": -4}, ValueError, r"index_topk_freq is -4"),
    ],
)
def test_refusals(config, error, message):
    with pytest.raises(error, match=r"^index_share_layers: " + message):
        index_share_layers(config)


@pytest.mark.peer
def test_equals_transformers():
    transformers = pytest.importorskip("transformers")
    config_class = getattr(transformers, "GlmMoeDsaConfig", None)
    if config_class is None:
        pytest.skip("this transformers has no glm_moe_dsa")
    config = config_class(num_hidden_layers=11, index_topk_freq=4, index_skip_topk_offset=3)
    theirs = getattr(config, "indexer_types", None)
    if theirs is None:
        pytest.skip("this transformers has no indexer_types")
    ours = index_share_layers({"num_hidden_layers": 11, "index_topk_freq": 4, "index_skip_topk_offset": 3})
    assert list(theirs) == ours

"""Arguments that no sane caller passes: each gets a sentence that begins with the op and names the argument."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import sparsespan
from sparsespan.attention import dense_mla, mha, sparse_mla
from sparsespan.indexer import index_share_layers, mqa_logits, topk
from sparsespan.quant import act_quant, kv_layout, read_kv, weight_dequant
from sparsespan.testing import compare_topk
from sparsespan.transform import apply_rope, hadamard_transform, rms_norm, yarn_softmax_scale


def test_elements_of_no_bytes_are_refused():
    nothing = np.zeros((2, 4), np.dtype([]))
    with pytest.raises(TypeError, match=r"hadamard_transform: x has elements of no bytes, needs an array of numbers"):
        hadamard_transform(nothing)
    with pytest.raises(TypeError, match=r"topk: out has elements of no bytes"):
        topk(np.ones((2, 4), np.float32), 4, out=nothing)


def test_none_is_called_none():
    x = np.ones((2, 1, 4), np.float32)
    with pytest.raises(TypeError, match=r"mqa_logits: ks is None, needs an array of int32 or int64"):
        mqa_logits(x, x[:, 0], x[:, 0, :1], None, np.array([1, 1]))
    with pytest.raises(TypeError, match=r"hadamard_transform: x is None, needs an array of float32 or bfloat16"):
        hadamard_transform(None, out=x)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"k": None}, TypeError, r"topk: k is None, needs an integer$"),
        ({"k": 1.5}, TypeError, r"topk: k is 1.5, needs an integer$"),
        ({"k": np.float32(1.5)}, TypeError, r"topk: k is 1.5, needs an integer$"),
        ({"k": np.array(1.5)}, TypeError, r"topk: k is 1.5, needs an integer$"),
        ({"k": [3]}, TypeError, r"topk: k is \[3\], needs an integer$"),
        ({"k": 2**63}, ValueError, r"topk: k is 9223372036854775808, needs an integer of at most 63 bits$"),
        ({"k": 2, "threads": 2**31}, ValueError, r"topk: threads is 2147483648, needs an integer of at most 31 bits$"),
        ({"k": 2, "threads": -1}, ValueError, r"topk: threads is -1, needs at least 1"),
        ({"k": 2, "base": None}, TypeError, r"topk: base is None, needs a string$"),
        ({"k": 2, "order": "\ud800"}, TypeError, r"topk: order is '\\ud800', needs a string$"),
        ({"k": 2, "validate": 3}, TypeError, r"topk: validate is 3, needs a string$"),
    ],
)
def test_plain_arguments_are_named(keywords, error, message):
    out = np.full((2, 2), 7, np.int32)
    with pytest.raises(error, match=message):
        topk(np.ones((2, 4), np.float32), out=out, **keywords)
    assert (out == 7).all()


def test_numbers_of_numpy_count_as_numbers():
    scores = np.array([[3, 1, 2]], np.float32)
    for k in (np.int64(2), np.uint8(2), np.array(2)):
        np.testing.assert_array_equal(topk(scores, k), [[0, 2]])
    x = np.ones((1, 2), np.float32)
    for scale in (np.float32(0.5), np.float64(0.5), np.array(0.5)):
        np.testing.assert_array_equal(hadamard_transform(x, scale), [[1, 0]])


def test_other_kinds_of_plain_arguments():
    x = np.ones((2, 1, 4), np.float32)
    with pytest.raises(TypeError, match=r"rms_norm: eps is 'a', needs a number"):
        rms_norm(x, x[0, 0], "a")
    ks, ke = np.array([0, 0]), np.array([1, 1])
    with pytest.raises(TypeError, match=r"mqa_logits: clean_logits is None, needs True or False"):
        mqa_logits(x, x[:, 0], x[:, 0, :1], ks, ke, clean_logits=None)
    with pytest.raises(TypeError, match=r"mha: causal is None, needs True or False"):
        mha(x, x, x, np.array([0, 2]), np.array([0, 2]), 1.0, causal=None)
    with pytest.raises(ValueError, match=r'sparse_mla: layout is "", needs the name of a layout, or None'):
        sparse_mla(x, x[:, 0], np.array([[0], [0]]), 1.0, 4, layout="", page_size=2)
    for dtype in ("nonsense", 3, np.float16):
        with pytest.raises(TypeError, match=r"weight_dequant: dtype is (nonsense|3|float16), needs bfloat16 or float"):
            weight_dequant(x, x, dtype=dtype)


def test_the_parts_of_q_the_wrong_way_round():
    latent, rope = np.ones((1, 2, 512), np.float32), np.ones((1, 2, 64), np.float32)
    kv, indices = np.ones((2, 2, 576), np.float32), np.array([[0, 3]])
    sparse_mla((latent, rope), kv, indices, 1.0, layout="f32_576", page_size=2)
    with pytest.raises(ValueError, match=r"sparse_mla: q\[0\] has shape \[1, 2, 64\], needs .* at least d_v = 512"):
        sparse_mla((rope, latent), kv, indices, 1.0, layout="f32_576", page_size=2)
    one = np.array([0])
    with pytest.raises(ValueError, match=r"dense_mla: q\[0\] has shape \[1, 2, 64\], needs .* at least d_v = 512"):
        dense_mla((rope, latent), kv, one, one, one[None], 2, 1.0, "f32_576")


def test_what_takes_no_arrays_names_its_arguments_too():
    with pytest.raises(TypeError, match=r"^set_num_threads: n is 'x', needs an integer$"):
        sparsespan.set_num_threads("x")
    with pytest.raises(TypeError, match=r"^set_max_isa: isa is None, needs a string$"):
        sparsespan.set_max_isa(None)
    with pytest.raises(TypeError, match=r"^kv_layout: name is None, needs a string$"):
        kv_layout(None)
    with pytest.raises(TypeError, match=r"^yarn_softmax_scale: head_dim is 1.5, needs an integer$"):
        yarn_softmax_scale(1.5)
    with pytest.raises(ValueError, match=r"compare_topk: base is 'slot', needs \"packed\" or \"row\""):
        compare_topk(np.array([[0]]), np.ones((1, 2)), 1, base="slot")
    with pytest.raises(TypeError, match=r"index_share_layers: num_hidden_layers is 2.0, needs an integer"):
        index_share_layers({"num_hidden_layers": 2.0})
    assert index_share_layers({"num_hidden_layers": np.int64(2)}) == ["full", "full"]


def test_an_output_whose_rows_are_one_row_is_refused():
    scores = np.ones((3, 4), np.float32)
    out = as_strided(np.full(2, 7, np.int32), (3, 2), (0, 4))
    with pytest.raises(ValueError, match=r"topk: out has elements that share memory with each other"):
        topk(scores, 2, out=out)
    assert (out == 7).all()
    windows = as_strided(np.full(9, 7, np.float32), (3, 4), (8, 4))  # rows two elements apart, four long
    with pytest.raises(ValueError, match=r"hadamard_transform: out has elements that share memory"):
        hadamard_transform(scores, out=windows)
    backwards = np.empty((3, 4), np.float32)[::-1]
    assert hadamard_transform(scores, out=backwards) is backwards


def test_outputs_have_the_axes_of_the_input():
    x = np.ones((2, 3, 8), np.float32)
    for shape in [(6, 8), (3, 2, 8), (1, 2, 3, 8)]:
        with pytest.raises(ValueError, match=r"hadamard_transform: out has shape .*, needs \[2, 3, n\]: the axes of"):
            hadamard_transform(x, out=np.empty(shape, np.float32))
    with pytest.raises(ValueError, match=r"act_quant: out\[1\] has shape \[6, 2\], needs \[2, 3, n\]"):
        act_quant(x, 4, out=(None, np.empty((6, 2), np.float32)))
    table = np.zeros((4, 8), np.float32)
    with pytest.raises(ValueError, match=r"apply_rope: out has shape \[2, 8, 3\], needs \[2, 3, n\]"):
        apply_rope(x, np.array([0, 1]), table, True, out=np.empty((2, 8, 3), np.float32))
    with pytest.raises(ValueError, match=r"read_kv: out has shape \[4, 128\], needs \[2, 2, n\]"):
        cache, out = np.ones((1, 2, 128), np.float32), np.empty((4, 128), np.float32)
        read_kv(cache, np.array([[0, 1], [1, 0]]), "index_f32", 2, out=out)


def test_more_than_there_is_memory_is_said_so():
    with pytest.raises(MemoryError, match=r"^topk: Unable to allocate|^topk: the sizes of its arguments ask for too"):
        topk(_rows(2**45), 2**10)


def _rows(n):
    return np.broadcast_to(np.zeros((1, 4), np.float32), (n, 4))


@pytest.mark.peer
def test_tensors_that_are_no_plain_memory():
    torch = pytest.importorskip("torch")
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"hadamard_transform: x requires grad"):
        hadamard_transform(torch.ones(2, 4, requires_grad=True))
    for odd in (x.to("meta"), x.to_sparse(), torch.ones(2, 4, dtype=torch.complex64).conj()):
        with pytest.raises(ValueError, match=r"hadamard_transform: x cannot be read through DLPack"):
            hadamard_transform(odd)
    with pytest.raises(TypeError, match=r"topk: lengths cannot be read through DLPack"):
        topk(x, 2, torch.ones(2, dtype=torch.complex64))
    # The conjugate's imaginary part is the stored one with the sign still to be changed.
    negated = torch.complex(x, x).conj().imag
    with pytest.raises(ValueError, match=r"hadamard_transform: x is a lazily negated view.*resolve_neg"):
        hadamard_transform(negated)
    with pytest.raises(ValueError, match=r"topk: out has elements that share memory"):
        topk(x, 2, out=torch.empty(1, 2, dtype=torch.int32).expand(2, 2))


@pytest.mark.peer
def test_an_output_comes_back_as_it_went_in():
    torch = pytest.importorskip("torch")
    out = np.empty((2, 4), np.float32)
    assert hadamard_transform(torch.ones(2, 4), out=out) is out
    tensor = torch.empty(2, 4)
    assert hadamard_transform(np.ones((2, 4), np.float32), out=tensor) is tensor
    w = torch.ones(2, 2).to(torch.float8_e4m3fn)
    assert weight_dequant(w, torch.ones(1, 1), dtype=torch.float32).dtype == torch.float32
    # A number may be a tensor; that alone does not make the caller's family torch.
    assert isinstance(hadamard_transform(out, torch.tensor(0.5)), np.ndarray)

import pytest

from sparsespan.pipeline import (
    Schedule,
    chunked_prefill,
    decode_loop,
    dualpipe_v,
    gpipe,
    interleaved,
    mixed_prefill_decode,
    one_f_one_b,
    sm_waves,
    validate,
    zero_bubble,
)


def test_arguments():
    with pytest.raises(ValueError, match="transport is 'x'"):
        validate(gpipe(1, 1), sends="x")
    with pytest.raises(ValueError, match="microbatches is 5, needs a multiple of the 2 rounds of 2 ranks"):
        interleaved(2, 5)
    with pytest.raises(ValueError, match="zero_bubble: microbatches is 5, needs a multiple"):
        zero_bubble(2, 5)
    with pytest.raises(ValueError, match="dualpipe_v: microbatches is 3, needs at least the 4 stages of 2 ranks"):
        dualpipe_v(2, 3)
    with pytest.raises(ValueError, match="flavor is 'h9'"):
        zero_bubble(2, 4, flavor="h9")
    with pytest.raises(ValueError, match="stages_per_rank is 3, needs 2"):
        zero_bubble(2, 4, flavor="v", stages_per_rank=3)
    for make in (gpipe, one_f_one_b, interleaved, zero_bubble, dualpipe_v):
        with pytest.raises(ValueError, match="ranks is 0, needs at least 1"):
            make(0, 4)
        with pytest.raises(ValueError, match="microbatches is 0"):
            make(2, 0)
        with pytest.raises(ValueError, match=r"more than 100000000 forward passes|overflows"):
            make(1 << 20, 1 << 30)
    with pytest.raises(ValueError, match="stages_per_rank is 0"):
        interleaved(2, 4, stages_per_rank=0)
    with pytest.raises(ValueError, match="chunks hold 0 tokens at 1"):
        chunked_prefill(2, [4, 0])
    with pytest.raises(TypeError, match=r"chunks has 5\.5, needs integers"):
        chunked_prefill(2, [4, 5.5])
    with pytest.raises(TypeError, match="from_csv: text is NoneType, needs str"):
        Schedule.from_csv(None)
    with pytest.raises(ValueError, match="tiles is 10000000000000, needs at most"):
        sm_waves(10**13, sms=4)
    with pytest.raises(ValueError, match="prefixes has 2 values"):
        chunked_prefill(2, [4, 4], prefixes=[0, 0])
    with pytest.raises(ValueError, match="prefixes is -1 at 0"):
        chunked_prefill(2, [4], prefixes=[-1])
    with pytest.raises(ValueError, match="ranks is 0"):
        chunked_prefill(0, [4])
    with pytest.raises(ValueError, match="steps is -1"):
        decode_loop(2, -1)
    with pytest.raises(ValueError, match="depth is -1"):
        decode_loop(2, 1, depth=-1)
    with pytest.raises(ValueError, match="batch is 0"):
        mixed_prefill_decode(2, [4], batch=0)
    with pytest.raises(ValueError, match="prefix is -1"):
        mixed_prefill_decode(2, [4], prefix=-1)


def test_sizes_that_do_not_fit():
    """Positions end where the text form ends, and a schedule that no memory holds is not begun."""
    most = 1 << 40
    assert str(chunked_prefill(1, [most - 5, 5]).ranks[0][1]) == f"0P1@0:{most - 5}+5"
    with pytest.raises(ValueError, match=f"hold 6 tokens at 1 after {most - 5}, need a prompt of at most {most}"):
        chunked_prefill(1, [most - 5, 6])
    with pytest.raises(ValueError, match=r"chunked_prefill: chunks hold 4611686018427387904 tokens at 0 after 0"):
        chunked_prefill(2, [1 << 62] * 3)
    with pytest.raises(ValueError, match="prefix is 9223372036854775806, needs at most"):
        chunked_prefill(2, [5], prefixes=[2**63 - 2])
    with pytest.raises(ValueError, match="mixed_prefill_decode: chunks hold 1 tokens at 0 after"):
        mixed_prefill_decode(2, [1], prefix=most)
    with pytest.raises(ValueError, match="ranks is 1099511627776, needs at most"):
        chunked_prefill(most, [5])
    with pytest.raises(ValueError, match="steps is 1099511627776: the schedule would have more than 100000000 passes"):
        decode_loop(2, most)
    with pytest.raises(ValueError, match="depth is 9223372036854775807, needs at most"):
        decode_loop(2, 1, depth=2**63 - 1)
    with pytest.raises(ValueError, match="batch is 4611686018427387904, needs at most"):
        decode_loop(2, 1, batch=1 << 62)

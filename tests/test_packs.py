"""Block masks of packed rows, against torch's own way, which looks at each pair of tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ticketlib.packs import BLOCK, Pack, fill_rows


def fill_row(lengths: list[int], tokens: int) -> torch.Tensor:
    """Positions of tickets one after another; what is left is padding."""
    positions = torch.cat([torch.arange(length) for length in lengths])[:tokens]
    return torch.nn.functional.pad(positions, (0, tokens - len(positions)))[None]


def pair_by_pair(positions: torch.Tensor, window: int):
    """Say it by tickets: the same ticket, not later, within the window."""
    tickets = (positions[0] == 0).cumsum(0)

    def sees(batch, head, query, key):
        is_visible = (query >= key) & (tickets[query] == tickets[key])
        return is_visible & (query - key < window) if window else is_visible

    return sees


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    blocks=st.integers(1, 9),
    window=st.sampled_from([0, 1, 5, 127, 128, 129, 300]),
)
def test_masks_equal_those_made_pair_by_pair(lengths, blocks, window):
    tokens = blocks * BLOCK
    positions = fill_row(lengths, tokens)
    pack = Pack(tokens, {window}, torch.device("cpu"))
    pack.fill(fill_row([7], tokens))  # An earlier row leaves no trace
    pack.fill(positions)
    mask, rule = pack.masks[window], pair_by_pair(positions, window)
    expected = create_block_mask(rule, None, None, tokens, tokens, device="cpu")
    every = torch.arange(tokens)
    assert torch.equal(
        mask.mask_mod(0, 0, every[:, None], every), rule(0, 0, every[:, None], every)
    )
    assert torch.equal(mask.to_dense(), expected.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(mask, name), getattr(expected, name)), name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_stays_within_a_ticket():
    positions = fill_row([100, 250, 120], 512)
    pack = Pack(512, {0}, torch.device("cpu"))
    pack.fill(positions)
    query, key, value = torch.randn(3, 1, 2, 512, 16)
    packed = flex_attention(query, key, value, block_mask=pack.masks[0])
    alone = torch.nn.functional.scaled_dot_product_attention(
        *(each[:, :, 100:350] for each in (query, key, value)), is_causal=True
    )
    torch.testing.assert_close(packed[:, :, 100:350], alone, atol=1e-5, rtol=1e-5)


def test_a_row_of_part_of_a_block_is_refused():
    with pytest.raises(ValueError, match="1000 tokens; a multiple of 128"):
        Pack(1000, {0}, torch.device("cpu"))


@pytest.mark.parametrize(
    ("tokens", "most", "expected"),
    [
        (64 * 131, 12_800, (1, 8448)),  # What a step takes, not what the card holds
        (64 * 131, 8192, (1, 8192)),  # A little less rather than two rows
        (256 * 131, 12_800, (3, 11_264)),
        (100, 12_800, (1, 2048)),
        (64 * 131, 2100, (4, 2048)),
    ],
)
def test_rows_hold_about_the_tokens_of_a_step(tokens, most, expected):
    assert fill_rows(tokens, most, 2048) == expected

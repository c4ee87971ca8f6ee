"""Which tokens of a packed row see each other: block masks for FlexAttention (arXiv:2412.05496).

Tickets lie one after another, so what a token sees begins at one token and ends at itself. From
these beginnings the masks follow in a few operations. torch's `create_block_mask` looks at each
pair of tokens instead, and compiles that for half a minute.
"""

import math

import torch
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # Tokens; rows are a multiple of it


def fill_rows(tokens: float, most: int, shortest: int = BLOCK) -> tuple[int, int]:
    """Spread the tokens of a step evenly over few rows.

    Args:
        tokens: Of a step; the rows hold about so many.
        most: Tokens of a row, at most.
        shortest: Tokens of a row, at least, a multiple of `BLOCK`.

    Returns:
        Number of rows, and tokens of each, a multiple of `BLOCK`.
    """
    rows = max(1, round(tokens / most))
    filled = math.ceil(tokens / rows / BLOCK) * BLOCK
    return rows, max(shortest, min(filled, most // BLOCK * BLOCK))


class Pack:
    """The tickets of a row, for all layers; the tensors stay in place.

    Attributes:
        masks: By window (0: none), as FlexAttention takes them.
    """

    def __init__(self, tokens: int, windows: set[int], device: torch.device) -> None:
        """Prepare for rows of one length.

        Args:
            tokens: Of each row.
            windows: Of the layers' attention, in tokens; 0 for none.
            device: Of the masks.

        Raises:
            ValueError: No whole number of blocks.
        """
        if tokens % BLOCK:
            raise ValueError(f"A row has {tokens} tokens; a multiple of {BLOCK} is accepted.")
        self.tokens = torch.arange(tokens, device=device)
        self.firsts = {window: torch.zeros_like(self.tokens) for window in windows}
        self.masks = {}

    def fill(self, position_ids: torch.Tensor) -> None:
        """Take the next row: [1, tokens], 0 where a ticket begins and all over the padding."""
        for window, first in self.firsts.items():
            before = position_ids[0].clamp(max=window - 1) if window else position_ids[0]
            first.copy_(self.tokens - before)
            self.masks[window] = _make_mask(first)


def _make_mask(first: torch.Tensor) -> BlockMask:
    """Let token i see the tokens `first[i]` to i, [tokens]; `first` never falls."""

    def sees(batch, head, query, key):
        return (query >= key) & (key >= first[query])

    rows = torch.arange(len(first) // BLOCK, device=first.device)[:, None]
    keys = rows.T
    begin = first[::BLOCK, None] // BLOCK  # Block of the first key that any token of a row sees
    whole = -(-first[BLOCK - 1 :: BLOCK, None] // BLOCK)  # First block that all of them see whole
    is_whole = (keys >= whole) & (keys < rows)
    is_part = (keys >= begin) & (keys <= rows) & ~is_whole
    return BlockMask.from_kv_blocks(
        *_list_blocks(is_part), *_list_blocks(is_whole), BLOCK_SIZE=BLOCK, mask_mod=sees
    )


def _list_blocks(is_in: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the number of blocks in each row, [1, 1, rows], and all blocks, those first."""
    order = is_in.int().argsort(dim=-1, descending=True, stable=True)
    return is_in.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]

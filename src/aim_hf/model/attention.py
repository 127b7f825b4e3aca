"""Attention over visible sets: rows of eq. (10), as slices of the keys that they let a token see.

A pass attends in one of two ways, with the same numbers. Training lays all tokens into one sequence, under the mask of
`visibility.py`: on a GPU one FlexAttention kernel; elsewhere the tokens that see the same keys attend together, over
just those. Inference lays the keys of the cache before those of the pass, and a few slices say who sees what.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

KeysValues = tuple[torch.Tensor, torch.Tensor]  # (B, heads, tokens, head_dim) each


@dataclass(frozen=True)
class VisibleSet:
    """Tokens of a pass that see the same keys.

    queries: slices of the pass's tokens. keys: slices of the keys, those of the cache first. key_mask: (B, 1, 1,
    keys), which of them each row has; None where every row has all of them.
    """

    queries: tuple[slice, ...]
    keys: tuple[slice, ...]
    key_mask: torch.Tensor | None = None


Visible = list[VisibleSet] | BlockMask


def packed_visible(mask: torch.Tensor, lengths: list[int], device: torch.device) -> Visible:
    """Who sees whom in one packed sequence.

    Args:
        mask: (U, U) bool, from `visible`, on the CPU: it steers the work, and a GPU would have to be waited for.
        lengths: tokens of each unit.
    """
    return unit_block_mask(mask, lengths, device) if device.type == "cuda" else visible_sets(mask, lengths)


def unit_block_mask(mask: torch.Tensor, lengths: list[int], device: torch.device) -> BlockMask:
    unit = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(device)
    seen = mask.to(device)
    tokens = len(unit)
    return create_block_mask(lambda b, h, q, k: seen[unit[q], unit[k]], None, None, tokens, tokens, device=device)


def visible_sets(mask: torch.Tensor, lengths: list[int]) -> list[VisibleSet]:
    """The units that see the same ones, together."""
    queries_of: dict[tuple[int, ...], list[int]] = {}
    for query, row in enumerate(mask.tolist()):
        queries_of.setdefault(tuple(key for key, seen in enumerate(row) if seen), []).append(query)
    return [VisibleSet(_slices(queries, lengths), _slices(keys, lengths)) for keys, queries in queries_of.items()]


def _slices(units: Iterable[int], lengths: list[int]) -> tuple[slice, ...]:
    """The tokens of ascending units; neighbors share a slice."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    slices: list[slice] = []
    for unit in units:
        if slices and slices[-1].stop == starts[unit]:
            slices[-1] = slice(slices[-1].start, starts[unit + 1])
        else:
            slices.append(slice(starts[unit], starts[unit + 1]))
    return tuple(slices)


@torch.compiler.disable
def attend(module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: Visible) -> torch.Tensor:
    """What each query sees.

    Args:
        module: whose `config._attn_implementation` is used, where there is no mask.
        q: (B, heads, tokens, head_dim). k, v: (B, heads, keys, head_dim), of which the last are the queries' own.

    Returns:
        (B, heads, tokens, head_dim).
    """
    if isinstance(visible, BlockMask):
        return _flex_attention()(q, k, v, block_mask=visible)
    pieces: list[tuple[int, torch.Tensor]] = []
    for one in visible:
        queries, keys, values = _taken(q, one.queries), _taken(k, one.keys), _taken(v, one.keys)
        answer = attention(module, queries, keys, values, one.key_mask)
        lengths = [piece.stop - piece.start for piece in one.queries]
        pieces += zip((piece.start for piece in one.queries), answer.split(lengths, dim=2))
    return joined([piece for _, piece in sorted(pieces, key=lambda piece: piece[0])])


def attention(
    module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of all q over all k and v, by the implementation that the model was loaded with
    (`attn_implementation=`). Rows of different age need a mask of keys, and for them it is PyTorch's."""
    implementation = module.config._attn_implementation
    if key_mask is None and implementation not in ("sdpa", "eager"):
        run = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, None)
        return run(module, q, k, v, None, is_causal=False)[0].transpose(1, 2)
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # PyTorch's CPU kernel for the backward pass is several times slower in bfloat16 than in float32.
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=key_mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)


@cache
def _flex_attention():
    # Compiled when it is first used: torch.compile imports its whole backend, which takes seconds on any machine.
    return torch.compile(flex_attention)


def _taken(tensor: torch.Tensor, slices: tuple[slice, ...]) -> torch.Tensor:
    return joined([tensor[:, :, piece] for piece in slices])


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One after the other along the tokens; a single part as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

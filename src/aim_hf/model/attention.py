"""Self-attention under eq. (10): each group of query tokens attends to a few slices of the keys.

Training and inference give the same numbers. Training packs all tokens into one sequence under the mask of
`visibility.py`; a GPU runs one FlexAttention kernel, and other devices run one attention call for each group of tokens
that see the same keys. Inference writes the new keys behind the cached ones, and selects keys by slices.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

KeysValues = tuple[torch.Tensor, torch.Tensor]  # (B, heads, tokens, head_dim) each


@dataclass(frozen=True)
class VisibleSet:
    """Query tokens that see the same keys.

    queries: slices of the query tokens. keys: slices of the keys, cached keys first. key_mask: (B, 1, 1, keys), False
    for keys that a row doesn't have; None if every row has all of them.
    """

    queries: tuple[slice, ...]
    keys: tuple[slice, ...]
    key_mask: torch.Tensor | None = None


# Without sets, every token sees every key that its row has, by an optional key mask.
Visible = list[VisibleSet] | BlockMask | torch.Tensor | None


def packed_visible(mask: torch.Tensor, lengths: list[int], device: torch.device) -> Visible:
    """Attention mask of one packed sequence, as a FlexAttention mask on a GPU and as visible sets elsewhere.

    Args:
        mask: (U, U) bool, from `visible`, on the CPU: Python reads it, and reading from a GPU would synchronize.
        lengths: number of tokens of each unit.
    """
    return _packed_visible(mask.numpy().tobytes(), tuple(lengths), device)


@lru_cache(maxsize=8)  # windows of one length have one layout
def _packed_visible(mask: bytes, lengths: tuple[int, ...], device: torch.device) -> Visible:
    units = torch.frombuffer(bytearray(mask), dtype=torch.bool).view(len(lengths), len(lengths))
    return unit_block_mask(units, lengths, device) if device.type == "cuda" else visible_sets(units, lengths)


def unit_block_mask(mask: torch.Tensor, lengths: Sequence[int], device: torch.device) -> BlockMask:
    """FlexAttention mask over tokens, from a mask over units."""
    unit = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(device)
    seen = mask.to(device)
    tokens = len(unit)
    return create_block_mask(lambda b, h, q, k: seen[unit[q], unit[k]], None, None, tokens, tokens, device=device)


def visible_sets(mask: torch.Tensor, lengths: Sequence[int]) -> list[VisibleSet]:
    """One `VisibleSet` for all units that have the same row in `mask`."""
    queries_of: dict[tuple[int, ...], list[int]] = {}
    for query, row in enumerate(mask.tolist()):
        queries_of.setdefault(tuple(key for key, seen in enumerate(row) if seen), []).append(query)
    return [VisibleSet(_slices(queries, lengths), _slices(keys, lengths)) for keys, queries in queries_of.items()]


def _slices(units: Iterable[int], lengths: Sequence[int]) -> tuple[slice, ...]:
    """Token slices of units in ascending order; adjacent units are merged into one slice."""
    starts = [0, *accumulate(lengths)]
    slices: list[slice] = []
    for unit in units:
        if slices and slices[-1].stop == starts[unit]:
            slices[-1] = slice(slices[-1].start, starts[unit + 1])
        else:
            slices.append(slice(starts[unit], starts[unit + 1]))
    return tuple(slices)


@torch.compiler.disable
def attend(
    module: nn.Module,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: Visible,
    past: KeysValues | None = None,
) -> torch.Tensor:
    """Attention of each query to the keys that it may see.

    Args:
        module: its `config._attn_implementation` selects the implementation where no mask is needed.
        q, k, v: (B, heads, tokens, head_dim) each.
        past: keys and values of earlier tokens, (B, heads, keys + tokens, head_dim) each. `k` and `v` are written to
            the end. Autograd tracks this write: a backward pass through keys that a later call has overwritten raises
            an error.

    Returns:
        (B, heads, tokens, head_dim).
    """
    if past is not None:
        for buffer, new in zip(past, (k, v)):
            buffer[:, :, -new.shape[2] :] = new
        k, v = past
    if isinstance(visible, BlockMask):
        return _flex_attention()(q, k, v, block_mask=visible)
    if visible is None or torch.is_tensor(visible):
        return attention(module, q, k, v, visible)
    cut = _Slices.apply if q.requires_grad else _slices_of
    queries = cut(q, [group.queries for group in visible])
    keys, values = (cut(tensor, [group.keys for group in visible]) for tensor in (k, v))
    outputs: list[tuple[int, torch.Tensor]] = []  # first token and output of each query slice
    for group, *inputs in zip(visible, queries, keys, values, strict=True):
        parts = separated(
            attention(module, *inputs, group.key_mask), [tokens.stop - tokens.start for tokens in group.queries]
        )
        outputs += zip((tokens.start for tokens in group.queries), parts)
    return joined([output for _, output in sorted(outputs, key=lambda entry: entry[0])])


def attention(
    module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Full attention of q to k and v, by the implementation that the model was loaded with (`attn_implementation=`).

    A batch whose rows have different histories needs `key_mask`, and then uses PyTorch's SDPA.
    """
    implementation = module.config._attn_implementation
    if key_mask is None and implementation not in ("sdpa", "eager"):
        run = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, None)
        return run(module, q, k, v, None, is_causal=False)[0].transpose(1, 2)
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # PyTorch's CPU kernel of the backward pass is several times slower in bfloat16 than in float32.
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=key_mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)


@cache
def _flex_attention() -> Callable[..., torch.Tensor]:
    # Compiled on first use: torch.compile imports its whole backend, which takes seconds.
    return torch.compile(flex_attention)


def _slices_of(tensor: torch.Tensor, groups: list[tuple[slice, ...]]) -> tuple[torch.Tensor, ...]:
    """The tokens of each group of slices: tensor (B, heads, tokens, head_dim) -> one tensor for each group."""
    return tuple(joined([tensor[:, :, tokens] for tokens in group]) for group in groups)


class _Slices(torch.autograd.Function):
    """`_slices_of` with a cheaper backward pass.

    All gradients are added into one buffer. Autograd's own backward pass of slices makes a buffer of the whole
    sequence for each of them, which takes a fifth of a training step.
    """

    @staticmethod
    def forward(ctx, tensor: torch.Tensor, groups: list[tuple[slice, ...]]) -> tuple[torch.Tensor, ...]:
        ctx.shape, ctx.groups = tensor.shape, groups
        return _slices_of(tensor, groups)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].new_zeros(ctx.shape)
        for group, gradient in zip(ctx.groups, gradients, strict=True):
            parts = separated(gradient, [tokens.stop - tokens.start for tokens in group])
            for tokens, part in zip(group, parts, strict=True):
                total[:, :, tokens] += part
        return total, None


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """`torch.cat` along the token axis, which returns a single part without copying it."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def separated(tensor: torch.Tensor, lengths: list[int]) -> Sequence[torch.Tensor]:
    """The inverse of `joined`."""
    return [tensor] if len(lengths) == 1 else tensor.split(lengths, dim=2)

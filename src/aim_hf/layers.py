"""What the two streams of AIM are made of: positions, norms, attention, a block, embeddings, the action head."""

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from .cache import KeysValues
from .configuration_aim import AIMConfig

ROPE_THETA = 10000.0

# --------------------------------------------------------------------------------------------- positions and norms


Rotation = tuple[torch.Tensor, torch.Tensor]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def rotary(positions: torch.Tensor, head_dim: int, dtype: torch.dtype) -> Rotation:
    """Cosine and sine of Wan's rotary embedding over (time, height, width).

    positions: (B or 1, tokens, 3), float64; a coordinate that a token doesn't have is 0, which rotates nothing.
    Returns two tensors (B or 1, 1, tokens, head_dim / 2), of `dtype` or float32 if that is less.
    """
    spatial = 2 * (head_dim // 6)
    angles = []
    for axis, dim in enumerate((head_dim - 2 * spatial, spatial, spatial)):
        exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
        angles.append(positions[..., axis : axis + 1] * ROPE_THETA**-exponent)
    angles = torch.cat(angles, dim=-1).unsqueeze(1)
    dtype = torch.promote_types(dtype, torch.float32)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(hidden: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotates neighboring channel pairs of hidden, (B, heads, tokens, head_dim)."""
    cos, sin = rotation
    even, odd = hidden.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(hidden.dtype)


def video_positions(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Positions (time, row, column) of the tokens of latent `frames`: (B, N) -> (B, N * height * width, 3)."""
    rows, columns = torch.arange(height, device=frames.device), torch.arange(width, device=frames.device)
    grid = torch.cartesian_prod(rows.double(), columns.double()).expand(*frames.shape, -1, -1)
    time = frames.double()[..., None, None].expand(*grid.shape[:-1], 1)
    return torch.cat([time, grid], dim=-1).flatten(1, 2)


def action_positions(frames: torch.Tensor, actions_per_frame: int) -> torch.Tensor:
    """Action j of latent frame f sits at time f + (j + 1) / (n + 1). (B, N) -> (B, N * n, 3)."""
    steps = torch.arange(1, actions_per_frame + 1, device=frames.device, dtype=torch.float64) / (actions_per_frame + 1)
    time = (frames.double()[..., None] + steps).flatten(1)
    return F.pad(time[..., None], (0, 2))


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class AIMLayerNorm(nn.LayerNorm):
    """LayerNorm in at least float32, as Wan's `FP32LayerNorm`, that leaves float64 alone."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weight = self.weight.to(at_least_float32(hidden).dtype) if self.weight is not None else None
        bias = self.bias.to(at_least_float32(hidden).dtype) if self.bias is not None else None
        return F.layer_norm(at_least_float32(hidden), self.normalized_shape, weight, bias, self.eps).to(hidden.dtype)


def shifted(u: torch.Tensor, shift: float) -> torch.Tensor:
    """The time of a flow-matching schedule: t = s*u / (1 + (s-1)*u)."""
    return shift * u / (1 + (shift - 1) * u)


def modulate(hidden: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """hidden: (B, N * L, d) with N units of L tokens; scale, shift: (B, N, 1, d)."""
    units = hidden.unflatten(1, (scale.shape[1], -1))
    return (units * (1 + scale) + shift).flatten(1, 2)


def gate(hidden: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return (hidden.unflatten(1, (factor.shape[1], -1)) * factor).flatten(1, 2)


# ------------------------------------------------------------------------------------------------------------ layers


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Attention of q over k and v, each (B, heads, tokens, head_dim). mask: (B, 1, 1, keys), which keys count."""
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # PyTorch's CPU kernel for the backward pass is several times slower in bfloat16 than in float32.
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def masked_attention(mask: torch.Tensor, lengths: list[int], device: torch.device) -> Attend:
    """Attention under a mask over units: exactly the dense masked attention, without the work of what is masked.

    One FlexAttention kernel on a GPU; elsewhere, units that see the same keys are attended together, over just those.

    Args:
        mask: (U, U) bool, from `visible`, on the CPU.
        lengths: tokens of each unit.

    Returns:
        a function of q, k, v, (B, heads, sum of lengths, head_dim) each.
    """
    if device.type == "cuda":
        return partial(_flex_attention(), block_mask=unit_block_mask(mask, lengths, device))
    groups: dict[tuple[int, ...], list[int]] = {}
    for unit, row in enumerate(mask.tolist()):
        groups.setdefault(tuple(index for index, seen in enumerate(row) if seen), []).append(unit)
    return partial(unit_attention, groups=groups, lengths=lengths)


@cache
def _flex_attention() -> Attend:
    # Compiled when it is first used: torch.compile imports its whole backend, which takes seconds on any machine.
    return torch.compile(flex_attention)


def unit_block_mask(mask: torch.Tensor, lengths: list[int], device: torch.device) -> BlockMask:
    unit = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(device)
    seen = mask.to(device)
    tokens = len(unit)
    return create_block_mask(lambda b, h, q, k: seen[unit[q], unit[k]], None, None, tokens, tokens, device=device)


def unit_attention(q, k, v, groups: dict[tuple[int, ...], list[int]], lengths: list[int]) -> torch.Tensor:
    """groups: units that are seen -> the units that see just these. lengths: tokens of each unit."""
    q_units, k_units, v_units = (tensor.split(lengths, dim=2) for tensor in (q, k, v))
    attended: list[torch.Tensor] = [None] * len(lengths)
    for keys, queries in groups.items():
        answer = attention(
            torch.cat([q_units[i] for i in queries], dim=2),
            torch.cat([k_units[i] for i in keys], dim=2),
            torch.cat([v_units[i] for i in keys], dim=2),
        )
        for unit, piece in zip(queries, answer.split([lengths[i] for i in queries], dim=2)):
            attended[unit] = piece
    return torch.cat(attended, dim=2)


class AIMAttention(nn.Module):
    """Projections of one attention, eq. (7): from a stream's width to the common attention width and back."""

    def __init__(self, dim: int, inner_dim: int, heads: int, eps: float):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, inner_dim)
        self.to_k = nn.Linear(dim, inner_dim)
        self.to_v = nn.Linear(dim, inner_dim)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, dim)])
        self.norm_q = nn.RMSNorm(inner_dim, eps=eps)
        self.norm_k = nn.RMSNorm(inner_dim, eps=eps)

    def split(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def query(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.split(self.norm_q(self.to_q(hidden)))

    def key_value(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.split(self.norm_k(self.to_k(hidden))), self.split(self.to_v(hidden))

    def out(self, attended: torch.Tensor) -> torch.Tensor:
        return self.to_out[0](attended.transpose(1, 2).flatten(2))


class AIMBlock(nn.Module):
    """One layer of one stream. Its self-attention is shared with the other stream, eq. (11), so the caller runs it."""

    # `project` and `update` as `compile_blocks` made them: functions of a block, not its bound methods, so that a copy
    # of the block runs them on its own weights.
    parts: tuple[Callable, Callable] | None = None

    def __init__(self, config: AIMConfig, dim: int, ffn_dim: int, reads_text: bool):
        super().__init__()
        inner_dim, heads, eps = config.hidden_size, config.num_attention_heads, config.eps
        self.norm1 = AIMLayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = AIMAttention(dim, inner_dim, heads, eps)
        if reads_text:
            self.norm2 = AIMLayerNorm(dim, eps) if config.cross_attn_norm else nn.Identity()
            self.attn2 = AIMAttention(dim, inner_dim, heads, eps)
        self.norm3 = AIMLayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        self.scale_shift_table = nn.Parameter(torch.empty(1, 6, dim))

    def forward(
        self,
        hidden: torch.Tensor,
        time: torch.Tensor,
        rotation: Rotation,
        attend: Attend,
        text: KeysValues | torch.Tensor | None = None,
        text_tokens: int = 0,
    ) -> torch.Tensor:
        """
        Args:
            hidden: (B, N * L, d), N units of L tokens.
            time: (B, N, 6, d).
            attend: rotated queries and keys, and values, (B, heads, N * L, head_dim) each -> what the queries see.
            text: keys and values of the instruction, or its features (B, S, d) to compute them from.
            text_tokens: the first so many tokens read it.
        """
        project, update = self.parts or (AIMBlock.project, AIMBlock.update)
        modulation = self.modulation(time)
        if torch.is_tensor(text):
            text = self.attn2.key_value(text)
        attended = attend(*project(self, hidden, modulation, rotation))
        return update(self, hidden, modulation, attended, text, text_tokens)

    def modulation(self, time: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """time: (B, N, 6, d) of N units -> six tensors (B, N, 1, d): shift, scale, gate, and again for the FFN."""
        return (self.scale_shift_table + at_least_float32(time)).split(1, dim=2)

    def project(self, hidden, modulation, rotation: Rotation):
        shift, scale = modulation[0], modulation[1]
        normed = modulate(self.norm1(hidden), scale, shift).to(hidden.dtype)
        keys, values = self.attn1.key_value(normed)
        return apply_rotary(self.attn1.query(normed), rotation), apply_rotary(keys, rotation), values

    def update(self, hidden, modulation, attended, text=None, text_tokens: int = 0):
        """Adds the attended values, the instruction (eq. 8, for the first `text_tokens` tokens) and the FFN."""
        _, _, attention_gate, shift, scale, ffn_gate = modulation
        hidden = (hidden + gate(self.attn1.out(attended), attention_gate)).to(hidden.dtype)
        if text is not None and text_tokens:
            reading = hidden[:, :text_tokens]
            answer = attention(self.attn2.query(self.norm2(reading)), *text)
            reading = reading + self.attn2.out(answer)
            hidden = (
                reading if text_tokens == hidden.shape[1] else torch.cat([reading, hidden[:, text_tokens:]], dim=1)
            )
        normed = modulate(self.norm3(hidden), scale, shift).to(hidden.dtype)
        return (hidden + gate(self.ffn(normed), ffn_gate)).to(hidden.dtype)


class AIMTimeEmbedding(nn.Module):
    """Wan's timestep embedding. t in [0, 1] is scaled to Wan's 0..1000."""

    def __init__(self, dim: int, freq_dim: int):
        super().__init__()
        self.timesteps_proj = Timesteps(freq_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedder = TimestepEmbedding(freq_dim, dim)
        self.time_proj = nn.Linear(dim, 6 * dim)

    def forward(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N) -> embedding (B, N, d) and its projection for the layers (B, N, 6, d)."""
        waves = self.timesteps_proj(1000 * timestep.flatten()).to(self.time_proj.weight.dtype)
        embedding = self.time_embedder(waves).unflatten(0, timestep.shape)
        return embedding, self.time_proj(F.silu(embedding)).unflatten(-1, (6, -1))


class AIMConditionEmbedding(AIMTimeEmbedding):
    """Time and text embedding of the video stream, named as Wan's `condition_embedder`."""

    def __init__(self, config: AIMConfig):
        super().__init__(config.hidden_size, config.freq_dim)
        self.text_embedder = PixArtAlphaTextProjection(config.text_dim, config.hidden_size, act_fn="gelu_tanh")


class AIMActionHead(nn.Module):
    """The action stream: as deep as the video stream and narrower. It never reads text or future RGB."""

    def __init__(self, config: AIMConfig):
        super().__init__()
        dim = config.action_hidden_size
        # a = MLP(dual-arm action vector), eq. (3)
        self.action_embedder = nn.Sequential(nn.Linear(config.action_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.condition_embedder = AIMTimeEmbedding(dim, config.freq_dim)
        self.blocks = nn.ModuleList(
            AIMBlock(config, dim, config.action_ffn_dim, reads_text=False) for _ in range(config.num_layers)
        )
        self.norm_out = AIMLayerNorm(dim, config.eps, elementwise_affine=False)
        self.proj_out = nn.Linear(dim, config.action_dim)
        self.scale_shift_table = nn.Parameter(torch.empty(1, 2, dim))

    def velocity(self, hidden: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        shift, scale = (self.scale_shift_table + at_least_float32(embedding).unsqueeze(2)).split(1, dim=2)
        return self.proj_out(modulate(self.norm_out(hidden), scale, shift).to(hidden.dtype))

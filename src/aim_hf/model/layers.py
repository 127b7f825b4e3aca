"""AIM's mixture-of-transformers layer, with its position, time and action embeddings and its output heads."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import KeysValues, Visible, attend, attention, joined, separated
from .configuration_aim import AIMConfig

ROPE_THETA = 10000.0

# --------------------------------------------------------------------------------------------- positions and norms


# (B, N, d), and projected for the layers, (B, N, 6, 1, d), in at least float32
EmbeddedTime = tuple[torch.Tensor, torch.Tensor]
Timestep = torch.Tensor | EmbeddedTime  # in [0, 1], (B, N), or (B,) for N = 1
# Shift, 1 + scale and gate of the self-attention; shift, 1 + scale and gate of the FFN
Modulation = tuple[torch.Tensor, ...]


def angle_dtype(device: torch.device) -> torch.dtype:
    """Dtype of positions and angles: float64, and float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def rotary(positions: torch.Tensor, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Cosine and sine of Wan's rotary embedding over (time, height, width).

    Args:
        positions: (B or 1, tokens, 3), in `angle_dtype`. A coordinate of 0 rotates nothing; action tokens have no rows
            and columns.
        dtype: of the result, at least float32.

    Returns:
        (B or 1, 1, tokens, head_dim / 2, 2).
    """
    spatial = 2 * (head_dim // 6)
    angles = []
    for axis, dim in enumerate((head_dim - 2 * spatial, spatial, spatial)):
        exponent = torch.arange(0, dim, 2, dtype=positions.dtype, device=positions.device) / dim
        angles.append(positions[..., axis : axis + 1] * ROPE_THETA**-exponent)
    angles = torch.cat(angles, dim=-1).unsqueeze(1)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).to(torch.promote_types(dtype, torch.float32))


def apply_rotary(hidden: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Rotates pairs of adjacent channels of `hidden`, (B, heads, tokens, head_dim)."""
    pairs, rotation = at_least_float32(hidden).view(*hidden.shape[:-1], -1, 2), at_least_float32(rotation)
    if torch.compiler.is_compiling():  # torch.compile fuses these products, and generates no code for complex ones
        (even, odd), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    return rotated.view(hidden.shape).to(hidden.dtype)


def video_positions(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Positions (time, row, column) of the video tokens of latent `frames`: (B, N) -> (B, N * height * width, 3)."""
    dtype = angle_dtype(frames.device)
    rows, columns = (torch.arange(size, device=frames.device, dtype=dtype) for size in (height, width))
    grid = torch.cartesian_prod(rows, columns).expand(*frames.shape, -1, -1)
    time = frames.to(dtype)[..., None, None].expand(*grid.shape[:-1], 1)
    return torch.cat([time, grid], dim=-1).flatten(1, 2)


def action_positions(frames: torch.Tensor, actions_per_frame: int) -> torch.Tensor:
    """Positions of the action tokens of latent `frames`: (B, N) -> (B, N * n, 3). Action j of latent frame f has time
    f + (j + 1) / (n + 1)."""
    dtype = angle_dtype(frames.device)
    steps = torch.arange(1, actions_per_frame + 1, device=frames.device, dtype=dtype) / (actions_per_frame + 1)
    time = (frames.to(dtype)[..., None] + steps).flatten(1)
    return F.pad(time[..., None], (0, 2))


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class AIMLayerNorm(nn.LayerNorm):
    """LayerNorm that computes in at least float32, as Wan's `FP32LayerNorm`, and keeps float64."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        precise = at_least_float32(hidden)
        weight, bias = (None if part is None else part.to(precise.dtype) for part in (self.weight, self.bias))
        return F.layer_norm(precise, self.normalized_shape, weight, bias, self.eps).to(hidden.dtype)


# ------------------------------------------------------------------------------------------------------------ layers


class Tokens(NamedTuple):
    """Tokens of one expert, as a layer takes and returns them.

    hidden_states: (B, N, L, d), N units of L tokens. timestep_proj: (B, N or 1, 6, 1, d), projected time embedding of
    each unit, or of all. rotary_emb: cosine and sine of the tokens' positions, (B or 1, 1, N * L, head_dim / 2, 2).
    text_units: number of units, counted from the first, that cross-attend to the instruction.
    """

    hidden_states: torch.Tensor
    timestep_proj: torch.Tensor
    rotary_emb: torch.Tensor
    text_units: int = 0


class LayerOutput(NamedTuple):
    """Tokens of each expert, None for an absent one; keys and values of all of them, (B, heads, tokens, head_dim)."""

    video: Tokens | None
    history: Tokens | None
    action: Tokens | None
    keys_values: KeysValues


class AIMAttention(nn.Module):
    """Projections of one attention, eq. (7): from the expert's width to the shared attention width and back."""

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
        """(B, ..., heads * head_dim) -> (B, heads, tokens, head_dim)."""
        return hidden.view(len(hidden), -1, self.heads, hidden.shape[-1] // self.heads).transpose(1, 2)

    def query(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.split(self.norm_q(self.to_q(hidden)))

    def key_value(self, hidden: torch.Tensor) -> KeysValues:
        return self.split(self.norm_k(self.to_k(hidden))), self.split(self.to_v(hidden))

    def out(self, attended: torch.Tensor) -> torch.Tensor:
        return self.to_out[0](attended.transpose(1, 2).flatten(2))


class AIMExpert(nn.Module):
    """One expert of a layer: Wan's transformer block. The self-attention itself runs in `AIMLayer`, over the tokens of
    all experts."""

    def __init__(self, config: AIMConfig, dim: int, ffn_dim: int, reads_text: bool = False):
        super().__init__()
        inner_dim, heads, eps = config.hidden_size, config.num_attention_heads, config.eps
        self.config = config
        self.norm1 = AIMLayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = AIMAttention(dim, inner_dim, heads, eps)
        if reads_text:
            self.norm2 = AIMLayerNorm(dim, eps) if config.cross_attn_norm else nn.Identity()
            self.attn2 = AIMAttention(dim, inner_dim, heads, eps)
        self.norm3 = AIMLayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        self.scale_shift_table = nn.Parameter(torch.empty(1, 6, dim))

    def modulation(self, tokens: Tokens) -> Modulation:
        """Shift, 1 + scale and gate of the self-attention, then of the FFN: six tensors (B, N, 1, d)."""
        return (self.scale_shift_table.unsqueeze(2) + tokens.timestep_proj).unbind(2)

    def project(self, tokens: Tokens, modulation: Modulation) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries, rotated keys, and values of the self-attention: (B, heads, N * L, head_dim) each."""
        hidden = tokens.hidden_states
        shift, scale, *_ = modulation
        normed = torch.addcmul(shift, self.norm1(hidden), scale).to(hidden.dtype)
        query, (key, value) = self.attn1.query(normed), self.attn1.key_value(normed)
        return apply_rotary(query, tokens.rotary_emb), apply_rotary(key, tokens.rotary_emb), value

    def add_residuals(
        self, tokens: Tokens, modulation: Modulation, attended: torch.Tensor, text: KeysValues | None
    ) -> Tokens:
        """Adds the residuals of the self-attention, the cross-attention to the instruction, eq. (8), and the FFN.

        Args:
            attended: output of the self-attention for these tokens, (B, heads, N * L, head_dim).
            text: keys and values of the instruction; needed if `tokens.text_units` is not 0.
        """
        hidden, units = tokens.hidden_states, tokens.text_units
        _, _, attention_gate, shift, scale, ffn_gate = modulation
        hidden = torch.addcmul(hidden, self.attn1.out(attended).view(hidden.shape), attention_gate).to(hidden.dtype)
        if units:
            reading, others = hidden[:, :units], hidden[:, units:]
            read = self.attn2.out(attention(self, self.attn2.query(self.norm2(reading)), *text))
            reading = reading + read.view(reading.shape)
            hidden = torch.cat([reading, others], dim=1) if others.shape[1] else reading
        normed = torch.addcmul(shift, self.norm3(hidden), scale).to(hidden.dtype)
        hidden = torch.addcmul(hidden, self.ffn(normed), ffn_gate).to(hidden.dtype)
        # Not `tokens._replace`: torch 2.11 compiles it to a tuple without fields.
        return Tokens(hidden, tokens.timestep_proj, tokens.rotary_emb, tokens.text_units)


class AIMLayer(AIMExpert, GradientCheckpointingLayer):
    """One mixture-of-transformers layer: experts of different widths share one self-attention, eq. (11).

    The layer is the video expert itself, so that its parameters have the names of Wan's block. It owns two more
    experts: `action`, and `history`, a frozen copy of `action` that encodes executed actions in stage 2.
    """

    def __init__(self, config: AIMConfig):
        super().__init__(config, config.hidden_size, config.ffn_dim, reads_text=True)
        sizes = config.action_hidden_size, config.action_ffn_dim
        self.action = AIMExpert(config, *sizes)
        self.history = AIMExpert(config, *sizes) if config.separate_history_head else None

    def forward(
        self,
        video: Tokens | None,
        history: Tokens | None,
        action: Tokens | None,
        visible: Visible,
        past: KeysValues | None = None,
        text: KeysValues | torch.Tensor | None = None,
    ) -> LayerOutput:
        """
        Args:
            video, history, action: tokens of each expert, None for an absent one. The sequence has them in this order.
            visible: attention mask over the keys of `past`, the last of which are these tokens' own.
            past: keys and values of earlier tokens, (B, heads, keys + tokens, head_dim) each, with room at the end,
                where these tokens' keys and values are written.
            text: keys and values of the instruction, or its features (B, S, d), for the video tokens' cross-attention.
        """
        present = self._present(video, history, action)
        projections = [expert.project(tokens, modulation) for expert, tokens, modulation in present]
        query, key, value = (joined(parts) for parts in zip(*projections))
        attended = attend(self, query, key, value, visible, past)
        if torch.is_tensor(text):
            text = self.attn2.key_value(text)
        attended_parts = separated(attended, [tokens.rotary_emb.shape[2] for _, tokens, _ in present])
        outputs = iter(
            [
                expert.add_residuals(tokens, modulation, attended_part, text)
                for (expert, tokens, modulation), attended_part in zip(present, attended_parts)
            ]
        )
        video, history, action = (None if tokens is None else next(outputs) for tokens in (video, history, action))
        return LayerOutput(video, history, action, (key, value))

    def keys_values(self, video: Tokens | None, history: Tokens | None, action: Tokens | None) -> KeysValues:
        """Keys and values as `forward` returns them, without attention and FFN.

        A pass for the cache reads nothing else of its last layer.
        """
        _, keys, values = zip(*(expert.project(*inputs) for expert, *inputs in self._present(video, history, action)))
        return joined(keys), joined(values)

    def _present(
        self, video: Tokens | None, history: Tokens | None, action: Tokens | None
    ) -> list[tuple[AIMExpert, Tokens, Modulation]]:
        experts = ((self, video), (self.history, history), (self.action, action))
        return [(expert, tokens, expert.modulation(tokens)) for expert, tokens in experts if tokens is not None]


def begin_compiled_pass() -> None:
    """Call it before a pass of compiled layers. CUDA graphs then know that the tensors of the pass before are free.

    A rollout runs a layer in about twenty forms: for the history, the world or the actions, of one row or several, of
    one age or several. torch compiles eight of them and runs the others uncompiled, unless its limit is raised, which
    each thread has for itself.
    """
    torch.compiler.cudagraph_mark_step_begin()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)


class AIMTimeEmbedding(nn.Module):
    """Wan's timestep embedding, which scales t in [0, 1] to Wan's 0..1000."""

    def __init__(self, dim: int, freq_dim: int):
        super().__init__()
        self.timesteps_proj = Timesteps(freq_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedder = TimestepEmbedding(freq_dim, dim)
        self.time_proj = nn.Linear(dim, 6 * dim)

    def forward(self, timestep: Timestep) -> EmbeddedTime:
        """Embeds `timestep`, unless it is embedded already."""
        if not torch.is_tensor(timestep):
            return timestep
        timestep = timestep[:, None] if timestep.dim() == 1 else timestep
        waves = self.timesteps_proj(1000 * timestep.flatten()).to(self.time_proj.weight.dtype)
        embedding = self.time_embedder(waves).unflatten(0, timestep.shape)
        proj = at_least_float32(self.time_proj(F.silu(embedding))).unflatten(-1, (6, 1, -1))
        proj[:, :, 1::3] += 1  # 1 + scale
        return embedding, proj

    def steps(self, timestep: torch.Tensor) -> list[EmbeddedTime]:
        """Embeds the times of S denoising steps at once, (S,) or (S, N). Each is the time of all rows."""
        return list(zip(*(part.split(1) for part in self(timestep))))


class AIMConditionEmbedding(AIMTimeEmbedding):
    """Time and text embedding of the video stream, with the parameter names of Wan's `condition_embedder`."""

    def __init__(self, config: AIMConfig):
        super().__init__(config.hidden_size, config.freq_dim)
        self.text_embedder = PixArtAlphaTextProjection(config.text_dim, config.hidden_size, act_fn="gelu_tanh")


class AIMActionHead(nn.Module):
    """Input and output layers of the action expert: action vectors -> hidden states -> velocities."""

    def __init__(self, config: AIMConfig):
        super().__init__()
        dim = config.action_hidden_size
        # a = MLP(dual-arm action vector), eq. (3)
        self.action_embedder = nn.Sequential(nn.Linear(config.action_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.condition_embedder = AIMTimeEmbedding(dim, config.freq_dim)
        self.norm_out = AIMLayerNorm(dim, config.eps, elementwise_affine=False)
        self.proj_out = nn.Linear(dim, config.action_dim)
        self.scale_shift_table = nn.Parameter(torch.empty(1, 2, dim))

    def embed(self, actions: torch.Tensor, units: int) -> torch.Tensor:
        """Hidden states (B, N, L, d) of N units, from actions (B, N * L, action_dim)."""
        return self.action_embedder(actions).unflatten(1, (units, -1))

    def velocity(self, hidden: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Velocities (B, N * L, action_dim), from hidden states (B, N, L, d) and time embeddings (B, N or 1, d) of N
        units."""
        shift, scale = (self.scale_shift_table + at_least_float32(embedding).unsqueeze(2)).split(1, dim=2)
        normed = (self.norm_out(hidden) * (1 + scale) + shift).to(hidden.dtype)
        return self.proj_out(normed).flatten(1, 2)

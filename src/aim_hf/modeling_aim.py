"""AIM, the intent-aware world-action model.

Notable choices:
- Time runs from t = 1 (noise) to t = 0 (data): x_t = (1 - t) * x_0 + t * eps, and the network predicts the velocity
  v = eps - x_0. This is diffusers' `FlowMatchEulerDiscreteScheduler` convention with sigma = t, used everywhere.
- The video stream is Wan's transformer with Wan's parameter names (`blocks.N.attn1.to_q` ...). RGB and value tokens
  share all of its weights; a learned vector tells value tokens apart. The action head has its own, narrower weights,
  and meets the video stream in one shared self-attention a layer.
- Whole latent frames share one timestep, so a stream's time modulation is computed per frame, not per token.
- Training runs one packed sequence under the mask of `visibility.py`. Inference runs the same layers on an `AIMCache`
  whose slices are the visible sets, without a mask. Both give the same numbers.
"""

import copy
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from .cache import AIMCache, KeysValues
from .checkpoint import DOWNLOAD_KWARGS, as_dtype, local_folder, refuse_pickles
from .configuration_aim import AIMConfig
from .conversion import LINGBOT_VA, WAN, load_video_stream, wan_config
from .layers import (
    AIMActionHead,
    AIMBlock,
    AIMConditionEmbedding,
    AIMLayerNorm,
    Rotation,
    action_positions,
    at_least_float32,
    attention,
    masked_attention,
    modulate,
    rotary,
    shifted,
    video_positions,
)
from .visibility import Kind, Units, visible


@dataclass
class AIMOutput(ModelOutput):
    """
    loss: eq. (9), a scalar. rgb_loss, value_loss, action_loss: its three terms, unweighted.
    rgb_velocity, value_velocity: (B, D, C, K*F, h, w); action_velocity: (B, E, K*P, action_dim).
    """

    loss: torch.Tensor | None = None
    rgb_loss: torch.Tensor | None = None
    value_loss: torch.Tensor | None = None
    action_loss: torch.Tensor | None = None
    rgb_velocity: torch.Tensor | None = None
    value_velocity: torch.Tensor | None = None
    action_velocity: torch.Tensor | None = None


@dataclass
class Segment:
    """A stretch of one stream in a masked pass. hidden: (B, tokens, d); time: t in [0, 1] of each unit, (B, units), or
    of each token, (B, tokens)."""

    units: Units
    hidden: torch.Tensor
    time: torch.Tensor


@dataclass
class Stream:
    """Segments that one list of blocks runs, one after the other. time: of each unit or token, as the blocks take it;
    reading: the instruction and how many tokens read it, for the video stream."""

    blocks: nn.ModuleList
    segments: list[Segment]
    embedding: torch.Tensor
    time: torch.Tensor
    rotation: Rotation
    reading: tuple = ()

    @property
    def hidden(self) -> torch.Tensor:
        return torch.cat([segment.hidden for segment in self.segments], dim=1)

    def split(self, hidden: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Hidden states and time embedding of each segment."""
        tokens = [segment.hidden.shape[1] for segment in self.segments]
        counts = [segment.time.shape[1] for segment in self.segments]
        return list(zip(hidden.split(tokens, dim=1), self.embedding.split(counts, dim=1)))


class AIMForWorldAction(PreTrainedModel):
    """AIM: imagines RGB, predicts spatial value maps on it, and decodes actions through the value maps alone.

    `forward` is the training step: flow-matching losses over a window of an episode. A rollout uses, in this order,
    `new_cache`, `set_text`, `append` (a real observation), `denoise_world`, `condition_actions`, `denoise_actions`,
    and `append` again once the chunk has been executed. [`AIMPipeline`] does all of it.
    """

    config_class = AIMConfig
    base_model_prefix = "aim"
    main_input_name = "latents"
    accepts_loss_kwargs = False
    _no_split_modules = ["AIMBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    supports_gradient_checkpointing = True

    def __init__(self, config: AIMConfig):
        super().__init__(config)
        self.gradient_checkpointing = False
        dim = config.hidden_size
        self.patch_embedding = nn.Conv3d(config.in_channels, dim, config.patch_size, stride=config.patch_size)
        # [z^m, n^m] of eq. (5): a learned vector concatenated to the channels of every value token, followed by the
        # linear patch embedding, is the same as this learned vector added to the embedded token.
        self.value_noise_token = nn.Embedding(1, dim)
        self.condition_embedder = AIMConditionEmbedding(config)
        self.blocks = nn.ModuleList(
            AIMBlock(config, dim, config.ffn_dim, reads_text=True) for _ in range(config.num_layers)
        )
        self.norm_out = AIMLayerNorm(dim, config.eps, elementwise_affine=False)
        patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.proj_out = nn.Linear(dim, config.out_channels * patch)
        self.scale_shift_table = nn.Parameter(torch.empty(1, 2, dim))
        self.action_head = AIMActionHead(config)
        # Executed actions are seen by the video stream too. Where the action head has been trained further by itself,
        # this is its copy from before, which encodes them still: so what is imagined stays the same, bit by bit.
        self.history_head = AIMActionHead(config) if config.separate_history_head else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Conv3d)):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, (nn.RMSNorm, nn.LayerNorm)):
            if module.weight is not None:
                init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        if isinstance(module, (AIMBlock, AIMActionHead, AIMForWorldAction)):
            init.normal_(module.scale_shift_table, std=module.scale_shift_table.shape[-1] ** -0.5)
        if isinstance(module, (AIMActionHead, AIMForWorldAction)):
            init.zeros_(module.proj_out.weight)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, *args, **kwargs):
        """As `PreTrainedModel.from_pretrained`, but weights are read from safetensors alone.

        Raises:
            OSError: for a folder that holds pickled weights, which it names, and whatever that one raises.
        """
        folder = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        if pretrained_model_name_or_path is not None and folder.is_dir():
            refuse_pickles(folder)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **(kwargs | {"use_safetensors": True}))

    @classmethod
    def from_wan(cls, name_or_path: str | os.PathLike, **kwargs):
        """A new AIM whose video stream has the weights of a Wan2.2 model, and whose action head is resampled from it.

        Args:
            name_or_path: folder or repo id in diffusers' layout, such as `Wan-AI/Wan2.2-TI2V-5B-Diffusers`.
            subfolder: of the transformer; `"transformer"` if not given.
            dtype: of the model, as it is or by its name; as stored if not given or "auto".
            output_loading_info: also return the [`LoadingReport`]: where each parameter came from.
            kwargs: fields of [`AIMConfig`] that the video model doesn't decide (`action_hidden_size` ...), and those
                of `huggingface_hub.snapshot_download` (`revision`, `token`, `cache_dir` ...).

        Raises:
            OSError: for a missing or damaged file, which it names.
            ValueError: for tensors that are missing, unknown or of another shape, which it names.
        """
        return cls._from_video_model(WAN, name_or_path, **kwargs)

    @classmethod
    def from_lingbot_va(cls, name_or_path: str | os.PathLike, **kwargs):
        """As `from_wan`, from the video side of LingBot-VA, such as `robbyant/lingbot-va-base`.

        Its action embedder, action output and action timesteps have no counterpart and are left over; the action head
        is resampled from the shared backbone. That model lays out its cameras in another way: wrists above the head
        camera, each encoded by itself.
        """
        return cls._from_video_model(LINGBOT_VA, name_or_path, **kwargs)

    @classmethod
    def _from_video_model(
        cls, layout, name_or_path, subfolder="transformer", dtype=None, output_loading_info=False, **kwargs
    ):
        dtype = None if dtype in (None, "auto") else as_dtype(dtype)
        download = {name: kwargs.pop(name) for name in DOWNLOAD_KWARGS if name in kwargs}
        folder = local_folder(name_or_path, subfolder=subfolder, **download) / subfolder
        config = wan_config(folder, **kwargs)
        with torch.device("meta"):
            model = cls(config)
        report = load_video_stream(model, folder, layout, dtype)
        model.eval()
        return (model, report) if output_loading_info else model

    def get_input_embeddings(self) -> nn.Module:
        """What adapters with activation checkpointing, and quantizers, ask a model for."""
        return self.patch_embedding

    def separate_history_head(self) -> None:
        """From here on the action head as it is encodes executed actions, frozen, and a copy of it, the new
        `action_head`, may be trained by itself: RGB and value maps don't depend on it any more."""
        if self.history_head is None:
            # The copy is the one to be trained: a product of matrices that lie elsewhere may round differently.
            self.history_head = self.action_head.requires_grad_(False)
            self.action_head = copy.deepcopy(self.action_head).requires_grad_(True)
            self.config.separate_history_head = True

    def join_history_head(self) -> None:
        """Undoes `separate_history_head`: one head again, the one that encodes executed actions. What the other has
        learned since is dropped: a model after stage 2 is then what stage 1 left, to the last bit."""
        if self.history_head is not None:
            self.action_head, self.history_head = self.history_head.requires_grad_(True), None
            self.config.separate_history_head = False

    @property
    def _executed_head(self) -> AIMActionHead:
        """What encodes executed actions."""
        return self.action_head if self.history_head is None else self.history_head

    def compile_blocks(self, **options) -> None:
        """Compiles what a layer does before and after the shared attention, once for all layers of a stream.

        Args:
            options: of `torch.compile`.
        """
        compiled = tuple(torch.compile(part, **options) for part in (AIMBlock.project, AIMBlock.update))
        for block in self.modules():
            if isinstance(block, AIMBlock):
                block.parts = compiled

    # ------------------------------------------------------------------------------------------------ tokens

    def _embed_video(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, N, h, w) -> (B, N * tokens_per_frame, d)."""
        return self.patch_embedding(latents).flatten(2).transpose(1, 2)

    def _video_velocity(self, hidden, embedding, frames: int, height: int, width: int) -> torch.Tensor:
        """(B, N * tokens_per_frame, d) -> (B, C, N, h, w)."""
        shift, scale = (self.scale_shift_table + at_least_float32(embedding).unsqueeze(2)).split(1, dim=2)
        hidden = self.proj_out(modulate(self.norm_out(hidden), scale, shift).to(hidden.dtype))
        _, ph, pw = self.config.patch_size
        hidden = hidden.view(hidden.shape[0], frames, height // ph, width // pw, ph, pw, -1)
        return hidden.permute(0, 6, 1, 2, 4, 3, 5).reshape(hidden.shape[0], -1, frames, height, width)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        _, ph, pw = self.config.patch_size
        if height % ph or width % pw:
            raise ValueError(f"latents of {height} x {width} cells don't divide into patches of {ph} x {pw}.")
        return height // ph, width // pw

    def _rotary(self, positions: torch.Tensor) -> Rotation:
        return rotary(positions, self.config.attention_head_dim, self.dtype)

    def _text(self, prompt_embeds: torch.Tensor) -> list[KeysValues]:
        """Keys and values of the instruction in every layer, from text features (B, S, text_dim)."""
        features = self.condition_embedder.text_embedder(prompt_embeds)
        return [block.attn2.key_value(features) for block in self.blocks]

    # ---------------------------------------------------------------------------------------------- training

    def forward(
        self,
        latents: torch.Tensor,
        value_latents: torch.Tensor,
        actions: torch.Tensor,
        prompt_embeds: torch.Tensor,
        action_mask: torch.Tensor | None = None,
        rgb_weights: torch.Tensor | None = None,
        value_weights: torch.Tensor | None = None,
        executed_actions: torch.Tensor | None = None,
        num_draws: int = 1,
        num_action_draws: int = 1,
        timesteps: tuple[torch.Tensor, torch.Tensor] | None = None,
        noise: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
        history_timestep: torch.Tensor | None = None,
        committed_actions: torch.Tensor | None = None,
        context_chunks: int = 0,
        generator: torch.Generator | None = None,
    ) -> AIMOutput:
        """Flow-matching losses of eq. (9) over K chunks, each denoised from its real history (teacher forcing).

        A chunk's prediction has P = (F + A) * n actions, with A = config.action_lookahead_frames.

        Args:
            latents: (B, C, 1 + K*F, h, w), a current latent frame and the K chunks after it.
            value_latents: (B, C, K*F, h, w), value maps of the K chunks.
            actions: (B, (K*F + A)*n, action_dim), normalized; what the head shall predict.
            prompt_embeds: (B, S, text_dim), zero beyond each prompt.
            action_mask: (B, (K*F + A)*n, action_dim) or without the last axis, 0 where an action must not count.
            rgb_weights: (B, K*F, h, w), weights of the RGB loss per latent cell; 0 where a view is missing.
            value_weights: (B, K*F, h, w), weights of the value loss per latent cell; 0 where there is no map.
            executed_actions: (B, K*F*n, action_dim), the history the robot really executed; from `actions` if not
                given.
            num_draws: D, noise draws per chunk of RGB and value. They share the clean tokens.
            num_action_draws: E, noise draws per chunk of actions. They cost the small head alone. In joint denoising
                each goes with a draw of the video, so E = D.
            timesteps: t of each draw and chunk, (B, D, K) for the video, (B, E, K) for actions; drawn if not given.
            noise: (B, D, C, K*F, h, w) for RGB and for value, (B, E, K*P, action_dim); drawn if not given.
            history_timestep: (B,), noise level t of the real observations that the chunks start from, which are told
                it: a model that has seen noisy history trusts its imagination less. 0 if not given.
            committed_actions: (B, E, K), how many of the first actions of a prediction are already certain: they are
                given clean, at t = 0, and don't count.
            context_chunks: this many chunks at the start are history only: nothing of them is denoised, and draws,
                times, noise, losses and velocities are of the others.
            generator: for what is drawn.

        Raises:
            ValueError: for shapes that don't fit together.
        """
        # Times, noise, mixtures and losses are in at least float32, whatever the network computes in: bfloat16 has 128
        # times between 1/2 and 1.
        latents, value_latents, actions = map(at_least_float32, (latents, value_latents, actions))
        config, (B, C, N, height, width) = self.config, latents.shape
        frames_per_chunk, n = config.chunk_latent_frames, config.actions_per_latent_frame
        T = N - 1  # future latent frames
        K, D, E = T // frames_per_chunk, num_draws, num_action_draws
        if T < 1 or T % frames_per_chunk:
            raise ValueError(
                f"latents hold {N} frames; expected 1 + a multiple of chunk_latent_frames={frames_per_chunk}."
            )
        if value_latents.shape != (B, C, T, height, width):
            raise ValueError(f"value_latents are {tuple(value_latents.shape)}; expected {(B, C, T, height, width)}.")
        A, P = config.action_lookahead_frames, config.action_horizon
        if actions.shape != (B, (T + A) * n, config.action_dim):
            raise ValueError(f"actions are {tuple(actions.shape)}; expected {(B, (T + A) * n, config.action_dim)}.")
        if config.joint_denoising and E != D:
            raise ValueError(f"num_action_draws is {E} and num_draws {D}; in joint denoising they go together.")
        if not 0 <= context_chunks < K:
            raise ValueError(f"context_chunks is {context_chunks}; expected 0 to {K - 1}, for {K} chunks.")
        executed_actions = actions[:, : T * n] if executed_actions is None else executed_actions
        if context_chunks:
            frames = context_chunks * frames_per_chunk
            value_latents, actions = value_latents[:, :, frames:], actions[:, frames * n :]
            rgb_weights, value_weights = (w if w is None else w[:, frames:] for w in (rgb_weights, value_weights))
            action_mask = action_mask if action_mask is None else action_mask[:, frames * n :]
            K, T = K - context_chunks, T - frames
        future = latents[:, :, N - T :]

        # Noise and time, u uniform; in joint denoising the two schedules share u.
        def draw(shape):
            return torch.randn(shape, generator=generator, device=latents.device, dtype=latents.dtype)

        def draw_uniform(draws):
            return torch.rand((B, draws, K), generator=generator, device=latents.device, dtype=latents.dtype)

        if timesteps is None:
            u_video = draw_uniform(D)
            u_action = u_video if config.joint_denoising else draw_uniform(E)
            timesteps = shifted(u_video, config.video_shift), shifted(u_action, config.action_shift)
        t_video, t_action = map(at_least_float32, timesteps)
        video_shape, action_shape = (B, D, C, T, height, width), (B, E, K * P, config.action_dim)
        noise = noise or (draw(video_shape), draw(video_shape), draw(action_shape))
        eps_x, eps_m, eps_a = map(at_least_float32, noise)

        def predictions(of_frames):  # (B, (K*F + A)*n, ...) -> (B, K*P, ...), each chunk's actions one after the other
            return of_frames.unfold(1, P, config.actions_per_chunk).movedim(-1, 2).flatten(1, 2)

        target_actions = predictions(actions)

        def noised(clean, eps, t):  # x_t = (1 - t) * x_0 + t * eps; clean lacks the axis of draws
            return (1 - t) * clean.unsqueeze(1) + t * eps

        t_frame = t_video.repeat_interleave(frames_per_chunk, dim=2)  # (B, D, T)
        x_t = noised(future, eps_x, t_frame[:, :, None, :, None, None])
        m_t = noised(value_latents, eps_m, t_frame[:, :, None, :, None, None])
        t_action = t_action.repeat_interleave(P if committed_actions is not None else P // n, dim=2)
        if committed_actions is not None:
            certain = (torch.arange(P, device=latents.device) < committed_actions[..., None]).flatten(2)
            t_action = t_action.masked_fill(certain, 0)
        a_t = noised(target_actions, eps_a, t_action.repeat_interleave(K * P // t_action.shape[2], dim=2)[..., None])

        observed, t_observed = latents, latents.new_zeros(B, N)
        if history_timestep is not None:
            t_observed = at_least_float32(history_timestep)[:, None].expand(B, N)
            at = t_observed[:, None, :, None, None]
            observed = (1 - at) * latents + at * draw(latents.shape)

        seen = (observed, value_latents, executed_actions, prompt_embeds, x_t, m_t, a_t)
        velocities = self._packed_velocities(*(part.to(self.dtype) for part in seen), t_observed, t_frame, t_action)

        # Eq. (9): mean squared errors of the velocities eps - x_0.
        velocity_x, velocity_m, velocity_a = map(at_least_float32, velocities)
        rgb_error = (velocity_x - (eps_x - future.unsqueeze(1))).square().mean(dim=2)  # (B, D, T, h, w)
        rgb_weights, value_weights = (w if w is None else w.unsqueeze(1) for w in (rgb_weights, value_weights))
        rgb_loss = self._weighted_mean(rgb_error, rgb_weights)
        value_error = (velocity_m - (eps_m - value_latents.unsqueeze(1))).square().mean(dim=2)
        value_loss = self._weighted_mean(value_error, value_weights)
        action_error = (velocity_a - (eps_a - target_actions.unsqueeze(1))).square()
        if action_mask is not None:
            action_mask = action_mask[..., None] if action_mask.dim() == 2 else action_mask
            action_mask = predictions(action_mask.expand(actions.shape)).unsqueeze(1)
        if committed_actions is not None:
            action_mask = ~certain[..., None] * (1 if action_mask is None else action_mask)
        action_loss = self._weighted_mean(action_error, action_mask)
        return AIMOutput(
            loss=rgb_loss + config.value_loss_weight * value_loss + config.action_loss_weight * action_loss,
            rgb_loss=rgb_loss,
            value_loss=value_loss,
            action_loss=action_loss,
            rgb_velocity=velocity_x,
            value_velocity=velocity_m,
            action_velocity=velocity_a,
        )

    @staticmethod
    def _weighted_mean(error: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """Both (B, D, ...); weights may lack draws, or be None. 0 where every weight is 0."""
        if weights is None:
            return error.mean()
        weights = weights.expand(error.shape).to(error.dtype)
        return (error * weights).sum() / weights.sum().clamp(min=1e-8)

    def _packed_velocities(
        self, latents, value_latents, executed, prompt_embeds, x_t, m_t, a_t, t_observed, t_frame, t_action
    ):
        """One masked pass over [o | x | m | clean m] and [a | a*].

        Where no action reads the clean value tokens, they are left out.
        """
        config, (B, D, _, T, height, width), E = self.config, x_t.shape, a_t.shape[1]
        N = latents.shape[2]
        past, future = torch.arange(N, device="cpu"), torch.arange(N - T, N, device="cpu")

        def video(kind, frames, latents, time, draw=0):
            units = Units.segment(kind, frames, config.chunk_latent_frames, draw)
            hidden = self._embed_video(latents)
            if kind in (Kind.FUTURE_VALUE, Kind.CLEAN_VALUE):
                hidden = hidden + self.value_noise_token.weight
            return Segment(units, hidden, time)

        def action(units, actions, time, head=self.action_head):
            return Segment(units, head.action_embedder(actions), time)

        video_segments = [
            video(Kind.OBSERVATION, past, latents, t_observed),
            *(video(Kind.FUTURE_RGB, future, x_t[:, d], t_frame[:, d], d) for d in range(D)),
            *(video(Kind.FUTURE_VALUE, future, m_t[:, d], t_frame[:, d], d) for d in range(D)),
        ]
        if config.action_reads_value and not config.joint_denoising:
            clean = video(Kind.CLEAN_VALUE, future, value_latents, t_frame.new_zeros(B, T))
            video_segments.append(clean)
        # Times are of latent frames, or of single actions where some are committed.
        frames_a = config.chunk_latent_frames, config.action_lookahead_frames
        chunks = (future[:: config.chunk_latent_frames] - 1) // config.chunk_latent_frames + 1
        executed_times = executed.shape[1] * t_action.shape[2] // a_t.shape[2]
        executed_units = Units.segment(Kind.ACTION, past[1:], config.chunk_latent_frames)
        action_segments = [
            action(executed_units, executed, t_action.new_zeros(B, executed_times), self._executed_head),
            *(action(Units.future_actions(chunks, *frames_a, e), a_t[:, e], t_action[:, e]) for e in range(E)),
        ]
        grid = self._grid(height, width)
        videos, actions = self._masked_pass(video_segments, action_segments, prompt_embeds, grid)
        velocity_x, velocity_m = (
            torch.stack([self._video_velocity(*denoised, T, height, width) for denoised in draws], dim=1)
            for draws in (videos[1 : 1 + D], videos[1 + D : 1 + 2 * D])
        )
        velocity_a = torch.stack([self.action_head.velocity(*denoised) for denoised in actions[1:]], dim=1)
        return velocity_x, velocity_m, velocity_a

    def _masked_pass(
        self, video_segments: list[Segment], action_segments: list[Segment], prompt_embeds: torch.Tensor, grid: tuple
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[tuple[torch.Tensor, torch.Tensor]]]:
        """All layers over segments of both streams at once, under the mask of `visibility.py`.

        Of video segments those that read the instruction come first; the first action segment is the executed ones.
        `grid`: rows and columns of tokens in a frame.
        Returns, for each segment of each stream, its last hidden states and time embedding.
        """
        config, device = self.config, video_segments[0].hidden.device

        # 1. Who sees whom. On the CPU, since it steers what is attended to what: read from a GPU it would have to be
        #    waited for.
        video_units, action_units = (
            Units.concatenate([segment.units for segment in segments])
            for segments in (video_segments, action_segments)
        )
        units = Units.concatenate([video_units, action_units])
        mask = visible(
            *(units, units, config.chunk_latent_frames, config.history_chunks),
            action_reads_value=config.action_reads_value,
            joint_denoising=config.joint_denoising,
        )
        L, n = grid[0] * grid[1], config.actions_per_latent_frame
        lengths = [L] * len(video_units.kind) + [n] * len(action_units.kind)
        attend_visible = masked_attention(mask, lengths, device)

        # 2. Streams: whose blocks run which tokens, with their times and positions.
        reads_text = config.value_text_cross_attention | (video_units.kind <= Kind.FUTURE_RGB)
        reading = self.condition_embedder.text_embedder(prompt_embeds), int(reads_text.sum()) * L

        def stream(part, segments, positions, *reading):
            frames = torch.cat([segment.units.frame for segment in segments])[None].to(device)
            times = part.condition_embedder(torch.cat([segment.time for segment in segments], dim=1))
            return Stream(part.blocks, segments, *times, self._rotary(positions(frames)), reading)

        of_heads = [(self.action_head, action_segments)]
        if self.history_head is not None:
            of_heads = [(self.history_head, action_segments[:1]), (self.action_head, action_segments[1:])]
        streams = [
            stream(self, video_segments, lambda frames: video_positions(frames, *grid), *reading),
            *(stream(head, segments, lambda frames: action_positions(frames, n)) for head, segments in of_heads),
        ]

        # 3. Layers: one shared self-attention.
        def run_layer(layer, *hidden):
            # Each block is called once, as FSDP and hooks want it, and the attention between them needs all of them:
            # so each call lies within the one before, and the innermost attends for all.
            updated, projections, shares = [None] * len(streams), [], []

            def run(index):
                if index == len(streams):
                    q, k, v = (torch.cat(parts, dim=2) for parts in zip(*projections))
                    shares.extend(attend_visible(q, k, v).split([part.shape[1] for part in hidden], dim=2))
                    return

                def attend(*projected):
                    projections.append(projected)
                    run(index + 1)
                    return shares[index]

                stream = streams[index]
                updated[index] = stream.blocks[layer](
                    hidden[index], stream.time, stream.rotation, attend, *stream.reading
                )

            run(0)
            return tuple(updated)

        hidden = tuple(stream.hidden for stream in streams)
        for layer in range(config.num_layers):
            if self.gradient_checkpointing and self.training:
                hidden = self._gradient_checkpointing_func(run_layer, layer, *hidden)
            else:
                hidden = run_layer(layer, *hidden)

        # 4. Back to segments.
        videos, *actions = (stream.split(last) for stream, last in zip(streams, hidden))
        return videos, [segment for of_head in actions for segment in of_head]

    # ---------------------------------------------------------------------------------------------- rollout

    def new_cache(self, batch_size: int, height: int, width: int) -> AIMCache:
        """An empty cache for latents of `height` x `width` cells."""
        rows, columns = self._grid(height, width)
        return AIMCache(self.config, batch_size, rows * columns, self.device, self.dtype)

    def set_text(self, cache: AIMCache, prompt_embeds: torch.Tensor, rows: torch.Tensor | None = None) -> None:
        """Computes the instruction's keys and values once. prompt_embeds: (B, S, text_dim), or of `rows` only."""
        text = self._text(prompt_embeds)
        if rows is not None:
            rows = rows.to(cache.device)
            text = [tuple(old.index_copy(0, rows, new) for old, new in zip(*pairs)) for pairs in zip(cache.text, text)]
        cache.text = text

    def append(
        self,
        cache: AIMCache,
        latents: torch.Tensor,
        actions: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Appends a real observation o_c, (B, C, f, h, w), and the executed actions a_c, (B, f*n, action_dim).

        A row's first observation is one latent frame without actions; every later one is a whole chunk with them.
        `rows`: long tensor on the CPU, when only some rows have observed something; the arguments are theirs alone.
        """
        if rows is not None:
            some = cache.select(rows)
            self.append(some, latents, actions)
            cache.assign(rows, some)
            return
        config = self.config
        B, _, f, height, width = latents.shape
        n_actions = f * config.actions_per_latent_frame
        if cache.text is None:
            raise ValueError("the cache has no instruction yet; call set_text first.")
        started = cache.frames > 0
        if started.any() != started.all():
            raise ValueError(
                f"rows {(~started).nonzero().flatten().tolist()} have observed nothing yet and others have; append to "
                "them apart, by `rows`."
            )
        if not started.any() and (f != 1 or actions is not None):
            raise ValueError(f"the first observation is one latent frame without actions, got {f} frames.")
        if started.any() and f != config.chunk_latent_frames:
            raise ValueError(
                f"an observation after the first has {config.chunk_latent_frames} latent frames, got {f}."
            )
        if started.any() and (actions is None or actions.shape != (B, n_actions, config.action_dim)):
            got = None if actions is None else tuple(actions.shape)
            raise ValueError(f"executed actions are {got}; expected {(B, n_actions, config.action_dim)}.")
        height, width = self._grid(height, width)
        L = height * width
        cache.reserve(f)
        frames = cache.next_frames(f).to(latents.device)
        video_slots, action_slots = cache.observed_slots(f)

        video = self._embed_video(latents)
        _, video_time = self.condition_embedder(latents.new_zeros(B, f))
        video_rotation = self._rotary(video_positions(frames, height, width))
        if actions is not None:
            action = self._executed_head.action_embedder(actions)
            _, action_time = self._executed_head.condition_embedder(actions.new_zeros(B, f))
            action_rotation = self._rotary(action_positions(frames, config.actions_per_latent_frame))
            action_mask = cache.mask(actions=True, observations=False, before=L, after=n_actions)
        start, stop = cache.actions_start, cache.future_start
        video_mask = cache.mask(actions=True, observations=True, after=f * L)

        # What is observed lies right of the history until everything of its layer has looked at the chunk that it is
        # about to replace.
        def attend_observation(layer, q, k, v):
            cache.write(layer, stop, k, v)
            return self._attention(q, *cache.view(layer, start, stop + f * L), video_mask)

        def attend_actions(layer, q, k, v):
            sources = (cache.current_frame(layer), cache.action_history(layer), (k, v))
            attended = self._attention(q, *_joined(sources), action_mask)
            cache.keep(layer, action_slots, k, v)
            return attended

        for layer, (video_block, action_block) in enumerate(zip(self.blocks, self._executed_head.blocks)):
            attend = partial(attend_observation, layer)
            video = video_block(video, video_time, video_rotation, attend, cache.text[layer], video.shape[1])
            if actions is not None:
                action = action_block(action, action_time, action_rotation, partial(attend_actions, layer))
            cache.keep(layer, video_slots, *cache.view(layer, stop, stop + f * L))
        cache.advance(f)

    def denoise_world(
        self, cache: AIMCache, rgb: torch.Tensor, value: torch.Tensor, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocities of the next chunk's RGB and value latents, (B, C, F, h, w) each, at `timestep` (B,) in [0, 1].

        Both run through the video stream together, eq. (6); the value tokens see the RGB tokens, never the reverse.
        """
        self._check_future(cache, rgb, value)
        frames, (height, width) = rgb.shape[2], rgb.shape[3:]
        hidden, embedding = self._world_pass(cache, rgb, value, timestep[:, None].expand(-1, frames))
        velocity = self._video_velocity(hidden, embedding, 2 * frames, height, width)
        return velocity[:, :, :frames], velocity[:, :, frames:]

    def condition_actions(
        self, cache: AIMCache, rgb: torch.Tensor | None = None, value: torch.Tensor | None = None
    ) -> None:
        """Gathers V_a, eq. (10), for `denoise_actions`: from the finished RGB and value latents, by a pass with t = 0;
        in joint denoising (no latents given) from the value tokens as the last `denoise_world` left them.

        Raises:
            ValueError: if latents are given in joint denoising, or not given otherwise, or nothing was denoised yet.
        """
        config = self.config
        if config.joint_denoising != (rgb is None) or (rgb is None) != (value is None):
            wanted = "no latents: its" if config.joint_denoising else "the RGB and value latents: its"
            raise ValueError(f"this model wants {wanted} joint_denoising is {config.joint_denoising}.")
        if config.joint_denoising and not cache.holds_future:
            raise ValueError("the cache holds no value tokens of the next chunk yet; call denoise_world first.")
        if rgb is not None:
            self._check_future(cache, rgb, value)
            if config.action_reads_value:
                self._world_pass(cache, rgb, value, rgb.new_zeros(rgb.shape[0], rgb.shape[2]))
        future = config.chunk_latent_frames * cache.tokens_per_frame
        value_start = cache.future_start + future
        # Room for the actions' own keys behind them, so that a denoising step copies nothing of the context.
        heads, dim = config.num_attention_heads, config.attention_head_dim
        room = cache.view(0, 0, 0)[0].new_empty(cache.batch_size, heads, config.action_horizon, dim)
        context = []
        for layer in range(config.num_layers):
            sources = [cache.current_frame(layer), cache.action_history(layer)]
            if config.action_reads_value:
                sources.append(cache.view(layer, value_start, value_start + future))
            context.append(_joined([*sources, (room, room)]))
        cache.action_context = context

    def denoise_actions(
        self, cache: AIMCache, actions: torch.Tensor, timestep: torch.Tensor, head: AIMActionHead | None = None
    ) -> torch.Tensor:
        """Velocity of the next normalized actions, (B, config.action_horizon, action_dim), at `timestep` in [0, 1]:
        (B,), or (B, action_horizon) where some are committed. By another `head` than `action_head` if one is given.
        Several draws of each row's actions, one after the other, may be given at once: (B * draws, ...)."""
        config, head = self.config, head or self.action_head
        if cache.action_context is None:
            raise ValueError("the cache holds no value map for these actions; call condition_actions first.")
        if "actions" not in cache.rotations:
            frames = cache.next_frames(config.chunk_latent_frames + config.action_lookahead_frames).to(actions.device)
            positions = action_positions(frames, config.actions_per_latent_frame)
            cache.rotations["actions"] = self._rotary(positions)
        rotation = cache.rotations["actions"]
        value_tokens = config.chunk_latent_frames * cache.tokens_per_frame * config.action_reads_value
        mask = cache.mask(
            actions=True, observations=False, before=cache.tokens_per_frame, after=value_tokens + actions.shape[1]
        )
        draws = actions.shape[0] // cache.batch_size
        if draws > 1:
            mask = mask if mask is None else mask.repeat_interleave(draws, dim=0)
            rotation = tuple(r if len(r) == 1 else r.repeat_interleave(draws, dim=0) for r in rotation)
        hidden = head.action_embedder(actions)
        timestep = timestep[:, None] if timestep.dim() == 1 else timestep
        embedding, time = head.condition_embedder(timestep)

        def attend(context, q, k, v):
            if draws == 1 and not torch.is_grad_enabled():
                for buffer, own in zip(context, (k, v)):
                    buffer[:, :, -actions.shape[1] :] = own
                return self._attention(q, *context, mask)
            seen = (part[:, :, : -actions.shape[1]].repeat_interleave(draws, dim=0) for part in context)
            return self._attention(q, *_joined((tuple(seen), (k, v))), mask)

        for block, context in zip(head.blocks, cache.action_context):
            hidden = block(hidden, time, rotation, partial(attend, context))
        return head.velocity(hidden, embedding)

    def _attention(self, q, k, v, mask: torch.Tensor | None = None) -> torch.Tensor:
        """By the implementation that the model was loaded with (`attn_implementation=`). Rows of different age need a
        mask of keys, and for them it is PyTorch's."""
        implementation = self.config._attn_implementation
        if implementation in ("sdpa", "eager") or mask is not None:
            return attention(q, k, v, mask)
        run = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, None)
        return run(self, q, k, v, None, is_causal=False)[0].transpose(1, 2)

    def _check_future(self, cache, rgb, value):
        if (cache.frames == 0).any():
            rows = (cache.frames == 0).nonzero().flatten().tolist()
            raise ValueError(f"rows {rows} of the cache hold no observation yet; call append first.")
        if rgb.shape[2] != self.config.chunk_latent_frames or value.shape != rgb.shape:
            raise ValueError(
                f"RGB and value latents are {tuple(rgb.shape)} and {tuple(value.shape)}; expected the same shape with "
                f"{self.config.chunk_latent_frames} latent frames."
            )

    def _world_pass(self, cache, rgb, value, timestep):
        """[x | m] through the video stream, each frame at its own time (B, f). Writes their keys and values right of
        the observations."""
        config, (_, _, f, height, width) = self.config, rgb.shape
        rows, columns = self._grid(height, width)
        L = rows * columns
        if "world" not in cache.rotations:
            positions = video_positions(cache.next_frames(f).to(rgb.device), rows, columns)
            cache.rotations["world"] = self._rotary(positions.repeat(1, 2, 1))
        rotation = cache.rotations["world"]
        hidden = self._embed_video(torch.cat([rgb, value], dim=2))
        hidden = torch.cat([hidden[:, : f * L], hidden[:, f * L :] + self.value_noise_token.weight], dim=1)
        embedding, time = self.condition_embedder(timestep.repeat(1, 2))
        text_tokens = 2 * f * L if config.value_text_cross_attention else f * L
        start, origin, future = cache.actions_start, cache.observations_start, cache.future_start
        mask_x = cache.mask(actions=True, observations=True, after=f * L)
        mask_m = cache.mask(actions=False, observations=True, after=2 * f * L)

        def attend(layer, q, k, v):
            cache.write(layer, future, k, v)
            attended_x = self._attention(q[:, :, : f * L], *cache.view(layer, start, future + f * L), mask_x)
            attended_m = self._attention(q[:, :, f * L :], *cache.view(layer, origin, future + 2 * f * L), mask_m)
            return torch.cat([attended_x, attended_m], dim=2)

        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, time, rotation, partial(attend, layer), cache.text[layer], text_tokens)
        cache.holds_future = True
        return hidden, embedding


def _joined(sources: Iterable[KeysValues]) -> KeysValues:
    """Keys and values one after the other."""
    keys, values = zip(*sources)
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)

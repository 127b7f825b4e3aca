"""AIM, the intent-aware world-action model.

Notable choices:
- Time runs from t = 1 (noise) to t = 0 (data): x_t = (1 - t) * x_0 + t * eps, and the network predicts the velocity
  v = eps - x_0. This is diffusers' `FlowMatchEulerDiscreteScheduler` convention with sigma = t, used everywhere.
- The video expert is Wan's transformer with Wan's parameter names (`blocks.N.attn1.to_q` ...). RGB and value tokens
  share all of its weights; a learned vector marks value tokens. The action expert has its own, narrower weights, and
  shares one self-attention with the video expert in every layer (`AIMLayer`).
- All tokens of a latent frame have the same timestep, so the time modulation is computed per frame, not per token.
- Training runs one packed sequence under the mask of `visibility.py`. Inference runs the same layers over an
  `AIMCache`, whose slices are the visible sets. Both give the same numbers.
"""

import copy
import os
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .attention import VisibleSet, joined, packed_visible
from .cache import ActionContext, AIMCache, WorldContext
from .checkpoint import DOWNLOAD_KWARGS, EARLIER_NAMES, as_dtype, check_one_device, check_weights, local_folder
from .configuration_aim import AIMConfig
from .conversion import LINGBOT_VA, WAN, Layout, LoadingReport, load_video_stream, wan_config
from .layers import (
    AIMActionHead,
    AIMConditionEmbedding,
    AIMExpert,
    AIMLayer,
    AIMLayerNorm,
    Timestep,
    Tokens,
    action_positions,
    at_least_float32,
    begin_compiled_pass,
    rotary,
    video_positions,
)
from .visibility import Kind, Units, Visibility, visible


@dataclass
class AIMOutput(ModelOutput):
    """
    Velocities eps - x_0. rgb_velocity, value_velocity: (B, D, C, K*F, h, w); action_velocity: (B, E, K*P, action_dim).
    """

    rgb_velocity: torch.Tensor | None = None
    value_velocity: torch.Tensor | None = None
    action_velocity: torch.Tensor | None = None


@dataclass
class Segment:
    """Consecutive units of the packed sequence. hidden_states: (B, N, L, d), N units of L tokens; timestep: t in [0,
    1], (B, N). Where each token has its own time, N counts tokens here, and L is 1."""

    units: Units
    hidden_states: torch.Tensor
    timestep: torch.Tensor


class AIMForWorldAction(PreTrainedModel):
    """AIM: imagines RGB, predicts spatial value maps on it, and decodes actions from them.

    `forward` returns the velocities of all chunks of a window at once, for training ([`FlowMatchingLoss`]). In a
    rollout, [`AIMPipeline`] calls `new_cache`, `set_text` and `append` (a real observation); then for each chunk
    `world_context`, `world_velocity`, `action_context`, `action_velocity`, and `append` once it has been executed.
    """

    config_class = AIMConfig
    base_model_prefix = "aim"
    main_input_name = "latents"
    accepts_loss_kwargs = False
    _no_split_modules = ["AIMLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    supports_gradient_checkpointing = True

    def __init__(self, config: AIMConfig):
        super().__init__(config)
        config.validate_architecture()  # fields given to `from_pretrained` are set one by one, unchecked
        dim = config.hidden_size
        self.patch_embedding = nn.Conv3d(config.in_channels, dim, config.patch_size, stride=config.patch_size)
        # [z^m, n^m] of eq. (5): concatenating a learned vector to a value token's channels, before the linear patch
        # embedding, is the same as adding a learned vector to the embedded token.
        self.value_noise_token = nn.Embedding(1, dim)
        self.condition_embedder = AIMConditionEmbedding(config)
        self.blocks = nn.ModuleList(AIMLayer(config) for _ in range(config.num_layers))
        self.norm_out = AIMLayerNorm(dim, config.eps, elementwise_affine=False)
        patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.proj_out = nn.Linear(dim, config.out_channels * patch)
        self.scale_shift_table = nn.Parameter(torch.empty(1, 2, dim))
        self.action_head = AIMActionHead(config)
        # Video tokens attend to executed actions. While stage 2 trains the action head and experts, frozen ones (this
        # head and each layer's `history`) encode executed actions, so that RGB and value maps don't change.
        self.history_head = AIMActionHead(config) if config.separate_history_head else None
        self._compiled = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
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
        if isinstance(module, (AIMExpert, AIMActionHead, AIMForWorldAction)):
            init.normal_(module.scale_shift_table, std=module.scale_shift_table.shape[-1] ** -0.5)
        if isinstance(module, (AIMActionHead, AIMForWorldAction)):
            init.zeros_(module.proj_out.weight)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> "AIMForWorldAction":
        """As `PreTrainedModel.from_pretrained`, but reads weights from safetensors only.

        Raises:
            OSError: for pickled or damaged weights, whose file it names; and as `PreTrainedModel.from_pretrained`.
            ValueError: for a `device_map` that puts layers on several devices, such as "auto" with two GPUs.
        """
        if pretrained_model_name_or_path is not None:
            check_weights(Path(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        kwargs = {"key_mapping": EARLIER_NAMES} | kwargs | {"use_safetensors": True}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        check_one_device(loaded[0] if kwargs.get("output_loading_info") else loaded)
        return loaded

    @wraps(PreTrainedModel.save_pretrained)  # diffusers inspects the signature
    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        # A model that was loaded with earlier parameter names is saved with the current ones.
        super().save_pretrained(*args, **({"save_original_format": False} | kwargs))

    @classmethod
    def from_wan(
        cls, name_or_path: str | os.PathLike, **kwargs: Any
    ) -> "AIMForWorldAction | tuple[AIMForWorldAction, LoadingReport]":
        """A new AIM: its video stream has the weights of a Wan model, its action head is resampled from them.

        Args:
            name_or_path: folder or repo id in diffusers' layout, such as `Wan-AI/Wan2.2-TI2V-5B-Diffusers` or
                `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`.
            subfolder: of the transformer; `"transformer"` if not given.
            dtype: of the model, a `torch.dtype` or its name; as stored if not given or "auto".
            output_loading_info: also return the [`LoadingReport`], which lists the source of each parameter.
            kwargs: fields of [`AIMConfig`] that the video model doesn't determine (`action_hidden_size` ...), and
                arguments of `huggingface_hub.snapshot_download` (`revision`, `token`, `cache_dir` ...).

        Raises:
            OSError: for a missing or damaged file, which it names.
            ValueError: for tensors that are missing, unknown or of another shape, which it names.
        """
        return cls._from_video_model(WAN, name_or_path, **kwargs)

    @classmethod
    def from_lingbot_va(
        cls, name_or_path: str | os.PathLike, **kwargs: Any
    ) -> "AIMForWorldAction | tuple[AIMForWorldAction, LoadingReport]":
        """As `from_wan`, from the video stream of LingBot-VA, such as `robbyant/lingbot-va-base`.

        LingBot-VA's action embedder, action output and action timesteps have no counterpart and are not used; the
        action head is resampled from the shared backbone. LingBot-VA arranges its cameras differently: wrist cameras
        above the head camera, each encoded by itself.
        """
        return cls._from_video_model(LINGBOT_VA, name_or_path, **kwargs)

    @classmethod
    def _from_video_model(
        cls,
        layout: Layout,
        name_or_path: str | os.PathLike,
        subfolder: str = "transformer",
        dtype: torch.dtype | str | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> "AIMForWorldAction | tuple[AIMForWorldAction, LoadingReport]":
        dtype = None if dtype in (None, "auto") else as_dtype(dtype)
        download = {name: kwargs.pop(name) for name in DOWNLOAD_KWARGS if name in kwargs}
        folder = local_folder(name_or_path, subfolder=subfolder, **download) / subfolder
        with torch.device("meta"):
            model = cls(wan_config(folder, **kwargs))
        report = load_video_stream(model, folder, layout, dtype)
        model.eval()
        return (model, report) if output_loading_info else model

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding; PEFT with activation checkpointing and quantizers ask for it."""
        return self.patch_embedding

    def separate_history_head(self) -> None:
        """Freezes the action head and experts for encoding executed actions, and makes trainable copies of them.

        The frozen modules become `history_head` and each layer's `history`; the copies are the new `action_head` and
        each layer's `action`. RGB and value maps don't depend on the copies, so training these doesn't change them.
        """
        if self.history_head is None:
            # The frozen modules keep their tensors: a matrix product may round differently in copied memory.
            self.history_head = self.action_head.requires_grad_(False)
            self.action_head = copy.deepcopy(self.action_head).requires_grad_(True)
            for layer in self.blocks:
                layer.history = layer.action.requires_grad_(False)
                layer.action = copy.deepcopy(layer.action).requires_grad_(True)
            self.config.separate_history_head = True

    def join_history_head(self) -> None:
        """Undoes `separate_history_head`: keeps the frozen head and experts, and drops the trained ones. A model after
        stage 2 becomes the model of stage 1 again, bit for bit."""
        if self.history_head is not None:
            self.action_head, self.history_head = self.history_head.requires_grad_(True), None
            for layer in self.blocks:
                layer.action, layer.history = layer.history.requires_grad_(True), None
            self.config.separate_history_head = False

    def compile_blocks(self, **options: Any) -> None:
        """Compiles the layers without their attention, once for all of them. `options`: of `torch.compile`. With
        `mode="reduce-overhead"`, for inference, a GPU also captures them as CUDA graphs."""
        self._compiled = True
        for layer in self.blocks:
            layer.compile(**options)

    def _layers_of_pass(self) -> nn.ModuleList:
        """The layers, at the start of a pass of a rollout."""
        if self._compiled:
            begin_compiled_pass()
        return self.blocks

    # ------------------------------------------------------------------------------------------------ tokens

    def _embed_video(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, N, h, w) -> video tokens (B, N, tokens_per_frame, d)."""
        return self.patch_embedding(latents).flatten(3).permute(0, 2, 3, 1)

    def _video_velocity(
        self, hidden: torch.Tensor, embedding: torch.Tensor, frames: int, height: int, width: int
    ) -> torch.Tensor:
        """Hidden states (B, N, tokens_per_frame, d) -> velocity (B, C, N, h, w)."""
        shift, scale = (self.scale_shift_table + at_least_float32(embedding).unsqueeze(2)).split(1, dim=2)
        hidden = self.proj_out((self.norm_out(hidden) * (1 + scale) + shift).to(hidden.dtype))
        _, ph, pw = self.config.patch_size
        hidden = hidden.view(hidden.shape[0], frames, height // ph, width // pw, ph, pw, -1)
        return hidden.permute(0, 6, 1, 2, 4, 3, 5).reshape(hidden.shape[0], -1, frames, height, width)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of video tokens in a latent frame."""
        _, ph, pw = self.config.patch_size
        if height % ph or width % pw:
            raise ValueError(f"latents of {height} x {width} cells don't divide into patches of {ph} x {pw}.")
        return height // ph, width // pw

    def _video_rotary(self, frames: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return rotary(video_positions(frames, *grid), self.config.attention_head_dim, self.dtype)

    def _action_rotary(self, frames: torch.Tensor) -> torch.Tensor:
        positions = action_positions(frames, self.config.actions_per_latent_frame)
        return rotary(positions, self.config.attention_head_dim, self.dtype)

    @property
    def _executed_head(self) -> AIMActionHead:
        """The head that encodes executed actions."""
        return self.action_head if self.history_head is None else self.history_head

    # ---------------------------------------------------------------------------------------------- training

    def forward(
        self,
        latents: torch.Tensor,
        value_latents: torch.Tensor,
        executed_actions: torch.Tensor,
        prompt_embeds: torch.Tensor,
        noisy_latents: torch.Tensor,
        noisy_value_latents: torch.Tensor,
        noisy_actions: torch.Tensor,
        timestep: torch.Tensor,
        action_timestep: torch.Tensor,
        history_timestep: torch.Tensor | None = None,
    ) -> AIMOutput:
        """Velocities of K chunks at once, each denoised from its real history (teacher forcing).

        All tokens form one packed sequence: [o | x | m | clean m] of video tokens, then [a | a*] of actions. The clean
        value tokens are left out if no action attends to them. Times are in [0, 1]; 1 is noise.

        Args:
            latents: (B, C, 1 + K*F, h, w), real RGB: a current latent frame and the K chunks after it. More chunks
                before these are history only.
            value_latents: (B, C, K*F, h, w), the true value maps of the K chunks.
            executed_actions: (B, K*F*n, action_dim), normalized, preceded by the history's.
            prompt_embeds: (B, S, text_dim), zero beyond each prompt.
            noisy_latents, noisy_value_latents: (B, D, C, K*F, h, w), D noise samples of each chunk. They share the
                clean tokens.
            noisy_actions: (B, E, K*P, action_dim), E noise samples of each chunk's P actions. Only the action expert
                computes on them.
            timestep: (B, D, K*F), of each latent frame.
            action_timestep: (B, E, K*(F + A)) of each latent frame, or (B, E, K*P) of each action.
            history_timestep: (B,), noise level of the real observations; 0 if not given.
        """
        config, (B, D, _, T, height, width), E = self.config, noisy_latents.shape, noisy_actions.shape[1]
        past, future = torch.arange(latents.shape[2], device="cpu"), torch.arange(latents.shape[2], device="cpu")[-T:]
        at_zero = timestep.new_zeros(B, 1)
        history_timestep = at_zero if history_timestep is None else history_timestep[:, None]

        # 1. Segments. Video tokens with cross-attention to the instruction, and executed actions, come first.
        videos = [
            self._video_segment(Kind.OBSERVATION, past, latents, history_timestep.expand(B, len(past))),
            *(self._video_segment(Kind.FUTURE_RGB, future, noisy_latents[:, d], timestep[:, d], d) for d in range(D)),
            *(
                self._video_segment(Kind.FUTURE_VALUE, future, noisy_value_latents[:, d], timestep[:, d], d)
                for d in range(D)
            ),
        ]
        if Visibility(config.visibility).action_sees_value:
            clean = self._video_segment(Kind.CLEAN_VALUE, future, value_latents, at_zero.expand(B, T))
            videos.append(clean)
        chunks = (future[:: config.chunk_latent_frames] - 1) // config.chunk_latent_frames + 1
        # Executed actions have one time per latent frame, or one per action, as the predicted actions do.
        times = executed_actions.shape[1] * action_timestep.shape[2] // noisy_actions.shape[2]
        actions = [
            self._executed_segment(past[1:], executed_actions, at_zero.expand(B, times)),
            *(self._predicted_segment(chunks, noisy_actions[:, e], action_timestep[:, e], e) for e in range(E)),
        ]

        # 2. Layers.
        text = self.condition_embedder.text_embedder(prompt_embeds.to(self.dtype))
        videos, actions = self._packed_pass(videos, actions, text, self._grid(height, width))

        # 3. Velocities of the noisy segments.
        rgb, value = (
            torch.stack([self._video_velocity(*segment, T, height, width) for segment in draws], dim=1)
            for draws in (videos[1 : 1 + D], videos[1 + D : 1 + 2 * D])
        )
        action = torch.stack([self.action_head.velocity(*segment) for segment in actions[1:]], dim=1)
        return AIMOutput(rgb_velocity=rgb, value_velocity=value, action_velocity=action)

    def _video_segment(
        self, kind: Kind, frames: torch.Tensor, latents: torch.Tensor, timestep: torch.Tensor, draw: int = 0
    ) -> Segment:
        hidden = self._embed_video(latents.to(self.dtype))
        if kind in (Kind.FUTURE_VALUE, Kind.CLEAN_VALUE):
            hidden = hidden + self.value_noise_token.weight
        return Segment(Units.segment(kind, frames, self.config.chunk_latent_frames, draw), hidden, timestep)

    def _executed_segment(self, frames: torch.Tensor, actions: torch.Tensor, timestep: torch.Tensor) -> Segment:
        units = Units.segment(Kind.ACTION, frames, self.config.chunk_latent_frames)
        return Segment(units, self._executed_head.embed(actions.to(self.dtype), timestep.shape[1]), timestep)

    def _predicted_segment(
        self, chunks: torch.Tensor, actions: torch.Tensor, timestep: torch.Tensor, draw: int = 0
    ) -> Segment:
        config = self.config
        units = Units.future_actions(chunks, config.chunk_latent_frames, config.action_lookahead_frames, draw)
        return Segment(units, self.action_head.embed(actions.to(self.dtype), timestep.shape[1]), timestep)

    def _packed_pass(
        self, videos: list[Segment], actions: list[Segment], text: torch.Tensor, grid: tuple[int, int]
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Runs all layers over the segments of one packed sequence, under the mask of `visibility.py`.

        Args:
            videos: those with cross-attention to the instruction first.
            actions: the executed ones first.
            text: features of the instruction, (B, S, d).

        Returns:
            last hidden states and time embedding of each video segment, and of each action segment.
        """
        config, L = self.config, grid[0] * grid[1]
        units = Units.concatenate([segment.units for segment in (*videos, *actions)])
        sizes = config.chunk_latent_frames, config.history_chunks
        mask = visible(units, units, *sizes, Visibility(config.visibility))
        is_action = (units.kind == Kind.ACTION) | (units.kind == Kind.FUTURE_ACTION)
        lengths = torch.where(is_action, config.actions_per_latent_frame, L).tolist()
        packed = packed_visible(mask, lengths, videos[0].hidden_states.device)
        with_text = [segment for segment in videos if segment.units.kind[0] <= Kind.FUTURE_RGB]

        def expert_tokens(
            segments: list[Segment], head: nn.Module | None, text_units: int = 0
        ) -> tuple[Tokens | None, torch.Tensor | None]:
            if not segments:
                return None, None
            frames = torch.cat([segment.units.frame for segment in segments])[None].to(text.device)
            rotation = self._video_rotary(frames, grid) if segments is videos else self._action_rotary(frames)
            hidden = torch.cat([segment.hidden_states for segment in segments], dim=1)
            embedding, proj = head.condition_embedder(torch.cat([segment.timestep for segment in segments], dim=1))
            return Tokens(hidden, proj, rotation, text_units), embedding

        executed, own = ([], actions) if self.history_head is None else (actions[:1], actions[1:])
        text_units = sum(segment.hidden_states.shape[1] for segment in with_text)
        video, video_embedding = expert_tokens(videos, self, text_units)
        history, history_embedding = expert_tokens(executed, self.history_head)
        action, action_embedding = expert_tokens(own, self.action_head)
        for layer in self.blocks:
            video, history, action, _ = layer(video, history, action, packed, text=text)
        action_outputs = _split(executed, history, history_embedding) + _split(own, action, action_embedding)
        return _split(videos, video, video_embedding), action_outputs

    # ---------------------------------------------------------------------------------------------- rollout

    def new_cache(self, batch_size: int, height: int, width: int) -> AIMCache:
        """An empty cache for latent frames of `height` x `width` cells."""
        return AIMCache(self.config, batch_size, self._grid(height, width), self.device, self.dtype)

    def set_text(self, cache: AIMCache, prompt_embeds: torch.Tensor, rows: torch.Tensor | None = None) -> None:
        """Stores the instruction's keys and values in `cache`. prompt_embeds: (B, S, text_dim), or of `rows` only."""
        features = self.condition_embedder.text_embedder(prompt_embeds)
        text = [layer.attn2.key_value(features) for layer in self.blocks]
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
        `rows`: long tensor on the CPU, to append to some rows only; the other arguments then have these rows.

        Raises:
            ValueError: for shapes that don't fit, or a cache without an instruction.
        """
        if rows is not None:
            selected = cache.select(rows)
            self.append(selected, latents, actions)
            cache.assign(rows, selected)
            return
        cache.check_appended(latents, actions)
        f, grid = latents.shape[2], self._grid(*latents.shape[3:])
        L, count = grid[0] * grid[1], 0 if actions is None else actions.shape[1]
        cache.reserve(f)
        frames = cache.next_frames(f).to(latents.device)

        # Keys: the current frame, cached actions, cached observations, new observation, new actions.
        past_actions = L + cache.action_tokens
        past = past_actions + cache.observation_tokens
        visible = [
            VisibleSet(
                queries=(slice(0, f * L),),
                keys=(slice(L, past + f * L),),
                key_mask=cache.mask(actions=True, observations=True, after=f * L),
            )
        ]
        _, timestep_proj = self.condition_embedder(latents.new_zeros(1))
        video = Tokens(self._embed_video(latents), timestep_proj, self._video_rotary(frames, grid), text_units=f)
        executed = None
        if actions is not None:
            visible.append(
                VisibleSet(
                    queries=(slice(f * L, f * L + count),),
                    keys=(slice(0, past_actions), slice(past + f * L, past + f * L + count)),
                    key_mask=cache.mask(actions=True, observations=False, before=L, after=count),
                )
            )
            head = self._executed_head
            _, timestep_proj = head.condition_embedder(latents.new_zeros(1))
            executed = Tokens(head.embed(actions, 1), timestep_proj, self._action_rotary(frames))
        history, action = (None, executed) if self.history_head is None else (executed, None)
        video_slots, action_slots = cache.observed_slots(f)
        room = (cache.new_room(f * L + count),) * 2
        for index, (layer, *kept) in enumerate(zip(self._layers_of_pass(), cache.current_frame(), cache.history())):
            if layer is self.blocks[-1]:
                new = layer.keys_values(video, history, action)
            else:
                kept = tuple(joined(parts) for parts in zip(*kept, room))
                video, history, action, new = layer(video, history, action, visible, kept, cache.text[index])
            cache.keep(index, video_slots, *(part[:, :, : f * L] for part in new))
            if actions is not None:
                cache.keep(index, action_slots, *(part[:, :, f * L :] for part in new))
        cache.advance(f)

    def world_context(self, cache: AIMCache, rgb: bool = True, value: bool = True) -> WorldContext:
        """Keys and values that RGB and value tokens of the next chunk attend to: V_x and V_m of eq. (10).

        Args:
            rgb, value: whether the pass has RGB tokens, and value tokens.
        """
        cache.check_started()
        frames = self.config.chunk_latent_frames
        rgb_tokens, value_tokens = (frames * cache.tokens_per_frame if present else 0 for present in (rgb, value))
        actions, world = cache.action_tokens, rgb_tokens + value_tokens
        past = actions + cache.observation_tokens
        visible = []
        if rgb:
            mask = cache.mask(actions=True, observations=True, after=rgb_tokens)
            visible.append(VisibleSet((slice(0, rgb_tokens),), (slice(0, past + rgb_tokens),), mask))
        if value:
            mask = cache.mask(actions=False, observations=True, after=world)
            visible.append(VisibleSet((slice(rgb_tokens, world),), (slice(actions, past + world),), mask))
        rotation = self._video_rotary(cache.next_frames(frames).to(cache.device), cache.grid)
        return WorldContext(cache.history(world), cache.text, visible, rotation.repeat(1, 1, rgb + value, 1, 1))

    def world_velocity(
        self, context: WorldContext, rgb: torch.Tensor, value: torch.Tensor, timestep: Timestep
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocities of the next chunk's RGB and value latents, (B, C, F, h, w) each, at `timestep` (B,) in [0, 1], or
        one of `condition_embedder.steps`.

        Both run through the video expert together, eq. (6). Value tokens attend to RGB tokens, never the reverse.
        """
        self._check_chunk(rgb, value)
        tokens, embedding = self._world_tokens(context, rgb, value, timestep)
        for layer, past, text in zip(self._layers_of_pass(), context.past, context.text):
            tokens = layer(tokens, None, None, context.visible, past, text).video
        frames, (height, width) = rgb.shape[2], rgb.shape[3:]
        velocity = self._video_velocity(tokens.hidden_states, embedding, 2 * frames, height, width)
        return velocity[:, :, :frames], velocity[:, :, frames:]

    def action_context(self, cache: AIMCache, rgb: torch.Tensor, value: torch.Tensor) -> ActionContext:
        """Keys and values that the chunk's actions attend to, V_a of eq. (10): the current frame, executed actions and
        the clean tokens of the chunk. A pass at t = 0 over the finished `rgb` and `value` computes the clean ones.
        """
        cache.check_started()
        self._check_chunk(rgb, value)
        config, L, visibility = self.config, cache.tokens_per_frame, Visibility(self.config.visibility)
        past = [list(pair) for pair in zip(cache.current_frame(), cache.action_history())]
        clean = 0
        has_rgb = visibility.action_needs_rgb
        if has_rgb or visibility.action_sees_value:
            finished = rgb if has_rgb else None, value if visibility.action_sees_value else None
            context = self.world_context(cache, has_rgb, visibility.action_sees_value)
            tokens, _ = self._world_tokens(context, *finished, rgb.new_zeros(1))
            unseen = config.chunk_latent_frames * L if has_rgb and not visibility.action_sees_rgb else 0
            for layer, seen, *inputs in zip(self._layers_of_pass(), past, context.past, context.text):
                if layer is self.blocks[-1]:
                    new = layer.keys_values(tokens, None, None)
                else:
                    tokens, _, _, new = layer(tokens, None, None, context.visible, *inputs)
                seen.append(tuple(part[:, :, unseen:] for part in new))
            clean = past[0][-1][0].shape[2]
        frames = cache.next_frames(config.chunk_latent_frames + config.action_lookahead_frames)
        room = (cache.new_room(config.action_horizon),) * 2
        return ActionContext(
            [tuple(joined(parts) for parts in zip(*layer_past, room)) for layer_past in past],
            cache.mask(actions=True, observations=False, before=L, after=clean + config.action_horizon),
            self._action_rotary(frames.to(cache.device)),
        )

    def action_velocity(
        self, context: ActionContext, actions: torch.Tensor, timestep: Timestep, reference: bool = False
    ) -> torch.Tensor:
        """Velocity of the next normalized actions, (B, config.action_horizon, action_dim).

        Args:
            timestep: in [0, 1], (B,), or (B, action_horizon) if some actions are committed; or one of
                `action_head.condition_embedder.steps`.
            reference: use the frozen `history_head` and `history` experts, the reference policy of stage 2.
        """
        head = self.history_head if reference else self.action_head
        embedding, timestep_proj = head.condition_embedder(timestep)
        tokens = Tokens(head.embed(actions, timestep_proj.shape[1]), timestep_proj, context.rotary_emb)
        for layer, past in zip(self._layers_of_pass(), context.past):
            history, action = (tokens, None) if reference else (None, tokens)
            output = layer(None, history, action, context.key_mask, past)
            tokens = output.history if reference else output.action
        return head.velocity(tokens.hidden_states, embedding)

    def _world_tokens(
        self, context: WorldContext, rgb: torch.Tensor | None, value: torch.Tensor | None, timestep: Timestep
    ) -> tuple[Tokens, torch.Tensor]:
        """Tokens [x | m], of which one may be absent, and their time embedding."""
        x = [] if rgb is None else [self._embed_video(rgb)]
        m = [] if value is None else [self._embed_video(value) + self.value_noise_token.weight]
        embedding, timestep_proj = self.condition_embedder(timestep)
        text_units = 0 if rgb is None else rgb.shape[2]
        return Tokens(torch.cat(x + m, dim=1), timestep_proj, context.rotary_emb, text_units), embedding

    def _check_chunk(self, rgb: torch.Tensor, value: torch.Tensor) -> None:
        if rgb.shape[2] != self.config.chunk_latent_frames or value.shape != rgb.shape:
            raise ValueError(
                f"RGB and value latents are {tuple(rgb.shape)} and {tuple(value.shape)}; expected the same shape with "
                f"{self.config.chunk_latent_frames} latent frames."
            )


def _split(
    segments: list[Segment], tokens: Tokens | None, embedding: torch.Tensor | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Hidden states and time embedding of each segment."""
    if not segments:
        return []
    units = [segment.timestep.shape[1] for segment in segments]
    return list(zip(tokens.hidden_states.split(units, dim=1), embedding.split(units, dim=1)))

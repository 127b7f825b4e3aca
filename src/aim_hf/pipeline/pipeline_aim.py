"""AIM as a diffusers pipeline: one call imagines a chunk, predicts where to act on it, and returns the actions.

    session = pipe.start("put the red block on the blue one")
    out = pipe(observation, session=session)
    while True:
        observations = execute(out.actions)              # one after every `pipe.actions_per_frame` actions
        pipe.append(session, observations, out.actions)  # the real observations replace the imagined ones
        out = pipe(session=session)

A call doesn't change its session: only `append` extends it, so calling again samples the same chunk again. A call runs
these public steps: `check_inputs`, `prepare_latents`, `denoise_world`, `denoise_actions`, `decode_actions`,
`decode_world` (`decode_frames` and `decode_value_maps` at once). Latents and noise stay in float32 for every dtype of
the model. Nothing here records gradients, nor makes tensors of `torch.inference_mode`, which a session may outlive.
"""

import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from transformers import PreTrainedModel

from ..model.cache import AIMCache
from ..model.modeling_aim import AIMForWorldAction
from ..model.processing_aim import AIMProcessor
from ..utils.checks import check_choice, check_kind, check_whole, shortened
from . import inputs
from .callbacks import step_callback
from .codec import CodecState, StreamDecoder, VideoCodec
from .history import encode_again, extend
from .loading import COMPONENTS, AIMLoaderMixin, check_components
from .pipeline_output import OUTPUT_TYPES, AIMPipelineOutput, as_output_type
from .recent import RecentFrames
from .sampling import OnStepEnd, denoise_actions, denoise_world, prepare_latents
from .sampling_config import SamplingConfig
from .session import AIMSession

logger = logging.getLogger(__name__)

# Concurrent calls would move an offloaded text encoder to the GPU and back at the same time.
_encoding_lock = threading.Lock()


class AIMPipeline(AIMLoaderMixin, DiffusionPipeline):
    r"""
    Imagines RGB, predicts value maps, and decodes actions from them: `start` a session, call the pipeline with it,
    execute the actions, `append` what really happened, and call again.

        session = pipe.start("put the red block on the blue one")
        out = pipe(observation, session=session)
        observations = execute(out.actions[0])  # one after every `pipe.actions_per_frame` actions
        pipe.append(session, observations, out.actions)
        out = pipe(session=session)

    Args:
        vae: the frozen VAE of RGB and value maps.
        text_encoder: the encoder of a T5-family model.
        processor: converts pictures, actions and instructions.
        model: the world-action model.
        scheduler: of RGB and value latents, which share one trajectory (eq. 6).
        action_scheduler: of actions.
        sampling_config: default sampling parameters of calls, a [`SamplingConfig`] or its fields; saved with the
            pipeline.
        action_noise_scale: of folders saved by aim-hf 0.1.0; now a field of `sampling_config`.

    Raises:
        ValueError: if the components don't fit together, or for unknown fields of `sampling_config`.
    """

    # `enable_model_cpu_offload` offloads only the text encoder, which is needed once per episode. Components may also
    # be placed individually, with `pipe.text_encoder.to(...)`.
    model_cpu_offload_seq = "text_encoder"
    _exclude_from_cpu_offload = ["vae", "model"]
    _callback_tensor_inputs = ["latents", "value_latents", "action_latents"]

    def __init__(
        self,
        vae: AutoencoderKLWan,
        text_encoder: PreTrainedModel,
        processor: AIMProcessor,
        model: AIMForWorldAction,
        scheduler: FlowMatchEulerDiscreteScheduler,
        action_scheduler: FlowMatchEulerDiscreteScheduler,
        sampling_config: SamplingConfig | Mapping[str, Any] | None = None,
        action_noise_scale: float | None = None,
    ):
        super().__init__()
        components = {
            "vae": vae,
            "text_encoder": text_encoder,
            "processor": processor,
            "model": model,
            "scheduler": scheduler,
            "action_scheduler": action_scheduler,
        }
        check_components(components)
        # Plain `DiffusionPipeline.from_pretrained` loads it in the dtype of the others.
        if vae.dtype in (torch.bfloat16, torch.float16):
            logger.warning(
                f"the VAE is in {vae.dtype}, in which a trained one may be far off, and actions with it; load the "
                'pipeline with dtype={"vae": torch.float32, "default": ...}, as AIMPipeline.from_pretrained does.'
            )
        sampling_config = _sampling_config(sampling_config)
        if action_noise_scale is not None:
            sampling_config = replace(sampling_config, action_noise_scale=action_noise_scale)
        self.register_modules(**components)
        self.sampling_config = sampling_config
        self._codec = VideoCodec(vae)
        config, temporal, spatial = model.config, vae.config.scale_factor_temporal, vae.config.scale_factor_spatial
        for field, number, source, other in (
            ("in_channels", config.in_channels, "vae.config.z_dim", vae.config.z_dim),
            ("text_dim", config.text_dim, "text_encoder.config.d_model", text_encoder.config.d_model),
            ("action_dim", config.action_dim, "processor.action_dim", processor.action_dim),
        ):
            if number != other:
                raise ValueError(f"model.config.{field} is {number} and {source} {other}; they must agree.")
        if config.actions_per_latent_frame % temporal:
            raise ValueError(
                f"model.config.actions_per_latent_frame is {config.actions_per_latent_frame}; it must be a multiple "
                f"of the {temporal} RGB frames of a latent frame, so that each of them follows a whole action."
            )
        cell = [spatial * patch for patch in config.patch_size[1:]]
        if any(size % n for size, n in zip(processor.canvas_size, cell, strict=True)):
            raise ValueError(
                f"canvas_size is {processor.canvas_size}; it must be divisible by {cell}, the pixels of one token."
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in COMPONENTS and value is not None:  # None frees one that is no longer needed
            check_components({name: value})
        if name in ("model", "vae", "processor"):
            self._id = uuid.uuid4().hex  # identifies the sessions that it starts, whose history is of these parts
        super().__setattr__(name, value)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model."""
        return self.model.dtype

    @property
    def sampling_config(self) -> SamplingConfig:
        """Default sampling parameters of calls."""
        return SamplingConfig(**self.config.sampling_config)

    @sampling_config.setter
    def sampling_config(self, sampling_config: SamplingConfig) -> None:
        check_kind("sampling_config", sampling_config, SamplingConfig)
        self.register_to_config(sampling_config=asdict(sampling_config), action_noise_scale=None)

    @property
    def codec(self) -> VideoCodec:
        """Codec of the pipeline's VAE."""
        if self._codec.vae is not self.vae:  # the VAE was replaced
            self._codec = VideoCodec(self.vae)
        return self._codec

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of a latent frame, in cells."""
        height, width = (size // self.codec.spatial_factor for size in self.processor.canvas_size)
        return height, width

    @property
    def fps(self) -> float | None:
        """Control steps per second at which actions are executed; None if unknown."""
        return self.processor.fps

    @property
    def frames_per_chunk(self) -> int:
        """RGB frames in one chunk, both imagined and observed."""
        return self.model.config.chunk_latent_frames * self.vae.config.scale_factor_temporal

    @property
    def actions_per_chunk(self) -> int:
        return self.model.config.actions_per_chunk

    @property
    def actions_per_frame(self) -> int:
        """Control steps between two RGB frames."""
        return self.model.config.actions_per_latent_frame // self.vae.config.scale_factor_temporal

    @torch.no_grad()
    def encode_prompt(self, instruction: str | Sequence[str], allow_empty: bool = False) -> torch.Tensor:
        """Text features (B, max_text_length, text_dim), zero beyond each prompt, as in Wan's training."""
        tokens = self.processor.tokenize(instruction, allow_empty)
        with _encoding_lock:
            # Offloaded layer by layer, the text encoder's own weights are on the meta device.
            device = self.text_encoder.device
            mask = tokens.attention_mask.to(self._execution_device if device.type == "meta" else device)
            features = self.text_encoder(tokens.input_ids.to(mask.device), attention_mask=mask).last_hidden_state
            self.maybe_free_model_hooks()
        return features.masked_fill(mask[..., None].to(features.device) == 0, 0)

    @torch.inference_mode(False)
    @torch.no_grad()
    def start(
        self,
        instruction: str | Sequence[str],
        batch_size: int | None = None,
        negative_prompt: str | None = None,
    ) -> AIMSession:
        """Starts a batch of episodes, and encodes their instructions.

        Args:
            instruction: one for all rows, or a list with one per row.
            batch_size: number of rows; the number of instructions if not given.
            negative_prompt: prompt that `guidance_scale` leads away from, usually "". A session with a negative prompt
                keeps a second history; with guidance, denoising RGB and value maps costs twice as much.

        Raises:
            ValueError: for an empty or invalid instruction, or a list of another length than `batch_size`.
        """
        if batch_size is not None:
            check_whole("batch_size", batch_size)
        if not isinstance(negative_prompt, str | None):
            raise ValueError(f'negative_prompt is {negative_prompt!r}; expected words, "" for none of them, or None.')
        prompt_embeds = self.encode_prompt(instruction)
        if isinstance(instruction, str):
            prompt_embeds = prompt_embeds.expand(batch_size or 1, -1, -1)
        elif batch_size not in (None, len(instruction)):
            raise ValueError(f"{len(instruction)} instructions for batch_size {batch_size}; give one for each row.")
        rows, negative_cache = len(prompt_embeds), None
        if negative_prompt is not None:
            negative_prompt_embeds = self.encode_prompt(negative_prompt, allow_empty=True)
            negative_cache = self._new_cache(negative_prompt_embeds.expand(rows, -1, -1))
        return AIMSession(
            pipeline_id=self._id,
            cache=self._new_cache(prompt_embeds),
            negative_cache=negative_cache,
            initial_pose=torch.zeros(rows, 16, dtype=torch.float64, device="cpu")
            if self.processor.action_space == "ee"
            else None,
            encoders=[self.codec.encoder_state() for _ in range(rows)],
            decoders=[StreamDecoder(self.codec.decoder_state()) for _ in range(rows)],
            recent=[None] * rows,
        )

    def _new_cache(self, prompt_embeds: torch.Tensor) -> AIMCache:
        cache = self.model.new_cache(len(prompt_embeds), *self.latent_size)
        self.model.set_text(cache, prompt_embeds.to(self.model.device, self.model.dtype))
        return cache

    @torch.inference_mode(False)
    @torch.no_grad()
    def append(
        self,
        session: AIMSession,
        observations: inputs.Observation | Sequence[inputs.Observation | Sequence[inputs.Observation]],
        executed_actions: np.ndarray | torch.Tensor | None = None,
        rows: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Appends real observations and executed actions to a session. Invalid input is refused before anything
        changes.

        Args:
            observations: in RoboTwin's layout, in time order, one list per row; for a single row the outer list may be
                left out. First one observation before any action; then one after every `actions_per_frame` executed
                actions: `frames_per_chunk` of them after a whole chunk, or fewer, equally many in all rows, to plan
                again before it is over.
            executed_actions: (B, n, action_dim), or without B for a single row: the actions executed since the last
                observation, in physical units. None with first observations.
            rows: rows to append to, all if not given; the other arguments then have these rows only. First and later
                observations can't be appended in the same call.

        Returns:
            latents of the first frame, or of the last `chunk_latent_frames` latent frames, (rows, C, f, h, w). After a
            part of a chunk, these begin with frames that had been appended before.

        Raises:
            ValueError: for another pipeline's session, a wrong number of rows, observations or actions, and input that
                the processor refuses.
        """
        self._check_session(session)
        index = session.row_index(rows)
        first = session.cache.frames[index] == 0
        if first.any() != first.all():
            raise ValueError(
                f"rows {index[first].tolist()} wait for their first observation, and rows {index[~first].tolist()} "
                "for later ones; append to them in separate calls, by `rows`."
            )
        first = bool(first.all())
        observations = inputs.observation_rows(observations, len(index))
        count = self._check_counts(index.tolist(), observations, first)
        canvases = inputs.observed_canvases(self.processor, index.tolist(), observations)
        if first:
            if executed_actions is not None:
                raise ValueError("executed_actions came with the first observation; nothing was executed before it.")
            poses = None
            if session.initial_pose is not None:
                poses = torch.stack([self.processor.initial_pose(of_row[0]) for of_row in observations])
            no_actions = torch.zeros(0, self.processor.action_dim, dtype=torch.float64, device="cpu")
            recent = [RecentFrames(of_row, no_actions) for of_row in canvases]
            latents = extend(self.model, self.codec, session, index, self.processor.canvas_to_pixels(canvases), None)
            if poses is not None:
                session.initial_pose[index] = poses
        else:
            poses = None if session.initial_pose is None else session.initial_pose[index]
            executed = self.actions_per_frame * count
            actions = inputs.executed_actions(self.processor, executed_actions, poses, len(index), executed)
            limits = self.frames_per_chunk, self.model.config.history_chunks
            recent = [
                session.recent[row].extended(of_row, actions_of_row, *limits)
                for row, of_row, actions_of_row in zip(index.tolist(), canvases, actions, strict=True)
            ]
            if count == self.frames_per_chunk:
                pixels = self.processor.canvas_to_pixels(canvases)
                latents = extend(self.model, self.codec, session, index, pixels, actions)
            else:
                latents = encode_again(self.model, self.codec, self.processor, session, index, recent)
        for row, frames in zip(index.tolist(), recent, strict=True):
            session.recent[row] = frames
        return latents

    def _check_counts(self, rows: list[int], observations: list[list[inputs.Observation]], first: bool) -> int:
        """The number of observations of each row. Raises ValueError if it can't be appended."""
        most, count = (1 if first else self.frames_per_chunk), len(observations[0])
        for row, of_row in zip(rows, observations, strict=True):
            if not 1 <= len(of_row) <= most or len(of_row) != count:
                raise ValueError(
                    f"row {row} has {len(of_row)} observations; expected 1 before any action, and then one after "
                    f"every {self.actions_per_frame} actions, at most {self.frames_per_chunk} at a time, and equally "
                    "many in all rows."
                )
        return count

    @torch.inference_mode(False)
    @torch.no_grad()
    def reset(self, session: AIMSession, rows: int | Sequence[int], instruction: str | Sequence[str]) -> None:
        """Starts new episodes in `rows` of a session; the other rows continue. Append a first observation to `rows`
        next.

        Args:
            rows: index or indices.
            instruction: one for all of these rows, or a list with one per row.

        Raises:
            ValueError: for another pipeline's session, an empty instruction, a wrong number of instructions, or rows
                that the session doesn't have.
        """
        self._check_session(session)
        index = session.row_index(rows)
        prompt_embeds = self.encode_prompt(instruction)
        if isinstance(instruction, str):
            prompt_embeds = prompt_embeds.expand(len(index), -1, -1)
        elif len(instruction) != len(index):
            raise ValueError(f"{len(instruction)} instructions for {len(index)} rows; give one for each, or one.")
        for cache in session.caches:
            cache.reset(index)
        self.model.set_text(session.cache, prompt_embeds.to(self.model.device, self.model.dtype), rows=index)
        for row in index.tolist():
            session.encoders[row] = self.codec.encoder_state()
            session.decoders[row] = StreamDecoder(self.codec.decoder_state())
            session.recent[row] = None

    def _check_session(self, session: AIMSession) -> None:
        if not isinstance(session, AIMSession):
            raise ValueError(
                f"session is {shortened(session, 40)}; start one with pipe.start(instruction) and pass it."
            )
        if session.pipeline_id != self._id:
            raise ValueError(
                "session belongs to another pipeline, or to a model, VAE or processor that this one no longer has; "
                "start one with this one."
            )
        of_session, of_model = (f"{of.dtype} on {of.device}" for of in (session.cache, self.model))
        if of_session != of_model:
            raise ValueError(f"session is of {of_session}, and the model of {of_model}; start another one.")

    def _check_guidance(self, session: AIMSession, sampling: SamplingConfig) -> None:
        if sampling.guidance_scale != 1 and session.negative_cache is None:
            raise ValueError(
                f"guidance_scale is {sampling.guidance_scale}, but the session has nothing to lead away from; start "
                'it with negative_prompt="".'
            )

    def check_inputs(
        self,
        observation: Any,
        session: AIMSession | None,
        sampling: SamplingConfig,
        committed_actions: np.ndarray | torch.Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raises ValueError, naming it, for an invalid argument of a call."""
        self._check_session(session)
        waiting = session.waiting
        if observation is None and len(waiting) == session.batch_size:
            raise ValueError("observation is missing; a session's first call needs the one before any action.")
        if observation is None and waiting:
            raise ValueError(
                f"rows {waiting} have no observation yet; call pipe.append(session, ..., rows={waiting})."
            )
        if observation is not None and len(waiting) < session.batch_size:
            raise ValueError("this session has its first observation; give later ones to pipe.append.")
        self._check_guidance(session, sampling)
        if committed_actions is not None and observation is not None:
            raise ValueError("committed_actions came with the first observation; nothing is executed before it.")
        inputs.check_generator(generator, session.batch_size, self.model.device)
        check_choice("output_type", output_type, OUTPUT_TYPES)
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ValueError(f"callback_on_step_end is {callback_on_step_end!r}; expected a function.")
        wanted = callback_on_step_end_tensor_inputs
        if not isinstance(wanted, list | tuple) or not all(name in self._callback_tensor_inputs for name in wanted):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs are {wanted!r}; expected a list of some of "
                f"{self._callback_tensor_inputs}."
            )

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self,
        observation: inputs.Observation | Sequence[inputs.Observation] | None = None,
        session: AIMSession | None = None,
        sampling_config: SamplingConfig | None = None,
        value_maps: Mapping[str, np.ndarray] | None = None,
        committed_actions: np.ndarray | torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "np",
        decode_frames: bool = True,
        callback_on_step_end: Callable[["AIMPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
        **sampling: Any,
    ) -> AIMPipelineOutput | tuple:
        r"""Samples the session's next chunk: RGB, value maps and actions.

        Args:
            observation: the first one of the session, a list with one per row (or a single one, for one row); None
                later.
            session: from `start`.
            sampling_config: sampling parameters; the pipeline's if not given.
            value_maps: camera -> (B, T, H, W) in [0, 1], maps to decode the actions from instead of the predicted
                ones. This separates errors of the maps from errors of the actions.
            committed_actions: (B, d, action_dim), or without B for a single row, in physical units: the actions that
                the robot executes during the inference delay of this call. The returned actions start with them. See
                `lookahead_actions` of the output; needs a model that was trained with committed actions.
            generator: of the noise; with a list of one per row, a row's result doesn't depend on the other rows.
            output_type: `"np"`, `"pt"`, `"pil"` or `"latent"`; see [`AIMPipelineOutput`]. `"latent"` decodes no
                pictures.
            decode_frames: whether to decode the imagined RGB, which the actions don't need.
            callback_on_step_end: called after each denoising step as `callback(pipe, step, timestep, tensors)`; action
                steps are counted after the world's. It returns a dict, whose tensors replace the current ones.
            callback_on_step_end_tensor_inputs: its tensors, of `latents`, `value_latents` (B, C, F, h, w) and
                `action_latents` (B, action_horizon, action_dim).
            return_dict: False for a plain tuple (frames, value_maps, actions, lookahead_actions).
            sampling: fields of [`SamplingConfig`] that this call changes, such as `num_inference_steps=3`.

        Raises:
            ValueError: for invalid inputs, which leave the session unchanged, and invalid results of a callback.
            RuntimeError: if actions are not finite, naming their rows.
        """
        # 1. Check inputs.
        config = _changed(self.sampling_config if sampling_config is None else sampling_config, sampling)
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        callback = callback_on_step_end, callback_on_step_end_tensor_inputs
        self.check_inputs(observation, session, config, committed_actions, generator, output_type, *callback)
        value_pixels = None
        if value_maps is not None:
            count = session.batch_size, self.frames_per_chunk
            value_pixels = inputs.value_map_pixels(self.processor, value_maps, *count)
        committed_actions, committed = self._committed(session, committed_actions)

        # 2. Append the first observation to the session.
        if observation is not None:
            self.append(session, observation)

        # 3. Prepare latents, eq. (5).
        latents = self.prepare_latents(session.batch_size, config, generator)
        tensors = dict(zip(self._callback_tensor_inputs, latents, strict=True))

        # 4. Denoise RGB and value maps, eq. (6), then actions from the finished value map, eq. (10).
        with self.progress_bar(total=config.world_steps + config.num_action_inference_steps) as progress_bar:
            on_step_end = step_callback(self, *callback, tensors, progress_bar)
            tensors["latents"], tensors["value_latents"] = self.denoise_world(
                session, tensors["latents"], tensors["value_latents"], config, on_step_end
            )
            if value_pixels is not None:
                tensors["value_latents"] = self.codec.encode_value_maps(value_pixels).to(tensors["latents"])
            self.denoise_actions(
                session, **tensors, sampling_config=config, committed_actions=committed, on_step_end=on_step_end
            )

        # 5. Decode.
        actions = self.decode_actions(session, tensors["action_latents"])
        if committed is not None:
            actions[:, : committed.shape[1]] = committed_actions  # as they were given, to the last bit
        frames, value_maps = (tensors["latents"] if decode_frames else None), tensors["value_latents"]
        if output_type != "latent":
            if decode_frames:
                frames, value_maps = self.decode_world(session, frames, value_maps)
                frames = as_output_type(frames, output_type)
            else:
                value_maps = self.decode_value_maps(value_maps)
            value_maps = as_output_type(value_maps, output_type)
        actions = actions.numpy() if output_type in ("np", "pil") else actions
        ahead = self.model.config.action_lookahead_frames
        lookahead_actions = actions[:, self.actions_per_chunk :] if ahead else None
        output = AIMPipelineOutput(frames, value_maps, actions[:, : self.actions_per_chunk], lookahead_actions)
        return output if return_dict else tuple(getattr(output, field.name) for field in fields(output))

    def prepare_latents(
        self,
        batch_size: int,
        sampling_config: SamplingConfig | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noise of a chunk, eq. (5): of RGB and value latents, (B, C, F, h, w) each, and of actions, (B,
        action_horizon, action_dim), multiplied by `action_noise_scale`."""
        config = sampling_config or self.sampling_config
        return prepare_latents(
            self.model.config, config, batch_size, self.latent_size, generator, device=self.model.device
        )

    def denoise_world(
        self,
        session: AIMSession,
        latents: torch.Tensor,
        value_latents: torch.Tensor,
        sampling_config: SamplingConfig | None = None,
        on_step_end: OnStepEnd | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """RGB and value latents (B, C, F, h, w) of the session's next chunk, from noise, eq. (6). `on_step_end` is
        called after each step with its index, timestep and latents by name, and returns the latents to use."""
        config = sampling_config or self.sampling_config
        self._check_guidance(session, config)
        return denoise_world(
            self.model,
            session.cache,
            latents,
            value_latents,
            self.scheduler,
            config,
            unguided_cache=session.negative_cache,
            on_step_end=on_step_end,
        )

    def denoise_actions(
        self,
        session: AIMSession,
        latents: torch.Tensor,
        value_latents: torch.Tensor,
        action_latents: torch.Tensor,
        sampling_config: SamplingConfig | None = None,
        committed_actions: torch.Tensor | None = None,
        on_step_end: OnStepEnd | None = None,
    ) -> torch.Tensor:
        """Normalized actions (B, action_horizon, action_dim) from noise and the denoised RGB and value latents, eq.
        (10). They start with `committed_actions` (B, d, action_dim), normalized, if given."""
        return denoise_actions(
            self.model,
            session.cache,
            latents,
            value_latents,
            action_latents,
            self.action_scheduler,
            sampling_config or self.sampling_config,
            committed_actions=committed_actions,
            on_step_end=on_step_end,
        )

    def decode_world(
        self, session: AIMSession, latents: torch.Tensor, value_latents: torch.Tensor
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """RGB and value maps of a chunk, as `decode_frames` and `decode_value_maps` give them, in one batch of the
        VAE."""
        decoders = self._frame_decoders(session) + [self.codec.value_map_decoder(latents) for _ in value_latents]
        pixels = torch.stack(self.codec.decode_streams(torch.cat([latents, value_latents]), decoders))
        frames, value_maps = pixels.chunk(2)
        return self._cameras(frames), self._value_maps(value_maps)

    def decode_frames(self, session: AIMSession, latents: torch.Tensor) -> dict[str, np.ndarray]:
        """Camera -> RGB (B, T, H, W, 3) in [0, 1] of imagined latents, decoded as continuation of the session's
        frames."""
        return self._cameras(torch.stack(self.codec.decode_streams(latents, self._frame_decoders(session))))

    def decode_value_maps(self, value_latents: torch.Tensor) -> dict[str, np.ndarray]:
        """Camera -> value maps (B, T, H, W) in [0, 1]."""
        return self._value_maps(self.codec.decode_value_maps(value_latents))

    def decode_actions(self, session: AIMSession, action_latents: torch.Tensor) -> torch.Tensor:
        """Absolute actions in physical units, float32 on the CPU, with the shape of `action_latents`.

        Raises:
            RuntimeError: if some are not finite, naming their rows.
        """
        if lost := _not_finite_rows(action_latents):
            raise RuntimeError(
                f"the actions of rows {lost} are not finite: their inputs are out of the network's range, or the "
                f"weights are damaged, or {self.dtype} is too coarse for them."
            )
        return self.processor.unnormalize_actions(action_latents.cpu().double(), session.initial_pose).float()

    def _frame_decoders(self, session: AIMSession) -> list[CodecState]:
        # The session keeps decoders that have decoded its real frames; this only makes the next call cheaper.
        session.decoders = self.codec.caught_up(session.decoders)
        return [decoder.state.fork() for decoder in session.decoders]

    def _committed(
        self, session: AIMSession, actions: np.ndarray | torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Committed actions in physical units, and normalized."""
        if actions is None:
            return None, None
        horizon = self.model.config.action_horizon
        actions = inputs.committed_actions(self.processor, actions, session.batch_size, horizon)
        return actions, self.processor.normalize_executed("committed_actions", actions, session.initial_pose)

    def _cameras(self, pixels: torch.Tensor) -> dict[str, np.ndarray]:
        if lost := _not_finite_rows(pixels):
            raise RuntimeError(
                f"the pictures of rows {lost} are not finite: their latents aren't either, or the VAE's weights are "
                f"damaged, or {self.vae.dtype} is too coarse for them."
            )
        return self.processor.unpack_canvas(self.processor.pixels_to_canvas(pixels))

    def _value_maps(self, pixels: torch.Tensor) -> dict[str, np.ndarray]:
        return {name: self.processor.rgb_to_value(rgb) for name, rgb in self._cameras(pixels).items()}


def _not_finite_rows(tensor: torch.Tensor) -> list[int]:
    return (~tensor.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()


def _sampling_config(given: SamplingConfig | Mapping[str, Any] | None) -> SamplingConfig:
    """`given`, or the one with its fields. Raises ValueError for another type and for unknown fields, such as those of
    a newer version."""
    if isinstance(given, SamplingConfig):
        return given
    given = {} if given is None else given
    check_kind("sampling_config", given, Mapping)
    known = [field.name for field in fields(SamplingConfig)]
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"sampling_config has {unknown}; expected some of {', '.join(known)}.")
    return SamplingConfig(**given)


def _changed(config: SamplingConfig, changes: Mapping[str, Any]) -> SamplingConfig:
    """`config` with `changes`. Raises TypeError for unknown fields, as Python does for unknown arguments."""
    check_kind("sampling_config", config, SamplingConfig)
    known = [field.name for field in fields(SamplingConfig)]
    if unknown := sorted(changes.keys() - set(known)):
        raise TypeError(
            f"AIMPipeline got unexpected arguments {unknown}; SamplingConfig has {', '.join(known)}. An instruction "
            "goes to pipe.start, a seed to generator=torch.Generator().manual_seed(seed)."
        )
    return replace(config, **changes)

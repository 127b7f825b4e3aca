"""AIM as a diffusers pipeline: one call imagines a chunk, predicts where to act on it, and returns the actions.

    session = pipe.start("put the red block on the blue one")
    out = pipe(observation, session=session)
    while True:
        observations = execute(out.actions)          # one after every `pipe.actions_per_frame` actions
        session.append(observations, out.actions)    # what really happened replaces what was imagined
        out = pipe(session=session)

A call leaves its session as it was: only `append` moves it on, so calling again gives another sample of the same
chunk. Latents and noise stay in float32 whatever the model's dtype, and nothing here records gradients.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from transformers import AutoModelForTextEncoding, AutoTokenizer, PreTrainedModel, ProcessorMixin

from .checkpoint import (
    DOWNLOAD_KWARGS,
    as_dtype,
    check_all_loaded,
    component_tensors,
    local_folder,
    stored_tensors,
)
from .checks import check_whole
from .files import written_folder
from .modeling_aim import AIMForWorldAction
from .processing_aim import AIMProcessor, robotwin_processor
from .sampling import SamplingConfig, sample_chunk
from .session import AIMSession, as_actions
from .versions import PIPELINE_DTYPE

OUTPUT_TYPES = ("np", "pt", "pil", "latent")
# What each component is at least; a model may be wrapped, by PEFT or torch.compile.
COMPONENTS = {
    "vae": torch.nn.Module,
    "text_encoder": torch.nn.Module,
    "processor": ProcessorMixin,
    "model": torch.nn.Module,
    "scheduler": SchedulerMixin,
    "action_scheduler": SchedulerMixin,
}
# An offloaded text encoder goes to the GPU and back with each call.
_encoding_lock = threading.Lock()


@dataclass
class AIMPipelineOutput(BaseOutput):
    """
    What AIM imagines and does in one chunk, for B rows, T = `pipe.frames_per_chunk` frames. Moment k lies after action
    (k + 1) * `pipe.actions_per_frame` of the chunk.

    frames: camera -> imagined RGB in [0, 1]: `np` (B, T, H, W, 3), `pt` (B, T, 3, H, W), `pil` a list of T pictures a
        row; `latent`: one tensor, the normalized latents (B, C, F, h, w); None with `decode_frames=False`.
    value_maps: camera -> scalars in [0, 1]: (B, T, H, W), `pil` a list of T gray pictures a row; `latent`: the
        normalized latents. It is the map that the actions were decoded from.
    actions: (B, `pipe.actions_per_chunk`, action_dim) in physical units, absolute; an array with `np` and `pil`.
    lookahead_actions: (B, action_lookahead_frames * actions_per_latent_frame, action_dim), what is likely to follow;
        None for a model without lookahead. For real-time chunking: to be executed while the next chunk is computed.
    """

    frames: dict[str, Any] | torch.Tensor | None
    value_maps: dict[str, Any] | torch.Tensor
    actions: np.ndarray | torch.Tensor
    lookahead_actions: np.ndarray | torch.Tensor | None = None


class AIMPipeline(DiffusionPipeline):
    r"""
    Imagines RGB, predicts value maps, and decodes actions from them.

    Args:
        vae: the frozen codec of RGB and value maps.
        text_encoder: the encoder of a T5-family model.
        processor: packs pictures, actions and words.
        model: the world-action model.
        scheduler: of RGB and value latents, which share one trajectory (eq. 6).
        action_scheduler: of actions.
        sampling_config: how chunks are sampled where a call isn't told, a [`SamplingConfig`] or its fields; saved with
            the pipeline.
        action_noise_scale: in folders of aim-hf 0.1.0, what is a field of `sampling_config` now.

    Raises:
        ValueError: if the components don't fit together.
    """

    # `enable_model_cpu_offload` keeps the text encoder, needed once an episode, off the GPU. Each component may also
    # be placed by itself, with `pipe.text_encoder.to(...)`.
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
        if not isinstance(sampling_config, SamplingConfig):
            sampling_config = SamplingConfig(**(sampling_config or {}))
        if action_noise_scale is not None:
            sampling_config = replace(sampling_config, action_noise_scale=action_noise_scale)
        self.register_modules(**components)
        self.sampling_config = sampling_config
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

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        subfolder: str | None = None,
        dtype: torch.dtype | str | Mapping[str, torch.dtype | str] | None = None,
        **kwargs,
    ) -> "AIMPipeline":
        """Loads a pipeline folder or a Hub repository, whole or not at all.

        Args:
            pretrained_model_name_or_path: folder or repo id.
            subfolder: where in it the pipeline lies, if it holds several.
            dtype: of the model and the text encoder, as it is or by its name; as stored if not given or "auto". The
                VAE stays in float32, as in Wan, unless a dict names it: `{"vae": torch.bfloat16, "default": ...}`.
            kwargs: as in `DiffusionPipeline.from_pretrained`: `revision`, `token`, `cache_dir`, `local_files_only`,
                components to use instead of the stored ones ...

        Raises:
            OSError: for a damaged, half-written or pickled file, which it names, or a repository that can't be read.
            ValueError: for tensors that are missing or unknown, which it names, components that don't fit, or an
                unknown dtype.
        """
        check_components({name: kwargs[name] for name in COMPONENTS if name in kwargs})
        dtypes = _dtypes(kwargs.pop("torch_dtype", None) if dtype is None else dtype)
        download_kwargs = {name: kwargs.pop(name) for name in DOWNLOAD_KWARGS if name in kwargs}
        folder = local_folder(pretrained_model_name_or_path, subfolder, **download_kwargs) / (subfolder or "")
        stored = stored_tensors(folder, given=kwargs)
        pipe = super().from_pretrained(str(folder), **(kwargs | dtypes | {"use_safetensors": True}))
        for name, tensors in stored.items():
            check_all_loaded(getattr(pipe, name), tensors, source=str(folder / name))
        pipe.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipe

    @classmethod
    def from_wan(cls, name_or_path: str | os.PathLike, **kwargs) -> "AIMPipeline":
        """A new AIM on the weights of a Wan2.2 pipeline: its VAE and text encoder as they are, its transformer as the
        video stream (see [`AIMForWorldAction.from_wan`]). To be trained: its action head and value maps are new.

        Args:
            name_or_path: folder or repo id in diffusers' layout, such as `Wan-AI/Wan2.2-TI2V-5B-Diffusers`.
            dtype: of the model and the text encoder, as it is or by its name; as stored if not given or "auto". The
                VAE stays in float32, as in Wan.
            processor: the [`AIMProcessor`], with the text encoder's tokenizer; for RoboTwin's robots if not given.
            kwargs: fields of [`AIMConfig`] that the video model doesn't decide, and the arguments that say what to
                download (`revision`, `token` ...).

        Raises:
            OSError: for a damaged or missing file, which it names.
            ValueError: for tensors that are missing, unknown or of another shape, or components that don't fit.
        """
        return cls._from_video_model(AIMForWorldAction.from_wan, name_or_path, **kwargs)

    @classmethod
    def from_lingbot_va(cls, name_or_path: str | os.PathLike, **kwargs) -> "AIMPipeline":
        """As `from_wan`, from the folders of LingBot-VA; see [`AIMForWorldAction.from_lingbot_va`]."""
        return cls._from_video_model(AIMForWorldAction.from_lingbot_va, name_or_path, **kwargs)

    @classmethod
    def _from_video_model(cls, load_model, name_or_path, dtype=None, processor=None, **kwargs):
        download = {name: kwargs.pop(name) for name in DOWNLOAD_KWARGS if name in kwargs}
        folder = local_folder(name_or_path, **download)
        if processor is None:
            processor = robotwin_processor(AutoTokenizer.from_pretrained(folder / "tokenizer"))
        kwargs.setdefault("action_dim", processor.action_dim)
        vae, text_encoder = load_vae(folder), load_text_encoder(folder, dtype)
        model = load_model(folder, dtype=dtype, **kwargs)
        return cls(
            vae=vae,
            text_encoder=text_encoder,
            processor=processor,
            model=model,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=model.config.video_shift),
            action_scheduler=FlowMatchEulerDiscreteScheduler(shift=model.config.action_shift),
        )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """As `DiffusionPipeline.save_pretrained`, but the folder is there only once it is whole, and files of weights
        have at most 5 GB (`max_shard_size`). Adds a `pipeline.py`, by which plain
        `DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)` finds this
        class.

        Raises:
            ValueError: for `safe_serialization=False`: nothing here reads pickles.
            OSError: if the folder can't be written.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization is False; expected True: AIM is saved as safetensors alone.")
        kwargs.setdefault("max_shard_size", "5GB")
        if push_to_hub:
            kwargs.setdefault("repo_id", Path(save_directory).resolve().name)
        with written_folder(save_directory) as folder:
            (folder / "pipeline.py").write_text(f"from {__name__} import {type(self).__name__}  # noqa: F401\n")
            super().save_pretrained(str(folder), push_to_hub=push_to_hub, **kwargs)

    def to(self, *args, dtype: torch.dtype | str | None = None, **kwargs) -> "AIMPipeline":
        """As `DiffusionPipeline.to`, but the VAE keeps its dtype, which only `pipe.vae.to(dtype)` changes.

        Raises:
            ValueError: for an unknown dtype.
        """
        *device, last = args or (None,)
        if device or isinstance(last, torch.dtype):
            if dtype is not None:
                raise ValueError(f"dtype is given twice, as {last} and {dtype}; give it once.")
            args, dtype = device, last
        if dtype is not None:
            dtype = as_dtype(dtype)
            for component in (self.text_encoder, self.model):
                component.to(dtype)
        return super().to(*args, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """The model's."""
        return self.model.dtype

    @property
    def sampling_config(self) -> SamplingConfig:
        """How chunks are sampled where a call isn't told."""
        return SamplingConfig(**self.config.sampling_config)

    @sampling_config.setter
    def sampling_config(self, sampling_config: SamplingConfig) -> None:
        self.register_to_config(sampling_config=asdict(sampling_config), action_noise_scale=None)

    @property
    def fps(self) -> float | None:
        """Control steps a second that actions are to be executed at; None if unknown."""
        return self.processor.fps

    @property
    def frames_per_chunk(self) -> int:
        """RGB frames that one chunk imagines, and that are appended after it."""
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
        """Text features (B, max_text_length, text_dim), zero beyond each prompt, as Wan was trained with."""
        tokens = self.processor.tokenize(instruction, allow_empty)
        with _encoding_lock:
            mask = tokens.attention_mask.to(self.text_encoder.device)
            features = self.text_encoder(tokens.input_ids.to(mask.device), attention_mask=mask).last_hidden_state
            self.maybe_free_model_hooks()
        return features.masked_fill(mask[..., None].to(features.device) == 0, 0)

    @torch.no_grad()
    def start(
        self,
        instruction: str | Sequence[str],
        batch_size: int | None = None,
        negative_prompt: str | None = None,
    ) -> AIMSession:
        """Starts a batch of episodes; the instruction is encoded here, once.

        Args:
            instruction: one for all rows, or a list of one for each.
            batch_size: number of rows; taken from `instruction` if not given.
            negative_prompt: what `guidance_scale` leads away from, usually "", no instruction. A session with one
                keeps a second history, and its calls with guidance cost twice as much for the world.

        Raises:
            ValueError: for an empty instruction or what is none, or a list of another length than `batch_size`.
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
        negative_prompt_embeds = None
        if negative_prompt is not None:
            negative_prompt_embeds = self.encode_prompt(negative_prompt, allow_empty=True)
            negative_prompt_embeds = negative_prompt_embeds.expand(len(prompt_embeds), -1, -1)
        return AIMSession(self, prompt_embeds, negative_prompt_embeds)

    def check_inputs(
        self,
        observation: Any,
        session: AIMSession | None,
        sampling: SamplingConfig,
        value_maps: Mapping[str, np.ndarray] | None,
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raises ValueError for arguments of a call, by their names, that don't fit."""
        if not isinstance(session, AIMSession):
            raise ValueError(f"session is {session!r}; start one with pipe.start(instruction) and pass it.")
        if session.pipe is not self:
            raise ValueError("session belongs to another pipeline; start one with this one.")
        waiting = session.waiting
        if observation is None and len(waiting) == session.batch_size:
            raise ValueError("observation is missing; a session's first call needs the one before any action.")
        if observation is None and waiting:
            raise ValueError(f"rows {waiting} have no observation yet; call session.append(..., rows={waiting}).")
        if observation is not None and len(waiting) < session.batch_size:
            raise ValueError("this session has its first observation; give later ones to session.append.")
        if sampling.guidance_scale != 1 and session.negative_cache is None:
            raise ValueError(
                f"guidance_scale is {sampling.guidance_scale}, but the session has nothing to lead away from; start "
                'it with negative_prompt="".'
            )
        if value_maps is not None and not isinstance(value_maps, Mapping):
            raise ValueError(f"value_maps are {type(value_maps).__name__}; expected a dict, camera -> (B, T, H, W).")
        generators = generator if isinstance(generator, list) else [generator] * session.batch_size
        if len(generators) != session.batch_size:
            raise ValueError(f"{len(generators)} generators for {session.batch_size} rows; give one for each row.")
        for one in generators if generator is not None else []:
            if not isinstance(one, torch.Generator) or one.device.type not in ("cpu", self.model.device.type):
                raise ValueError(
                    f"generator is {one!r}; expected a torch.Generator of the CPU or of {self.model.device}, or a "
                    "list of one for each row."
                )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; expected one of {OUTPUT_TYPES}.")
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ValueError(f"callback_on_step_end is {callback_on_step_end!r}; expected a function.")
        wanted = callback_on_step_end_tensor_inputs
        if not isinstance(wanted, list | tuple) or not all(name in self._callback_tensor_inputs for name in wanted):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs are {wanted!r}; expected a list of some of "
                f"{self._callback_tensor_inputs}."
            )

    @torch.no_grad()
    def __call__(
        self,
        observation=None,
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
            observation: the first one of the session, a list with one a row (or just it, for one row); None later.
            session: from `start`.
            sampling_config: how to sample; the pipeline's own if not given.
            value_maps: camera -> (B, T, H, W) in [0, 1], maps to decode the actions from instead of the predicted
                ones: the diagnostic that splits errors of the maps from errors of the actions.
            committed_actions: (B, d, action_dim), or without B for one row, in physical units: the actions that the
                robot executes while this call computes, so that what it returns starts with them and follows on from
                them. See `lookahead_actions` of the output; needs a model that was trained for it.
            generator: noise; with a list of one a row, a row's result doesn't depend on the rows beside it.
            output_type: `"np"`, `"pt"`, `"pil"` or `"latent"`; see [`AIMPipelineOutput`]. `"latent"` decodes no
                pictures at all.
            decode_frames: whether to decode the imagined RGB, which acting doesn't need.
            callback_on_step_end: called after each step as `callback(pipe, step, timestep, tensors)`, the action steps
                counted on after the world's; it returns a dict, whose tensors are used from there on.
            callback_on_step_end_tensor_inputs: which of `latents`, `value_latents` (B, C, F, h, w) and
                `action_latents` (B, F * n, action_dim) it gets.
            return_dict: False for a plain tuple (frames, value_maps, actions, lookahead_actions).
            sampling: fields of [`SamplingConfig`] that this call changes, such as `num_inference_steps=3`.

        Raises:
            ValueError: for inputs that don't fit; the session is then unchanged. Also for what a callback returns.
            RuntimeError: if actions come out that are not finite, naming their rows.
        """
        # 1. Check inputs.
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        config = _changed(self.sampling_config if sampling_config is None else sampling_config, sampling)
        self.check_inputs(
            observation,
            session,
            config,
            value_maps,
            generator,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        true_value_pixels = None if value_maps is None else self._value_pixels(value_maps, session)
        committed = None
        if committed_actions is not None:
            committed_actions = self._committed(committed_actions, observation, session)
            committed = self.processor.normalize_executed(
                "committed_actions", committed_actions, session.initial_pose
            ).to(self.model.device)

        # 2. Append the first observation to the session.
        if observation is not None:
            session.append(observation)

        # 3. Prepare latents, eq. (5).
        latents = self.prepare_latents(session, config, generator)
        true_value_latents = None
        if true_value_pixels is not None:
            true_value_latents = session.codec.encode_value_maps(true_value_pixels)

        # 4. Denoise RGB and value maps, eq. (6), then actions from the finished value map, eq. (10).
        total = config.world_steps + config.num_action_inference_steps
        with self.progress_bar(total=total) as progress_bar:

            def on_step_end(step, timestep, tensors):
                if callback_on_step_end is not None:
                    tensors = dict(zip(self._callback_tensor_inputs, tensors, strict=True))
                    given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors |= _returned(callback_on_step_end(self, step, timestep, given), tensors)
                    tensors = tuple(tensors[name] for name in self._callback_tensor_inputs)
                progress_bar.update()
                return tensors

            latents, value_latents, action_latents = sample_chunk(
                self.model,
                session.cache,
                latents,
                self.scheduler,
                self.action_scheduler,
                config,
                unguided_cache=session.negative_cache,
                true_value_latents=true_value_latents,
                committed_actions=committed,
                on_step_end=on_step_end,
            )

        if lost := (~action_latents.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist():
            raise RuntimeError(
                f"the actions of rows {lost} are not finite: the network can't take what they were told and shown, or "
                f"the weights are damaged, or {self.dtype} is too coarse for them."
            )

        # 5. Decode.
        actions = self.processor.unnormalize_actions(action_latents.double().cpu(), session.initial_pose).float()
        if committed is not None:
            actions[:, : committed.shape[1]] = committed_actions  # as they were given, to the last bit
        if output_type == "latent":
            frames, value_maps = (latents if decode_frames else None), value_latents
        else:
            frames = self._cameras(session.decode_frames(latents)) if decode_frames else None
            value_maps = self._cameras(session.codec.decode_value_maps(value_latents))
            value_maps = {name: self.processor.rgb_to_value(rgb) for name, rgb in value_maps.items()}
            if frames is not None:
                frames = {name: _to_output_type(rgb, output_type) for name, rgb in frames.items()}
            value_maps = {name: _to_output_type(value, output_type) for name, value in value_maps.items()}
        if output_type in ("np", "pil"):
            actions = actions.numpy()
        actions, lookahead_actions = actions[:, : self.actions_per_chunk], actions[:, self.actions_per_chunk :]
        if not self.model.config.action_lookahead_frames:
            lookahead_actions = None

        if not return_dict:
            return frames, value_maps, actions, lookahead_actions
        return AIMPipelineOutput(
            frames=frames, value_maps=value_maps, actions=actions, lookahead_actions=lookahead_actions
        )

    def prepare_latents(
        self,
        session: AIMSession,
        sampling_config: SamplingConfig,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noise of a chunk, eq. (5): of RGB and value latents, (B, C, F, h, w) each, and of actions, (B,
        action_horizon, action_dim), scaled by `action_noise_scale`."""
        config, device = self.model.config, self.model.device
        video = (session.batch_size, config.in_channels, config.chunk_latent_frames, *session.latent_size)
        actions = (session.batch_size, config.action_horizon, config.action_dim)
        latents, value_latents, action_latents = (
            randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
            for shape in (video, video, actions)
        )
        return latents, value_latents, sampling_config.action_noise_scale * action_latents

    def _committed(self, actions, observation, session: AIMSession) -> torch.Tensor:
        actions = as_actions("committed_actions", actions)
        actions = actions[None] if session.batch_size == 1 and actions.ndim == 2 else actions
        horizon = self.model.config.action_horizon
        if actions.ndim != 3 or actions.shape[::2] != (session.batch_size, self.processor.action_dim):
            raise ValueError(
                f"committed_actions have shape {tuple(actions.shape)}; expected ({session.batch_size}, d, "
                f"{self.processor.action_dim}) (rows, actions, numbers of one action)."
            )
        if not 1 <= actions.shape[1] < horizon:
            raise ValueError(f"{actions.shape[1]} actions are committed; expected 1 to {horizon - 1}.")
        if observation is not None:
            raise ValueError("committed_actions came with the first observation; nothing is executed before it.")
        return actions

    def _value_pixels(self, value_maps: Mapping[str, np.ndarray], session: AIMSession) -> torch.Tensor:
        canvas = self.processor.pack_canvas({name: self.processor.value_to_rgb(m) for name, m in value_maps.items()})
        expected = (session.batch_size, self.frames_per_chunk)
        if canvas.shape[:-3] != expected:
            raise ValueError(
                f"value_maps have leading shape {canvas.shape[:-3]}; expected {expected} (rows, frames of one chunk)."
            )
        return self.processor.canvas_to_pixels(canvas)

    def _cameras(self, pixels: torch.Tensor) -> dict[str, np.ndarray]:
        return self.processor.unpack_canvas(self.processor.pixels_to_canvas(pixels))


def _changed(config: SamplingConfig, changes: Mapping[str, Any]) -> SamplingConfig:
    """Raises TypeError for what is no field of it, as for any argument that a call doesn't take."""
    known = [field.name for field in fields(SamplingConfig)]
    if unknown := sorted(changes.keys() - set(known)):
        raise TypeError(f"AIMPipeline got unexpected arguments {unknown}; SamplingConfig has {', '.join(known)}.")
    return replace(config, **changes)


def check_components(components: Mapping[str, Any]) -> None:
    """Raises ValueError for one that is None or of another kind, by its name in `COMPONENTS`."""
    for name, component in components.items():
        if not isinstance(component, COMPONENTS[name]):
            raise ValueError(
                f"{name} is {'None' if component is None else type(component).__name__}; expected a "
                f"{COMPONENTS[name].__name__}. A pipeline needs all of {', '.join(COMPONENTS)}."
            )


def load_vae(folder: Path) -> AutoencoderKLWan:
    """The VAE of a pipeline's folder, AIM's or Wan's, in float32.

    Raises:
        OSError: for a damaged, missing or pickled file, which it names.
        ValueError: for tensors that are missing or unknown.
    """
    return _whole(folder, "vae", AutoencoderKLWan, torch_dtype=torch.float32)


def load_text_encoder(folder: Path, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """The text encoder of a pipeline's folder, AIM's or Wan's, in `dtype`; as stored if not given or "auto". Raises as
    `load_vae`."""
    dtype = "auto" if dtype in (None, "auto") else as_dtype(dtype)
    return _whole(folder, "text_encoder", AutoModelForTextEncoding, dtype=dtype)


def _whole(folder: Path, name: str, kind: type, **kwargs):
    stored = component_tensors(folder, [name])
    module = kind.from_pretrained(folder / name, use_safetensors=True, **kwargs)
    check_all_loaded(module, stored[name], source=str(folder / name))
    return module


def _dtypes(dtype: torch.dtype | str | Mapping[str, torch.dtype | str] | None) -> dict[str, dict]:
    """The argument of diffusers' `from_pretrained` that says each component's dtype; none where all are as stored."""
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return {}
    dtypes = {"vae": torch.float32} | (dict(dtype) if isinstance(dtype, Mapping) else {"default": dtype})
    if unknown := sorted(dtypes.keys() - {*COMPONENTS, "default"}):
        raise ValueError(f"dtype has {unknown}; expected some of {', '.join(COMPONENTS)} and default.")
    return {PIPELINE_DTYPE: {name: as_dtype(of_component) for name, of_component in dtypes.items()}}


def _returned(returned: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a callback returned, checked against what there was."""
    if not isinstance(returned, Mapping):
        raise ValueError(f"callback_on_step_end returned {returned!r}; expected a dict of tensors, {{}} for none.")
    for name, tensor in returned.items():
        if name not in tensors:
            raise ValueError(f"callback_on_step_end returned {name!r}; expected some of {', '.join(tensors)}.")
        if not torch.is_tensor(tensor) or tensor.shape != tensors[name].shape:
            got = tuple(tensor.shape) if torch.is_tensor(tensor) else type(tensor).__name__
            raise ValueError(f"callback_on_step_end returned {name} of {got}; expected {tuple(tensors[name].shape)}.")
    return {name: tensor.to(tensors[name]) for name, tensor in returned.items()}


def _to_output_type(clips: np.ndarray, output_type: str):
    """RGB (B, T, H, W, 3) or scalars (B, T, H, W) in [0, 1] as arrays, tensors or lists of pictures."""
    if output_type == "pt":
        tensor = torch.from_numpy(np.ascontiguousarray(clips))
        return tensor.permute(0, 1, 4, 2, 3) if tensor.ndim == 5 else tensor
    if output_type == "pil":
        return [[PIL.Image.fromarray(picture) for picture in clip] for clip in (clips * 255).round().astype(np.uint8)]
    return clips

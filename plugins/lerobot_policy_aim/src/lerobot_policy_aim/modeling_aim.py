"""AIM as a policy of LeRobot: an `AIMPipeline` behind LeRobot's interface.

A policy folder holds LeRobot's files, with the model's weights in `model.safetensors`, and `pipeline/`: the rest of an
AIM pipeline (video codec, text encoder, processor, schedulers, configurations) as its parts save themselves.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from accelerate.utils import disable_fsdp_ram_efficient_loading
from draccus import ParsingError
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import to_absolute_actions, to_relative_actions
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from aim_hf import AIMConfig, AIMForWorldAction, AIMPipeline, AIMProcessor, AIMSession
from aim_hf.envs.poses import unpack_endpose
from aim_hf.model.checkpoint import DOWNLOAD_KWARGS, check_all_loaded, local_folder, stored_tensors, tensor_shapes
from aim_hf.training.augmentations import augmentations, check_committed, imagined
from aim_hf.training.flow_matching import LOSS_TERMS, FlowMatchingLoss, weigh_values
from aim_hf.training.initial_model import initial_model
from aim_hf.utils.checks import check_whole
from aim_hf.utils.files import reading, written_folder

from .configuration_aim import MEND, NO_BASE, AIMPolicyConfig
from .dataset import (
    Demonstrations,
    action_statistics,
    as_pictures,
    check_pictures,
    encode_pictures,
    fitted_processor,
    training_window,
)
from .latents_cache import LatentsCache, made_from

if TYPE_CHECKING:  # a robot needs no datasets
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

PIPELINE = "pipeline"  # the folder of a pipeline's parts in a policy folder
ADAPTER = "adapter_config.json"  # PEFT's file in a folder that has an adapter instead


class AIMPolicy(PreTrainedPolicy):
    """Predicts a chunk of actions from the pictures of one to three cameras, an instruction and the history.

    `select_action` keeps the history of all episodes in progress, which begin together with `reset`. They don't
    influence each other, and each has its own noise, seeded from torch's global generator.

    Args:
        pipeline: the AIM pipeline; a new one from `config.base_model_id` if not given. Its model is the policy's only
            submodule, and all that is trained.
        dataset_meta: the dataset to train on. It determines the statistics of actions and the control rate, and the
            cameras and the width of an action of a new policy.
        dataset_stats: LeRobot gives them; `dataset_meta` has them, too.

    Raises:
        OSError: if the base can't be read.
        ValueError: for a dataset, or features, that don't fit.
    """

    config_class = AIMPolicyConfig
    name = "aim"
    _no_split_modules = ["AIMLayer"]  # Accelerate shards these, each as a whole

    def __init__(
        self,
        config: AIMPolicyConfig,
        pipeline: AIMPipeline | None = None,
        dataset_stats: dict[str, dict[str, Any]] | None = None,
        dataset_meta: LeRobotDatasetMetadata | None = None,
    ):
        super().__init__(config)
        config.validate_features()
        check_sharded()
        pipeline = pipeline or new_pipeline(config, dataset_meta)
        self.cameras = config.camera_features(pipeline.processor)
        if missing := [camera for camera in pipeline.processor.cameras if camera not in self.cameras]:
            raise ValueError(
                f"this policy looks at {', '.join(missing)}, too; name the features with these pictures in "
                "--policy.cameras."
            )
        config.set_geometry(pipeline.model.config, pipeline.codec.temporal_factor)
        config.action_statistics, config.fps = pipeline.processor.action_statistics, pipeline.processor.fps
        check_committed(config, pipeline.model.config.action_horizon)
        pipeline.sampling_config = config.sampling_config(pipeline.sampling_config)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline, self.model = pipeline, pipeline.model
        self.demonstrations: Demonstrations | None = None
        self.latents: LatentsCache | None = None
        if dataset_meta is not None:
            self.demonstrations = Demonstrations(dataset_meta, config, pipeline.processor.action_space)
            if config.latents_dir is not None:
                inputs = made_from(dataset_meta, pipeline, self.cameras, config.window_chunks)
                self.latents = LatentsCache(Path(config.latents_dir), inputs, self.cameras)
        for name, parameter in self.model.named_parameters():
            if name.startswith("history_head.") or ".history." in name:  # after stage 2: frozen copies, see AIMConfig
                parameter.requires_grad_(False)
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.objective = FlowMatchingLoss(self.model.config, config.num_draws, config.num_action_draws)
        self._training_steps = 0  # that this process has taken
        self._prompt_embeds: dict[str, Tensor] = {}  # of the dataset's instructions, and of the empty one
        self._next_seed = config.first_seed  # of the noise of the next episode; None for a random one
        self.reset()

    @classmethod
    def from_pipeline(
        cls, pipeline: AIMPipeline | str | os.PathLike, cameras: dict[str, str] | None = None, **fields: Any
    ) -> Self:
        """The policy of an AIM pipeline; `to_pipeline` leads back.

        Args:
            pipeline: the pipeline, its folder or its repo id.
            cameras: AIM's camera -> feature; `observation.images.<camera>` where not given.
            fields: other fields of the configuration.
        """
        if not isinstance(pipeline, AIMPipeline):
            pipeline = AIMPipeline.from_pretrained(pipeline)
        config = AIMPolicyConfig.of_pipeline(
            pipeline.model.config, pipeline.processor, pipeline.codec.temporal_factor, cameras or {}, **fields
        )
        return cls(config, pipeline).to(config.device).eval()

    def to_pipeline(self) -> AIMPipeline:
        """The AIM pipeline that acts as this policy does.

        Raises:
            ValueError: for a policy of relative actions, because a pipeline acts absolutely.
        """
        if self.config.use_relative_actions:
            raise ValueError(
                f"the policy acts relative to {OBS_STATE}, and a pipeline absolutely; train a policy without "
                "use_relative_actions."
            )
        return self.pipeline

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | os.PathLike, *, config: PreTrainedConfig | None = None, **kwargs: Any
    ) -> Self:
        """As `PreTrainedPolicy.from_pretrained`, but a policy folder must be complete.

        Raises:
            OSError: for a damaged or missing file, which it names.
            ValueError: for tensors that are missing or unknown, features that don't fit, and an adapter.
        """
        download = {name: kwargs.pop(name) for name in DOWNLOAD_KWARGS if name in kwargs}
        folder = local_folder(pretrained_name_or_path, **download)
        saved = saved_config(folder)
        config = config or saved
        if (folder / ADAPTER).is_file():
            raise ValueError(
                f"{pretrained_name_or_path} is an adapter without its policy; make a pipeline of both, and of that a "
                "policy, with python -m lerobot_policy_aim."
            )
        pipeline = saved_pipeline(folder / PIPELINE, saved, config, kwargs.get("dataset_meta"))
        return super().from_pretrained(folder, config=config, pipeline=pipeline, **kwargs)

    @classmethod
    def _load_as_safetensor(cls, model: Self, model_file: str, map_location: str, strict: bool) -> Self:
        check_all_loaded(model, tensor_shapes(Path(model_file)), source=model_file)
        return super()._load_as_safetensor(model, model_file, map_location, strict=True)

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save_pretrained(save_directory, state_dict=state_dict)
        self.model.config.dtype = self.model.dtype
        with written_folder(save_directory / PIPELINE) as folder:
            for name, component in self.pipeline.components.items():
                part = self.model.config if name == "model" else component
                part.save_pretrained(folder / name)
            self.pipeline.save_config(folder)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Codec and text encoder aren't submodules, so that no optimizer and no checkpoint holds them a second time.
        super()._apply(fn, recurse)
        for part in (self.pipeline.vae, self.pipeline.text_encoder):
            part.to(self.model.device)
        return self

    def supports_rtc(self) -> bool:
        """Whether predictions can start from actions in execution: models with a lookahead are trained for it."""
        return self.config.lookahead_steps > 0

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """LoRA on the video expert; action head, action experts and value noise token are trained in full."""
        from aim_hf.training.lora import TRAINED_IN_FULL, VIDEO_LAYERS  # needs PEFT

        return {"target_modules": rf"model\.{VIDEO_LAYERS}", "modules_to_save": TRAINED_IN_FULL}

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    # ----------------------------------------------------------------------------------------------- training

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of eq. (9) on windows of K chunks, and its three terms.

        Args:
            batch: as `training_window` describes it, with `task`, the instructions.
        """
        if self.demonstrations is None:
            raise ValueError("the policy was loaded to act, without a dataset; give from_pretrained its dataset_meta.")
        data, config = self.demonstrations, self.model.config
        actions = data.targets(batch, config), data.executed(batch, config), data.first_poses(batch)
        with torch.autocast(self.model.device.type, enabled=False):  # the codec stays in float32
            window = training_window(batch, self.pipeline, self.cameras, self._latents_of, *actions)
            window["prompt_embeds"] = self._encoded(instructions(batch, len(actions[0])))
            no_prompt = self._encoded([""])[0]
        window["action_mask"] = self.objective.predictions(window["action_mask"])
        if (foreseen := data.foreseen(batch, config)) is not None:
            window["action_mask"] *= foreseen.to(self.model.device)
        inputs = weigh_values(window, self.config.value_foreground_weight)
        if self.training:
            inputs |= augmentations(inputs, self.config, config.chunk_latent_frames, no_prompt)
            share = self.config.imagined_value_probability
            inputs |= imagined(self.model, inputs, self.objective, share, self._training_steps)
            self._training_steps += 1
        out = self.objective(self.model, **inputs)
        return out.loss, {name: out[name].item() for name in LOSS_TERMS}

    def _latents_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Latents of a batch, as `encode_pictures`; those that are in `latents_dir` aren't encoded again."""

        def encode(clips: dict[str, Any]) -> dict[str, Tensor]:
            return encode_pictures(clips, self.pipeline, self.cameras)

        return encode(batch) if self.latents is None else self.latents.encoded(batch, encode)

    def _encoded(self, tasks: list[str]) -> Tensor:
        """Text features of instructions, each of which is encoded once."""
        for task in {*tasks} - self._prompt_embeds.keys():
            self._prompt_embeds[task] = self.pipeline.encode_prompt(task, allow_empty=not task)[0]
        return torch.stack([self._prompt_embeds[task] for task in tasks]).to(self.model.device)

    # ---------------------------------------------------------------------------------------------- inference

    def reset(self) -> None:
        """Forgets the episodes in progress; the next `select_action` begins new ones."""
        self._session: AIMSession | None = None
        self._first_poses: Tensor | None = None  # of the episodes, (B, 16), which actions of space `ee` are taken from
        self._generators: list[torch.Generator] = []
        self._queue: deque[Tensor] = deque()  # actions of the chunk that are still to be executed, (B, action_dim)
        self._seen: list[list[dict]] = []  # observations of all rows since the chunk was predicted
        self._executed: list[Tensor] = []  # actions since then, as the history shows them
        self._state: Tensor | None = (
            None  # at the last picture, (B, action_dim), which relative actions are taken from
        )

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any]) -> Tensor:
        """The next action of each episode, (B, action_dim), in physical units. Call it at every control step. A
        relative action refers to the state of this very step, to which LeRobot's postprocessor adds it.

        Args:
            batch: pictures (B, 3, H, W) in [0, 1] and `task`, the instructions; `observation.state` in action space
                `ee`, and with `use_relative_actions`.

        Raises:
            ValueError: for missing pictures, instructions that are empty, states of another width than actions, states
                that aren't finite where actions are taken from them, or another number of rows than before.
        """
        self.eval()
        if self._session is None:
            self._session, self._generators = self._start(batch, self._next_seed)
            self._state = batch.get(OBS_STATE)
            if self._next_seed is not None:
                self._next_seed += self._session.batch_size
        elif len(self._executed) % self.config.actions_per_frame == 0:
            self._seen.append(self._observations(batch, self._session.batch_size))
            self._state = batch.get(OBS_STATE)
        else:
            if rows := self._rows(batch):  # a batch between two pictures may come without any
                check_rows(rows, self._session.batch_size)
            if self.config.use_relative_actions:
                self._check_state(batch, self._session.batch_size)
        if not self._queue:
            if self._executed:
                executed = torch.stack(self._executed, dim=1).cpu()
                self.pipeline.append(self._session, [list(row) for row in zip(*self._seen)], executed)
                self._seen, self._executed = [], []
            chunk = self._sample(self._session, self._generators)[:, : self.config.n_action_steps]
            self._queue.extend(self._moved(to_absolute_actions, chunk, self._state).unbind(1))
        action = self._queue.popleft()
        self._executed.append(self._moved(to_relative_actions, action, self._state))
        return self._moved(to_relative_actions, action, batch.get(OBS_STATE))

    def _moved(self, move: Callable[..., Tensor], actions: Tensor, state: Tensor | None) -> Tensor:
        """Actions that `move` takes from or to a state (B, action_dim); the same if they are absolute."""
        mask = self.config.relative_mask
        return actions if mask is None else move(actions, state, mask)

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        inference_delay: int = 0,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
    ) -> Tensor:
        """A chunk of actions (B, chunk_size, action_dim), in physical units, without history: callers of this method
        tell neither what was executed nor what was seen since the last call. Relative actions are taken from the state
        in `batch`, also those of the last chunk, as LeRobot's engine gives them. In action space `ee`, the first call
        after `reset` gives the episodes' first poses.

        Args:
            batch: as in `select_action`.
            inference_delay: number of actions that are executed before the chunk arrives. The chunk starts with them.
            prev_chunk_left_over: (B, T, action_dim), or without B for one row: the rest of the last chunk, which may
                be empty, or padded with zeros.
            execution_horizon: limit of the actions that are taken over from the last chunk.

        Raises:
            ValueError: as `select_action`, for numbers below 0, actions of another shape, and a delay that is as long
                as a prediction.
        """
        limit = check_whole("inference_delay", inference_delay, least=0)
        if execution_horizon is not None:
            limit = min(limit, check_whole("execution_horizon", execution_horizon, least=0))
        self.eval()
        session, generators = self._start(batch)
        committed = None
        if prev_chunk_left_over is not None and prev_chunk_left_over.numel():
            left = prev_chunk_left_over[None] if prev_chunk_left_over.ndim == 2 else prev_chunk_left_over
            # Without LeRobot's padding. A relative action of a resting robot is zero, too.
            given = int((left.any(dim=-1) * torch.arange(1, left.shape[1] + 1, device=left.device)).amax(dim=1).min())
            committed = left[:, : min(limit, given)].cpu() if limit and given else None
        return self._sample(session, generators, committed)

    def _start(self, batch: dict[str, Any], first_seed: int | None = None) -> tuple[AIMSession, list[torch.Generator]]:
        """Sessions without history, with their first observations, and the generator of each one's noise."""
        rows = self._rows(batch)
        observations, tasks = self._observations(batch, rows), instructions(batch, rows)
        guided = self.pipeline.sampling_config.guidance_scale != 1
        session = self.pipeline.start(tasks, negative_prompt="" if guided else None)
        self.pipeline.append(session, observations)
        if self._first_poses is None:
            self._first_poses = session.initial_pose
        else:
            check_rows(rows, len(self._first_poses))
        session.initial_pose = self._first_poses
        if first_seed is None:
            seeds = torch.randint(2**62, (len(tasks),), device="cpu").tolist()
        else:
            seeds = range(first_seed, first_seed + len(tasks))
        return session, [torch.Generator().manual_seed(seed) for seed in seeds]

    def _sample(
        self, session: AIMSession, generators: list[torch.Generator], committed_actions: Tensor | None = None
    ) -> Tensor:
        """The session's next chunk, (B, chunk_size, action_dim)."""
        out = self.pipeline(
            session=session,
            committed_actions=committed_actions,
            generator=generators,
            output_type="latent",
            decode_frames=False,
        )
        return out.actions.to(self.model.device)

    def _rows(self, batch: dict[str, Any]) -> int:
        return max(len(batch.get(feature, ())) for feature in self.cameras.values())

    def _observations(self, batch: dict[str, Any], rows: int) -> list[dict[str, Any]]:
        """The observation of each row, in RoboTwin's layout."""
        pictures = {camera: as_pictures(batch, feature, rows) for camera, feature in self.cameras.items()}
        observations = [
            {"observation": {camera: {"rgb": clip[row]} for camera, clip in pictures.items()}} for row in range(rows)
        ]
        in_ee = self.pipeline.processor.action_space == "ee"
        if in_ee or self.config.use_relative_actions:
            self._check_state(batch, rows)
        if in_ee:
            for observation, state in zip(observations, batch[OBS_STATE].cpu().double().numpy(), strict=True):
                observation["endpose"] = unpack_endpose(state)
        return observations

    def _check_state(self, batch: dict[str, Any], rows: int) -> None:
        """Raises ValueError for a state that actions can't be taken from: NaN would reach the robot in its actions.
        Of action space `ee`, the pipeline checks the first pose."""
        relative = self.config.use_relative_actions
        needed = "relative actions are taken from it" if relative else "action space 'ee' needs the poses of both arms"
        if OBS_STATE not in batch:
            raise ValueError(f"the batch has no {OBS_STATE}; {needed}.")
        state, expected = batch[OBS_STATE], (rows, self.pipeline.processor.action_dim)
        if tuple(state.shape) != expected:
            raise ValueError(f"{OBS_STATE} has shape {tuple(state.shape)}; expected {expected}: {needed}.")
        if relative and not state.isfinite().all():
            lost = (~state.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"{OBS_STATE}{lost} is {state[tuple(lost)]}; expected finite numbers: {needed}. Check the robot's "
                "sensors."
            )


# LeRobot looks for the configuration's name with "Policy" in place of "Config".
AIMPolicyPolicy = AIMPolicy


def instructions(batch: dict[str, Any], rows: int) -> list[str]:
    """`task` of each row. A string is a list of one.

    Raises:
        ValueError: if there are more or fewer than `rows`.
    """
    task = batch.get("task")
    tasks = list(task) if isinstance(task, list | tuple) else [task]
    if len(tasks) != rows:
        raise ValueError(f"task holds {len(tasks)} instructions; expected a list of {rows}, one for each row.")
    return tasks


def check_rows(rows: int, expected: int) -> None:
    """Raises ValueError for another number of rows than that of the episodes in progress."""
    if rows != expected:
        raise ValueError(f"the batch has {rows} rows; expected {expected}. Call reset() before other episodes.")


def check_sharded() -> None:
    """Raises ValueError for FSDP 2: `lerobot-train` calls `forward` itself, past the hooks by which it gathers
    weights."""
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if sharded and os.environ.get("FSDP_VERSION", "1") != "1":
        raise ValueError("fsdp_version is 2; expected 1, with which lerobot-train works: --fsdp_version=1.")


def load_in_all_processes() -> None:
    """Under `accelerate launch --use_fsdp`, transformers would read weights in the first process alone. The others get
    the model's weights from FSDP, but their text encoder would have none."""
    disable_fsdp_ram_efficient_loading()


def new_pipeline(config: AIMPolicyConfig, dataset: LeRobotDatasetMetadata | None) -> AIMPipeline:
    """A pipeline for the robot of a dataset, from `config.base_model_id`, to be trained in float32.

    Raises:
        OSError: if the base can't be read.
        ValueError: without a base or a dataset, and for a dataset that doesn't fit.
    """
    if config.base_model_id is None or dataset is None:
        raise ValueError(NO_BASE)
    load_in_all_processes()
    folder = local_folder(config.base_model_id)
    stored_tensors(folder)
    processor = fitted_processor(AIMProcessor.from_pretrained(folder / "processor"), config, dataset)
    model = initial_model(folder / "model", {"action_dim": processor.action_dim}, adapters=False)
    return AIMPipeline.from_pretrained(folder, model=model, processor=processor)


def saved_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a policy folder. Raises OSError if it is missing, damaged or of another version."""
    with reading(folder / "config.json", MEND):
        try:
            return PreTrainedConfig.from_pretrained(folder)
        except ParsingError as error:  # of draccus, which doesn't tell the reason
            raise ValueError(f"{error} {error.__cause__ or ''}") from error


def check_relative(saved: AIMPolicyConfig, config: AIMPolicyConfig) -> None:
    """Raises ValueError if other numbers of an action are relative to the state than in a saved policy."""
    masks = saved.relative_mask, config.relative_mask
    if masks[0] != masks[1]:
        there, here = ("absolute" if mask is None else f"relative in {sum(mask)} numbers" for mask in masks)
        raise ValueError(
            f"this policy's actions are {there}, and here they would be {here}; leave --policy.use_relative_actions "
            "and --policy.relative_exclude_joints as they were, or train another one, with --policy.type=aim."
        )


def saved_pipeline(
    parts: Path, saved: AIMPolicyConfig, config: AIMPolicyConfig, dataset: LeRobotDatasetMetadata | None
) -> AIMPipeline:
    """The pipeline of a policy folder, whose model has no weights yet. With a dataset, it is to be trained further on
    that: in float32, and with the statistics of these actions.

    Args:
        saved: the configuration in the folder. config: the one that is asked for.

    Raises:
        OSError: for a damaged or missing file.
        ValueError: for actions of another width or frame of reference, and a dataset that doesn't fit.
    """
    load_in_all_processes()
    stored_tensors(parts, given=("model", "processor"))  # a configuration without fields describes a huge model
    processor = AIMProcessor.from_pretrained(parts / "processor")
    (action_dim,) = config.action_feature.shape
    if action_dim != processor.action_dim:
        raise ValueError(
            f"actions have {action_dim} numbers here, and {processor.action_dim} in this policy; give an environment "
            "the policy's action space, such as --env.action_mode=qpos, or train another policy, with "
            "--policy.type=aim and --policy.base_model_id."
        )
    check_relative(saved, config)
    config.camera_features(processor)
    processor.action_statistics = config.action_statistics or processor.action_statistics
    processor.fps = config.fps or processor.fps
    if dataset is not None:
        check_pictures(processor, config, dataset)
        processor.action_statistics, processor.fps = action_statistics(processor, config, dataset), dataset.fps
    model_config = AIMConfig.from_pretrained(parts / "model")
    dtype = model_config.dtype if dataset is None else torch.float32
    model = AIMForWorldAction(model_config).to(dtype)
    return AIMPipeline.from_pretrained(parts, model=model, processor=processor)

"""Configuration of `AIMPolicy`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.processor import RelativeActionsProcessorStep
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from aim_hf import AIMConfig, AIMProcessor, SamplingConfig
from aim_hf.model.checkpoint import local_folder
from aim_hf.pipeline.sampling_config import MOST_STEPS
from aim_hf.utils.checks import check_choice, check_fields, check_path, check_whole, noise_seed, not_negative, share
from aim_hf.utils.files import read_json

# Value maps of a dataset, as `aim-hf export-lerobot` names them: observation.images.value_<camera>.
VALUE_MAP = f"{OBS_IMAGES}.value_"
IDENTITY = {
    kind.value: NormalizationMode.IDENTITY for kind in (FeatureType.VISUAL, FeatureType.STATE, FeatureType.ACTION)
}
RANGES = {
    check_whole: ("window_chunks", "num_draws", "num_action_draws", "committed_max"),
    noise_seed: ("first_seed",),
    not_negative: ("value_foreground_weight",),
    share: (
        *("history_noise_probability", "history_noise_max", "committed_probability", "imagined_value_probability"),
        "prompt_dropout",
    ),
}
MEND = "save or download the checkpoint again"
NO_BASE = (
    "a new policy needs a base and a dataset; give --policy.base_model_id, an AIM pipeline, and --dataset, or "
    "--policy.path, a trained policy."
)


@PreTrainedConfig.register_subclass("aim")
@dataclass
class AIMPolicyConfig(PreTrainedConfig):
    """Configuration of [`AIMPolicy`].

    Args:
        base_model_id: AIM pipeline, a folder or a repo id, that a new policy starts from. It provides the video codec,
            the text encoder, the canvas and the model. A saved policy holds them itself.
        cameras: AIM's camera (`head_camera`, `left_camera`, `right_camera`) -> the feature with its pictures, such as
            `{"head_camera": "observation.images.top"}`. Features named after AIM's cameras need no entry.
        chunk_size: actions of a chunk. actions_per_frame: actions between two pictures. lookahead_steps: actions
            that are predicted beyond the chunk. The base determines these three.
        action_statistics, fps: of the actions that the policy was trained on, as in `AIMProcessor`; here because an
            adapter is saved with this configuration, and without the policy that it belongs to.
        use_relative_actions: whether actions are predicted relative to the `observation.state` at which their chunk
            begins, and shown in the history relative to the one at the picture before them. Both have equally many
            numbers. Not for action space `ee`, whose poses are relative to the episode's first one.
        relative_exclude_joints: words in the names of the numbers that stay absolute.
        action_feature_names: the names of an action's numbers; LeRobot sets them from the dataset.
        n_action_steps: actions of a chunk that are executed before the next one is predicted, in whole
            `actions_per_frame`; the whole chunk if not given.
        num_inference_steps, num_action_inference_steps, stop_after, guidance_scale, action_noise_scale: fields of
            aim_hf's `SamplingConfig`; those of the base if not given.
        first_seed: seed of the first episode's noise; later episodes count on from it, in the order in which
            `select_action` begins them. Drawn at random if not given. With 100000000, `lerobot-eval --seed=0` of one
            task draws the noise of `aim-hf evaluate`.
        window_chunks: K, chunks of a training window.
        latents_dir: folder in which the latents of training windows are kept, so that the video codec runs once on
            each. It belongs to one dataset, codec and geometry. Pictures must not change from epoch to epoch.
        num_draws, num_action_draws: noise samples per chunk of RGB and value latents, and of actions.
        value_foreground_weight: additional weight of the value loss on bright cells.
        history_noise_probability, history_noise_max, committed_probability, committed_max, prompt_dropout,
            imagined_value_probability: as in aim_hf's `AIMTrainingArguments`. Real-time chunking needs a policy that
            was trained with committed actions, guidance one with dropped instructions.
        gradient_checkpointing: whether the backward pass computes activations again, which saves memory.
        dtype: "float32", or "bfloat16" to train in mixed precision; weights stay in float32.

    Raises:
        ValueError: for values out of range, and a base that is no pipeline.
        OSError: if the base can't be read.
    """

    base_model_id: str | None = None
    cameras: dict[str, str] = field(default_factory=dict)

    chunk_size: int | None = None
    actions_per_frame: int | None = None
    lookahead_steps: int | None = None
    action_statistics: dict[str, list[float]] | None = None
    fps: float | None = None

    use_relative_actions: bool = False
    relative_exclude_joints: list[str] = field(default_factory=lambda: ["gripper"])
    action_feature_names: list[str] | None = None

    n_action_steps: int | None = None
    num_inference_steps: int | None = None
    num_action_inference_steps: int | None = None
    stop_after: int | None = None
    guidance_scale: float | None = None
    action_noise_scale: float | None = None
    first_seed: int | None = None

    window_chunks: int = 3
    latents_dir: str | None = None
    num_draws: int = 1
    num_action_draws: int = 1
    value_foreground_weight: float = 10.0
    history_noise_probability: float = 0.0
    history_noise_max: float = 0.5
    committed_probability: float = 0.0
    committed_max: int = 8
    prompt_dropout: float = 0.0
    imagined_value_probability: float = 0.0
    gradient_checkpointing: bool = False
    dtype: str = "float32"
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=lambda: dict(IDENTITY))

    optimizer_lr: float = 1e-4
    optimizer_betas: tuple[float, float] = (0.9, 0.99)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 500
    scheduler_decay_steps: int = 30_000
    scheduler_decay_lr: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, RANGES)
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        if self.latents_dir is not None:
            check_path("latents_dir", self.latents_dir)
        if self.normalization_mapping != IDENTITY:
            raise ValueError(
                f"normalization_mapping is {self.normalization_mapping}; expected IDENTITY for all: AIM scales "
                "actions itself, and pictures stay in [0, 1]."
            )
        if self.base_model_id is not None and None in (self.chunk_size, self.actions_per_frame, self.lookahead_steps):
            folder = local_folder(self.base_model_id)
            if not (folder / "model_index.json").is_file():
                raise ValueError(
                    f"base_model_id is {self.base_model_id}; expected an AIM pipeline, which has a model_index.json. "
                    "Train a policy of LeRobot further with --policy.path."
                )
            temporal = read_json(folder / "vae" / "config.json", MEND)["scale_factor_temporal"]
            self.set_geometry(AIMConfig.from_pretrained(folder / "model"), temporal)
        elif self.chunk_size is not None:
            self._check_action_steps()
        self.sampling_config(SamplingConfig(num_inference_steps=MOST_STEPS))  # the base's number isn't known yet

    @classmethod
    def of_pipeline(
        cls, model: AIMConfig, processor: AIMProcessor, temporal_factor: int, cameras: dict[str, str], **kwargs
    ) -> AIMPolicyConfig:
        """The configuration of a pipeline's policy: the features that its processor asks for.

        Args:
            temporal_factor: RGB frames of a latent frame. cameras: as in the configuration. kwargs: other fields.

        Raises:
            ValueError: with `use_relative_actions`, and for values out of range.
        """
        if kwargs.get("use_relative_actions"):
            raise ValueError(
                "use_relative_actions is True, and this pipeline acts absolutely; train a policy of its own, with "
                "--policy.type=aim and --policy.base_model_id."
            )
        if cameras:
            cameras = {camera: f"{OBS_IMAGES}.{camera}" for camera in processor.cameras} | cameras
        inputs = {
            cameras.get(camera, f"{OBS_IMAGES}.{camera}"): PolicyFeature(FeatureType.VISUAL, (3, *entry["size"]))
            for camera, entry in processor.cameras.items()
        }
        if processor.action_space == "ee":
            inputs[OBS_STATE] = PolicyFeature(FeatureType.STATE, (processor.action_dim,))
        outputs = {ACTION: PolicyFeature(FeatureType.ACTION, (processor.action_dim,))}
        config = cls(input_features=inputs, output_features=outputs, cameras=cameras, **kwargs)
        config.set_geometry(model, temporal_factor)
        return config

    def set_geometry(self, model: AIMConfig, temporal_factor: int) -> None:
        """Sets the numbers of actions that the model determines.

        Args:
            temporal_factor: RGB frames of a latent frame.

        Raises:
            ValueError: if other numbers are given.
        """
        numbers = {
            "chunk_size": model.actions_per_chunk,
            "actions_per_frame": model.actions_per_latent_frame // temporal_factor,
            "lookahead_steps": model.action_lookahead_frames * model.actions_per_latent_frame,
        }
        for name, number in numbers.items():
            if (given := getattr(self, name)) not in (None, number):
                raise ValueError(f"{name} is {given}; expected {number}, as the model has it. Leave the option out.")
            setattr(self, name, number)
        self._check_action_steps()

    def _check_action_steps(self) -> None:
        if self.actions_per_frame is None:
            raise ValueError(NO_BASE)
        if self.n_action_steps is None:
            self.n_action_steps = self.chunk_size
        steps, frame = check_whole("n_action_steps", self.n_action_steps), self.actions_per_frame
        if steps % frame or steps > self.chunk_size:
            raise ValueError(
                f"n_action_steps is {steps}; expected a multiple of {frame}, the actions between two pictures, of at "
                f"most {self.chunk_size}, the actions of a chunk."
            )

    def sampling_config(self, base: SamplingConfig) -> SamplingConfig:
        """`base` with the fields that are given here. Raises ValueError for numbers out of range."""
        names = [entry.name for entry in fields(SamplingConfig)]
        return replace(base, **{name: value for name in names if (value := getattr(self, name)) is not None})

    def camera_features(self, processor: AIMProcessor) -> dict[str, str]:
        """AIM's camera -> feature, for the cameras that the policy sees: those of `cameras`, or of the same name.

        Raises:
            ValueError: for a camera that AIM or the data lacks; names it.
        """
        known, features = list(processor.cameras), list(self.image_features)
        chosen = self.cameras or {name.removeprefix(f"{OBS_IMAGES}."): name for name in features}
        wrong = [
            f"{name} as {camera}" for camera, name in chosen.items() if camera not in known or name not in features
        ]
        if wrong:
            raise ValueError(
                f"there is no {', '.join(wrong)}; AIM's cameras are {', '.join(known)}, and the pictures are "
                f'{", ".join(features)}. Match them with --policy.cameras=\'{{"{known[0]}": "{features[0]}"}}\'.'
            )
        return chosen

    def set_dataset_feature_metadata(self, features: dict[str, dict]) -> None:
        """LeRobot calls it with the features of the dataset. Value maps are targets, not inputs; nor are cameras that
        `cameras` leaves out. Some datasets have names of an action's numbers in groups, or each with its place, or
        none."""
        names = features.get(ACTION, {}).get("names")
        if isinstance(names, dict):
            placed = all(isinstance(place, int) for place in names.values())
            groups = [sorted(names, key=names.get)] if placed else names.values()
            self.action_feature_names = [name for group in groups for name in group]
        if self.action_feature_names is None:
            # All numbers are relative. LeRobot's engine would look for these words in the robot's names instead.
            self.relative_exclude_joints = []
        pictures = {name for name in self.image_features if not name.startswith(VALUE_MAP)}
        seen = set(self.cameras.values()) or pictures
        if not seen <= self.input_features.keys():
            seen = pictures  # among which `camera_features` misses one
        self.input_features = {
            name: feature
            for name, feature in self.input_features.items()
            if feature.type is not FeatureType.VISUAL or name in seen
        }

    @property
    def relative_mask(self) -> list[bool] | None:
        """Which numbers of an action are relative to the state; None if none are."""
        if not self.use_relative_actions:
            return None
        return self.relative_step()._build_mask(self.action_feature.shape[0])

    def relative_step(self) -> RelativeActionsProcessorStep:
        """LeRobot's step that makes actions relative."""
        return RelativeActionsProcessorStep(
            self.use_relative_actions, self.relative_exclude_joints, self.action_feature_names
        )

    def validate_features(self) -> None:
        """Raises ValueError without a picture or an action."""
        if not self.image_features:
            raise ValueError("input_features hold no pictures; AIM needs one to three cameras.")
        if self.action_feature is None:
            raise ValueError(f"output_features hold no {ACTION}; AIM predicts it.")

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )

    @property
    def _window_steps(self) -> int:
        if self.chunk_size is None:
            raise ValueError(NO_BASE)
        return self.window_chunks * self.chunk_size

    @property
    def observation_delta_indices(self) -> list[int]:
        """A window's pictures: the current one, and one after every `actions_per_frame` actions of K chunks. Raises
        ValueError without a base, as `action_delta_indices`."""
        return list(range(0, self._window_steps + 1, self.actions_per_frame))

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self._window_steps + self.lookahead_steps))

    @property
    def reward_delta_indices(self) -> None:
        return None

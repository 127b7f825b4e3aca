"""Training arguments: those of transformers and of AIM. The command line parses them before it imports the model."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg
from transformers.integrations import get_available_reporting_integrations

from ..pipeline.sampling_config import SamplingConfig
from ..utils.checks import check_fields, check_number, check_path, check_whole, count, not_negative, numpy_seed, share

# Fields of `TrainingArguments` that affect the learned weights. The others concern device, duration and reports.
LEARNING = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16"),
    *("seed", "data_seed", "train_sampling_strategy", "length_column_name", "dataloader_drop_last"),
    "auto_find_batch_size",
)


# Valid ranges of fields of `TrainingArguments`, for `check_fields`.
RANGES = {
    check_whole: ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    count: ("dataloader_num_workers",),
    numpy_seed: ("seed", "data_seed"),
    partial(check_whole, least=-1): ("max_steps",),
    not_negative: (
        *("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "warmup_steps", "num_train_epochs"),
        *("logging_steps", "save_steps", "eval_steps"),
    ),
    partial(check_number, least=0, most=0.999999): ("adam_beta1", "adam_beta2"),  # Adam divides by 1 - beta
}


# Fields of `SamplingConfig` that a training sets.
SAMPLING = ("num_inference_steps", "num_action_inference_steps", "action_noise_scale")
REPORTERS = ("mlflow", "tensorboard", "trackio", "wandb")  # of `report_to`; each needs the package of its name


class ResumableArguments(TrainingArguments):
    """`TrainingArguments` of a run that can be resumed. MAY_CHANGE: fields of subclasses that may then change. OWN:
    valid ranges of fields of subclasses, as in `RANGES`. UNSUPPORTED: fields that this training doesn't support.

    Raises:
        ValueError: for a number out of range, an empty path, an unsupported field, and an uninstalled reporter.
    """

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ()
    OWN: ClassVar[Mapping[Callable[[str, Any], Any], Collection[str]]] = {}
    UNSUPPORTED: ClassVar[tuple[str, ...]] = ("label_smoothing_factor", "neftune_noise_alpha")

    def __post_init__(self) -> None:
        for name in ("output_dir", "resume_from_checkpoint"):
            if getattr(self, name) not in (None, True):
                check_path(name, getattr(self, name))
        check_fields(self, RANGES)
        check_fields(self, self.OWN)
        for field in fields(self):
            if field.name in self.UNSUPPORTED and (value := getattr(self, field.name)) not in (None, field.default):
                raise ValueError(f"{field.name} is {value!r}, which this training doesn't support; leave it out.")
        super().__post_init__()
        available = get_available_reporting_integrations()
        if missing := [name for name in REPORTERS if name in self.report_to and name not in available]:
            raise ValueError(
                f"report_to is {' '.join(self.report_to)}; pip install {' '.join(missing)} first, or take none."
            )
        # Accelerate's configuration may ask for mixed precision, too.
        self.bf16, self.fp16 = (self.mixed_precision == name for name in ("bf16", "fp16"))

    @property
    def device(self) -> torch.device:
        # With several processes on a CPU it is "cpu:0", which torch.load doesn't accept as map_location.
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    def made_from(self) -> dict[str, Any]:
        """Arguments that affect the learned weights, for `files.claim`."""
        others = {field.name for field in fields(TrainingArguments)} | set(self.MAY_CHANGE)
        names = (*LEARNING, *(field.name for field in fields(self) if field.name not in others))
        batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
        return {name: getattr(self, name) for name in names} | {"batch_size": batch_size}


@dataclass
class AIMTrainingArguments(ResumableArguments):
    """`TrainingArguments` of stage 1.

    Raises:
        ValueError: as `ResumableArguments`, and for `muon_learning_rate` with an `optim` other than AdamW.
    """

    MAY_CHANGE: ClassVar = ("sample_steps", "remove_unused_columns", "action_noise_scale")
    OWN: ClassVar = {
        check_whole: ("num_draws", "num_action_draws", "committed_max"),
        count: ("imagined_value_start", "sample_steps"),
        not_negative: ("value_foreground_weight", "muon_learning_rate"),
        share: (
            *("history_noise_probability", "history_noise_max", "committed_probability", "imagined_value_probability"),
            *("prompt_dropout", "ema_decay"),
        ),
    }

    @property
    def sampling_config(self) -> SamplingConfig:
        """Sampling parameters of the trained pipeline."""
        return SamplingConfig(**{name: number for name in SAMPLING if (number := getattr(self, name)) is not None})

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.sampling_config  # raises ValueError for numbers out of range
        if self.muon_learning_rate and self.optim not in ("adamw_torch", "adamw_torch_fused"):
            raise ValueError(
                f"optim is {self.optim.value!r} and muon_learning_rate {self.muon_learning_rate}; with Muon, AdamW "
                "trains the rest. Leave out one of the two."
            )

    num_draws: int = HfArg(default=1, help="noise samples per chunk of RGB and value latents")
    num_action_draws: int = HfArg(default=1, help="noise samples per chunk of actions; these are cheap")
    num_inference_steps: int | None = HfArg(
        default=None,
        help="train RGB and value maps only at the times of so many denoising steps, and let the pipeline take "
        "them; all times if not given",
    )
    num_action_inference_steps: int | None = HfArg(default=None, help="the same for actions")
    action_noise_scale: float | None = HfArg(
        default=None, help="the pipeline's factor of the initial noise of actions, 0 to 1; default: 1"
    )
    history_noise_probability: float = HfArg(
        default=0.0, help="share of windows with noisy real observations; the model gets the noise level"
    )
    history_noise_max: float = HfArg(
        default=0.5, help="largest noise level t of noisy observations; t is uniform from 0"
    )
    committed_probability: float = HfArg(
        default=0.0, help="share of predictions that start with committed actions (real-time chunking)"
    )
    committed_max: int = HfArg(default=8, help="largest number of committed actions; the number is uniform from 1")
    imagined_value_probability: float = HfArg(
        default=0.0,
        help="share of windows whose actions are trained on value maps that the model imagines in one "
        "denoising step, as in a rollout; another forward pass",
    )
    imagined_value_start: int = HfArg(
        default=0, help="the optimizer step from which imagined maps are used; earlier ones are poor"
    )
    prompt_dropout: float = HfArg(
        default=0.0, help="share of windows without instruction, for classifier-free guidance"
    )
    value_foreground_weight: float = HfArg(
        default=10.0, help="additional weight of the value loss on bright cells, since most of a map is black"
    )
    muon_learning_rate: float = HfArg(
        default=0.0,
        help="learning rate of Muon for the layers' matrices; AdamW with learning_rate trains the rest. 0: "
        "optim for all",
    )
    ema_decay: float = HfArg(default=0.999, help="decay of the averaged weights")
    sample_steps: int = HfArg(default=1000, help="optimizer steps between samples; 0 for no samples")
    remove_unused_columns: bool = HfArg(
        default=False, help="whether to drop batch columns that forward doesn't take; the trainer needs value_mask"
    )

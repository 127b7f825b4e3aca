"""The arguments of training: transformers' own and ours. The command line parses them before it imports any more."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

# Of `TrainingArguments`, what changes what is learned. The others say where, how long, and what is told meanwhile.
LEARNING = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "seed", "data_seed", "bf16", "fp16"),
)


class ResumableArguments(TrainingArguments):
    """`TrainingArguments` of a run that may be continued. MAY_CHANGE: fields of our own that may change then."""

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ()

    @property
    def device(self) -> torch.device:
        # One of several processes on a CPU is told "cpu:0", which torch.load doesn't know as a place.
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    def made_from(self) -> dict[str, Any]:
        """What of the arguments changes what is learned, for `files.claim`."""
        others = {field.name for field in fields(TrainingArguments)} | set(self.MAY_CHANGE)
        names = (*LEARNING, *(field.name for field in fields(self) if field.name not in others))
        step = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
        return {name: getattr(self, name) for name in names} | {"batch_size": step}


@dataclass
class AIMTrainingArguments(ResumableArguments):
    """`TrainingArguments` and what AIM adds to them."""

    MAY_CHANGE: ClassVar = ("sample_steps", "remove_unused_columns")

    num_draws: int = field(default=1, metadata={"help": "noise draws per chunk of RGB and value"})
    num_action_draws: int = field(default=1, metadata={"help": "noise draws per chunk of actions; cheap"})
    history_noise_probability: float = field(
        default=0.0, metadata={"help": "share of the windows whose real observations are noised, and say so"}
    )
    history_noise_max: float = field(default=0.5, metadata={"help": "their largest noise level t; it is uniform"})
    committed_probability: float = field(
        default=0.0,
        metadata={"help": "share of the predictions that start from committed actions (real-time chunking)"},
    )
    committed_max: int = field(default=8, metadata={"help": "the largest number of them; it is uniform from 1"})
    prompt_dropout: float = field(
        default=0.0, metadata={"help": "share of the windows without their instruction, for guidance"}
    )
    value_foreground_weight: float = field(
        default=10.0,
        metadata={"help": "extra weight of the value loss where the map is bright: most of a map is black"},
    )
    muon_learning_rate: float = field(
        default=0.0,
        metadata={"help": "Muon's, for the layers' matrices; AdamW with learning_rate for the rest. 0: AdamW for all"},
    )
    ema_decay: float = field(default=0.999, metadata={"help": "decay of the averaged weights that are evaluated"})
    sample_steps: int = field(default=1000, metadata={"help": "optimizer steps between two samples; 0 for none"})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "of a batch, what forward does not take; the trainer itself uses value_mask"}
    )

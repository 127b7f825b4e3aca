"""Stage 1: supervised flow matching, eq. (9), with the Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from ..model.modeling_aim import AIMForWorldAction
from ..utils.files import reading
from .arguments import AIMTrainingArguments
from .augmentations import augmentations, check_committed, imagined
from .checkpoints import MEND, CheckpointedTrainer
from .flow_matching import LOSS_TERMS, FlowMatchingLoss, FlowMatchingOutput, weigh_values
from .muon import MuonWithAdamW

if TYPE_CHECKING:  # PEFT is an extra
    from peft import PeftModel

EMA_FILE = "ema.safetensors"


class AIMTrainer(CheckpointedTrainer):
    """Trains [`AIMForWorldAction`] on windows of latents, logs each loss term, and keeps averaged weights.

    If the model has adapters (`lora.py`), only these and the fully trained modules are saved. The averaged weights
    (`ema`) are saved with every checkpoint and restored on resume; `averaged_model` swaps them in.

    Raises:
        ValueError: for arguments that don't fit the model, and under FSDP for adapters or `sample_steps` above 0.
        FloatingPointError: in `train`, for a loss that isn't finite.
    """

    def __init__(self, model: AIMForWorldAction | PeftModel, args: AIMTrainingArguments, **kwargs: Any):
        super().__init__(model=model, args=args, **kwargs)
        # The Trainer sets this field of language models on every config; it would be saved with the policy.
        del model.config.use_cache
        # All processes shuffle the windows alike, and each takes its share. Without this seed, accelerate shuffles by
        # the seed of each process's noise: some windows would come twice in an epoch, and others never.
        if self.accelerator.dataloader_config.data_seed is None:
            self.accelerator.dataloader_config.data_seed = args.seed
        if self.is_fsdp_enabled:
            self._set_up_fsdp()
        self.ema: EMAModel | None = None  # set when training begins
        self.sample_metrics: dict[str, float] = {}  # of the last sample, until they are logged
        self._terms: dict[str, list[torch.Tensor]] = {name: [] for name in LOSS_TERMS}  # since the last log
        steps = args.num_inference_steps, args.num_action_inference_steps
        self.objective = FlowMatchingLoss(model.config, args.num_draws, args.num_action_draws, *steps)
        check_committed(args, model.config.action_horizon)
        self._no_prompt = self.train_dataset.no_prompt_embeds() if args.prompt_dropout else None
        self.add_callback(_UpdateEMA(self))

    def _set_up_fsdp(self) -> None:
        if hasattr(self.model, "peft_config"):
            raise ValueError(
                "the model has LoRA adapters, of which each process would hold, and save, a part under FSDP; train "
                "them on whole models, with pipelines/accelerate/gpus.yaml."
            )
        if self.args.sample_steps:
            raise ValueError(
                f"sample_steps is {self.args.sample_steps}; expected 0 under FSDP, where no process has the whole "
                "model to sample from."
            )
        plugin = self.accelerator.state.fsdp_plugin
        if isinstance(plugin.mixed_precision_policy, MixedPrecisionPolicy):
            plugin.mixed_precision_policy = without_casts(plugin.mixed_precision_policy)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        """Trained parameters by name: all of the model, or the adapters and the fully trained modules."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        args = self.args
        if not args.muon_learning_rate:
            return super().create_optimizer(model)
        named = self._trained()
        matrices = {name: p for name, p in named.items() if "blocks." in name and p.ndim == 2}
        self.optimizer = MuonWithAdamW(
            matrices.values(),
            [parameter for name, parameter in named.items() if name not in matrices],
            lr=args.muon_learning_rate,
            adam_lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
            dtype=torch.bfloat16 if args.bf16 else torch.float32,
        )
        return self.optimizer

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, FlowMatchingOutput]:
        inputs = weigh_values(inputs, self.args.value_foreground_weight)
        if model.training:
            inputs |= self._augmentations(inputs)
            inputs |= self._imagined(model, inputs)
        outputs = self.objective(model, **inputs)
        if not torch.isfinite(outputs.loss):
            terms = {name: outputs[name].item() for name in LOSS_TERMS}
            raise FloatingPointError(f"the loss is {outputs.loss.item()} at step {self.state.global_step}: {terms}.")
        if model.training:
            for name in LOSS_TERMS:
                self._terms[name].append(outputs[name].detach())
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _augmentations(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return augmentations(inputs, self.args, self.model.config.chunk_latent_frames, self._no_prompt)

    def _imagined(
        self, model: AIMForWorldAction | PeftModel, inputs: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        step = self.state.global_step
        if step < self.args.imagined_value_start:
            return {}
        return imagined(model, inputs, self.objective, self.args.imagined_value_probability, step)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            for name, values in self._terms.items():
                if values:
                    logs[name] = self.accelerator.gather(torch.stack(values).mean()).mean().item()
                values.clear()
            logs |= self.sample_metrics
            self.sample_metrics = {}
        super().log(logs, *args, **kwargs)

    def begin(self) -> None:
        """Initializes the averaged weights from the current weights, or from the checkpoint of a resumed run."""
        for values in self._terms.values():
            values.clear()
        # Not earlier, since FSDP shards the parameters when training is set up.
        self.ema = EMAModel(self._trained().values(), decay=self.args.ema_decay, use_ema_warmup=True, power=0.75)
        if self.resumed_from is not None:
            with reading(self.resumed_from / EMA_FILE, MEND):
                tensors = load_file(self.resumed_from / EMA_FILE)
            for name, shadow in zip(self._trained(), self.ema.shadow_params, strict=True):
                shadow.copy_(split_like(tensors[name], shadow))
            self.ema.optimization_step = self.state.global_step

    def averaged_tensors(self) -> dict[str, torch.Tensor]:
        """Averaged weights of all trained parameters, unsharded, on the CPU. Under FSDP, call it in all processes."""
        return {
            name: whole_tensor(shadow).cpu()
            for name, shadow in zip(self._trained(), self.ema.shadow_params, strict=True)
        }

    @contextmanager
    def averaged_model(self) -> Iterator[AIMForWorldAction | PeftModel]:
        """Context in which the model has its averaged weights."""
        self.ema.store(self._trained().values())
        self.ema.copy_to(self._trained().values())
        try:
            yield self.model
        finally:
            self.ema.restore(self._trained().values())

    def save_to_checkpoint(self, folder: Path) -> None:
        averaged = self.averaged_tensors()
        if self.args.should_save:
            save_file(averaged, folder / EMA_FILE)


def without_casts(policy: MixedPrecisionPolicy) -> MixedPrecisionPolicy:
    """FSDP's policy without casts of module inputs and outputs, which would round rotary positions and the loss. The
    model casts the inputs of its layers itself."""
    return replace(policy, cast_forward_inputs=False, output_dtype=None)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor, gathered from all processes if FSDP has sharded it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor, sharded over the processes as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


class _UpdateEMA(TrainerCallback):
    def __init__(self, trainer: AIMTrainer):
        self.trainer = trainer

    def on_step_end(
        self, args: AIMTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.ema.step(self.trainer._trained().values())

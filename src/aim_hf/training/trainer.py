"""Stage 1: supervised flow matching, eq. (9), on the Hugging Face Trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback

from ..model.modeling_aim import AIMForWorldAction
from ..utils.files import reading
from .arguments import AIMTrainingArguments
from .checkpoints import MEND, CheckpointedTrainer
from .flow_matching import FlowMatchingLoss
from .muon import MuonWithAdamW

if TYPE_CHECKING:  # adapters are an extra
    from peft import PeftModel

EMA_FILE = "ema.safetensors"
LOSS_TERMS = ("rgb_loss", "value_loss", "action_loss")


class AIMTrainer(CheckpointedTrainer):
    """Trains [`AIMForWorldAction`] on windows of latents, logs each loss term, and keeps averaged weights.

    The model may have adapters (`lora.py`); then these, and what is trained beside them, are all that is saved. The
    averaged weights (`ema`) are saved with every checkpoint and restored on resume; `averaged_model` gives them.
    """

    def __init__(self, model: AIMForWorldAction | PeftModel, args: AIMTrainingArguments, **kwargs):
        super().__init__(model=model, args=args, **kwargs)
        # Trainer sets this field of language models on every config; ours refuses fields that it doesn't have.
        del model.config.use_cache
        if self.is_fsdp_enabled:
            self._set_up_fsdp()
        self.ema: EMAModel | None = None  # once training begins
        self.sample_metrics: dict[str, float] = {}  # of the last sample, until they are logged
        self._terms = {name: [] for name in LOSS_TERMS}
        self.objective = FlowMatchingLoss(model.config, args.num_draws, args.num_action_draws)
        horizon = model.config.action_horizon
        if args.committed_probability and not 1 <= args.committed_max < horizon:
            raise ValueError(
                f"committed_max is {args.committed_max}; expected 1 to {horizon - 1}, for {horizon} actions."
            )
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
            plugin.mixed_precision_policy = computing_alone(plugin.mixed_precision_policy)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name: all of the model, or adapters and what goes with them."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def create_optimizer(self, model=None):
        args = self.args
        if not args.muon_learning_rate:
            return super().create_optimizer(model)
        named = self._trained()
        matrices = [p for name, p in named.items() if "blocks." in name and p.ndim == 2]
        taken = {id(p) for p in matrices}
        self.optimizer = MuonWithAdamW(
            matrices,
            [p for p in named.values() if id(p) not in taken],
            lr=args.muon_learning_rate,
            adam_lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.weight_decay,
            dtype=torch.bfloat16 if args.bf16 else torch.float32,
        )
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        # Value maps are mostly black; without more weight on their bright cells the peak is learned last.
        inputs["value_weights"] = 1 + self.args.value_foreground_weight * inputs["value_weights"]
        if "value_mask" in inputs:
            # Nobody knows the map there: no loss, and noise in its place, so that other tokens and the action head
            # learn to make nothing of what will be imagined there.
            mask, latents = inputs.pop("value_mask"), inputs["value_latents"]
            inputs["value_weights"] = inputs["value_weights"] * mask
            inputs["value_latents"] = torch.where(mask[:, None] > 0, latents, torch.randn_like(latents))
        if model.training:
            inputs |= self._augmentations(inputs)
        outputs = self.objective(model, **inputs)
        if not torch.isfinite(outputs.loss):
            terms = {name: outputs[name].item() for name in LOSS_TERMS}
            raise FloatingPointError(f"the loss is {outputs.loss.item()} at step {self.state.global_step}: {terms}.")
        if model.training:
            for name in LOSS_TERMS:
                self._terms[name].append(outputs[name].detach())
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _augmentations(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is random about a window beside the noise that is to be removed."""
        args, latents, changed = self.args, inputs["latents"], {}
        if args.history_noise_probability:
            level, chosen = torch.rand(2, len(latents), device=latents.device, dtype=latents.dtype)
            chosen = chosen < args.history_noise_probability
            changed["history_timestep"] = args.history_noise_max * level * chosen
        if args.committed_probability:
            chunks = inputs["value_latents"].shape[2] // self.model.config.chunk_latent_frames
            shape = (len(latents), args.num_action_draws, chunks)
            count = torch.randint(1, args.committed_max + 1, shape, device=latents.device)
            chosen = torch.rand(shape, device=latents.device) < args.committed_probability
            changed["committed_actions"] = count * chosen
        if args.prompt_dropout:
            dropped = torch.rand(len(latents), device=latents.device) < args.prompt_dropout
            no_prompt = self._no_prompt.to(latents)
            changed["prompt_embeds"] = torch.where(dropped[:, None, None], no_prompt, inputs["prompt_embeds"])
        return changed

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            for name, values in self._terms.items():
                if values:
                    logs[name] = self.accelerator.gather(torch.stack(values).mean()).mean().item()
                values.clear()
            logs |= self.sample_metrics
            self.sample_metrics = {}
        super().log(logs, *args, **kwargs)

    def start_averaging(self) -> None:
        """Starts from the weights as they are, or from where a resumed run was."""
        self.ema = EMAModel(self._trained().values(), decay=self.args.ema_decay, use_ema_warmup=True, power=0.75)
        if self.resumed_from is not None:
            with reading(self.resumed_from / EMA_FILE, MEND):
                tensors = load_file(self.resumed_from / EMA_FILE)
            for name, shadow in zip(self._trained(), self.ema.shadow_params, strict=True):
                shadow.copy_(split_like(tensors[name], shadow))
            self.ema.optimization_step = int(self.resumed_from.name.rsplit("-", 1)[1])

    def averaged_tensors(self) -> dict[str, torch.Tensor]:
        """Averaged weights of all that is trained, whole, on the CPU. Under FSDP all processes must ask for them."""
        return {
            name: whole_tensor(shadow).cpu()
            for name, shadow in zip(self._trained(), self.ema.shadow_params, strict=True)
        }

    def averaged_model(self) -> AveragedWeights:
        """Context in which the model has its averaged weights."""
        return AveragedWeights(self)

    def save_to_checkpoint(self, folder: Path) -> None:
        averaged = self.averaged_tensors()
        if self.args.should_save:
            save_file(averaged, folder / EMA_FILE)


def computing_alone(policy: MixedPrecisionPolicy) -> MixedPrecisionPolicy:
    """FSDP's policy with what modules are given and give left as it is. It would round rotary positions and the loss;
    the model itself casts what its layers compute on."""
    return replace(policy, cast_forward_inputs=False, output_dtype=None)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, gathered if FSDP has split it over the processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor, split over the processes if `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


class AveragedWeights:
    def __init__(self, trainer: AIMTrainer):
        self.trainer = trainer

    def __enter__(self) -> AIMForWorldAction:
        self.trainer.ema.store(self.trainer._trained().values())
        self.trainer.ema.copy_to(self.trainer._trained().values())
        return self.trainer.model

    def __exit__(self, *_):
        self.trainer.ema.restore(self.trainer._trained().values())


class _UpdateEMA(TrainerCallback):
    def __init__(self, trainer: AIMTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.start_averaging()  # not before: FSDP splits the parameters when training is set up

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.ema.step(self.trainer._trained().values())

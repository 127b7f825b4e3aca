"""Training arguments of stage 2, with the names of TRL's `GRPOConfig` where the meaning is the same."""

from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
from transformers.hf_argparser import HfArg

from ..pipeline.sampling_config import SamplingConfig
from ..training.arguments import SAMPLING, ResumableArguments
from ..utils.checks import check_choice, check_positive, check_whole, count, finite_numbers, not_negative, share
from ..utils.versions import ACTIVATION_CHECKPOINTING
from .policy import FlowSDE

LOSSES, SCALES = ("grpo", "dapo"), ("group", "batch", "none")


@dataclass
class AIMGRPOConfig(ResumableArguments):
    """`TrainingArguments` of stage 2. `per_device_train_batch_size` counts episodes, in whole groups.

    Raises:
        ValueError: for values that are out of range or don't fit together.
    """

    UNSUPPORTED: ClassVar = (
        *ResumableArguments.UNSUPPORTED,
        # The sampler of groups reads none of these, and the policy that is trained is no PreTrainedModel.
        *("dataloader_num_workers", "dataloader_drop_last", "train_sampling_strategy", "length_column_name"),
        *("data_seed", "auto_find_batch_size", ACTIVATION_CHECKPOINTING),
    )
    MAY_CHANGE: ClassVar = ("num_env_workers", "env_timeout", "max_kl", "hacking_patience")
    OWN: ClassVar = {
        check_whole: (
            *("num_iterations", "num_inference_steps", "num_action_inference_steps", "noise_modes"),
            *("steps_per_generation", "max_completion_length", "num_env_workers", "hacking_patience"),
        ),
        partial(check_whole, least=2): ("num_generations",),  # episodes are compared
        count: ("num_random_steps",),
        check_positive: ("epsilon", "epsilon_high", "env_timeout", "max_kl"),
        not_negative: ("beta", "noise_level", "last_step_std"),
        share: ("action_noise_scale",),
        finite_numbers: ("reward_weights", "random_steps"),
    }

    learning_rate: float = HfArg(default=1e-4, help="learning rate of AdamW")
    per_device_train_batch_size: int = HfArg(
        default=8, help="episodes per forward pass; a multiple of num_generations"
    )
    num_generations: int = HfArg(default=8, help="G, episodes per group")
    steps_per_generation: int | None = HfArg(
        default=None, help="batches that are rolled out together; gradient_accumulation_steps if not given"
    )
    num_iterations: int = HfArg(default=1, help="number of times that each rollout is learned from")
    max_completion_length: int | None = HfArg(
        default=None, help="control steps after which a training episode ends; the task's limit if not given"
    )
    epsilon: float = HfArg(default=0.2, help="lower clip range: the ratio's lower bound is 1 - epsilon")
    epsilon_high: float | None = HfArg(
        default=None, help="upper clip range: the upper bound is 1 + epsilon_high; epsilon if not given"
    )
    beta: float = HfArg(default=0.0, help="weight of the KL divergence from the reference policy")
    loss_type: str = HfArg(
        default="dapo", help="grpo: mean over episodes of the mean over tokens; dapo: mean over all tokens"
    )
    scale_rewards: str = HfArg(
        default="group", help="standard deviation that advantages are divided by: group, batch or none"
    )
    reward_weights: list[float] | None = HfArg(default=None, help="one weight per reward function; 1 if not given")
    return_to_go: bool = HfArg(
        default=False, help="credit a chunk with the dense rewards of all later chunks too, not with its own alone"
    )
    noise_level: float = HfArg(default=0.7, help="a of the SDE, see rl/policy.py")
    noise_modes: int | None = HfArg(
        default=None,
        help="number of cosine modes of a chunk's noise that random steps replace; 1 moves all its actions "
        "together; all modes if not given",
    )
    last_step_std: float = HfArg(
        default=0.0, help="standard deviation of the noise of the last denoising step, in normalized actions"
    )
    random_steps: list[int] | None = HfArg(
        default=None, help="indices of denoising steps that may be random, from 0; all steps with noise if not given"
    )
    num_random_steps: int = HfArg(default=1, help="number of random denoising steps per chunk; 0: all of random_steps")
    num_inference_steps: int | None = HfArg(
        default=None, help="denoising steps of RGB and value maps in practice; the pipeline's if not given"
    )
    num_action_inference_steps: int | None = HfArg(default=None, help="the same of actions")
    action_noise_scale: float | None = HfArg(
        default=None,
        help="factor of the actions' initial noise, which the trained pipeline keeps; below 1, only the last "
        "denoising step may be random. The pipeline's value if not given",
    )
    suite: str = HfArg(default="tabletop", help="benchmark suite of the scenes")
    split: str = HfArg(default="easy", help="split of the scenes")
    num_env_workers: int | None = HfArg(
        default=None, help="environment processes; one per core of this process if not given"
    )
    env_timeout: float = HfArg(default=300, help="seconds after which an environment counts as hung")
    max_kl: float | None = HfArg(default=None, help="stop if a logged mean KL exceeds this")
    hacking_patience: int | None = HfArg(
        default=None, help="stop after this many evaluations in a row with more value reward and less success"
    )
    max_grad_norm: float = HfArg(default=1.0, help="largest gradient norm, for clipping")
    logging_steps: float = HfArg(default=1, help="optimizer steps between logs")
    lr_scheduler_type: str = HfArg(default="constant", help="learning rate schedule")
    ddp_find_unused_parameters: bool = HfArg(default=False, help="not needed: all parameters are used")
    remove_unused_columns: bool = HfArg(default=False, help="not needed: all columns are used")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("loss_type", self.loss_type, LOSSES)
        check_choice("scale_rewards", self.scale_rewards, SCALES)
        if self.reward_weights is not None and not any(self.reward_weights):
            raise ValueError(f"reward_weights is {self.reward_weights}; expected one that is not 0.")
        # The Trainer's default with `load_best_model_at_end` is "loss", which evaluations don't have.
        best = self.metric_for_best_model
        if best is not None and not best.removeprefix("eval_").startswith("success"):
            raise ValueError(
                f"metric_for_best_model is {best!r}; expected a metric of evaluations, such as success_rate."
            )
        if self.per_device_train_batch_size % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size is {self.per_device_train_batch_size}; expected a multiple of "
                f"num_generations={self.num_generations}, since a group is learned from as a whole."
            )
        if self.steps_per_generation is None:
            self.steps_per_generation = self.gradient_accumulation_steps
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation is {self.steps_per_generation}; expected a multiple of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}."
            )
        self.epsilon_high = self.epsilon if self.epsilon_high is None else self.epsilon_high

    def for_pipeline(self, sampling_config: SamplingConfig) -> Self:
        """A copy that has the pipeline's numbers of steps and noise scale where none are given, and the random steps.

        Raises:
            ValueError: for random steps that have no noise.
        """
        filled = copy(self)
        for name in SAMPLING:
            if getattr(self, name) is None:
                setattr(filled, name, getattr(sampling_config, name))
        filled._set_random_steps()
        return filled

    def _set_random_steps(self) -> None:
        with_noise = self._steps_with_noise()
        if not with_noise:
            raise ValueError(
                f"no denoising step is random with noise_level {self.noise_level}, last_step_std {self.last_step_std} "
                f"and num_action_inference_steps {self.num_action_inference_steps}, and so nothing has a likelihood; "
                "expected noise_level above 0 with at least 2 steps, or last_step_std above 0."
            )
        steps = with_noise if self.random_steps is None else [step for step in with_noise if step in self.random_steps]
        if not steps or self.random_steps not in (None, steps):
            raise ValueError(
                f"random_steps is {self.random_steps}; expected some of {with_noise}, in ascending order: those that "
                f"have noise, and so a likelihood, with noise_level={self.noise_level} and, for the last one, "
                f"last_step_std={self.last_step_std}."
            )
        self.random_steps = steps  # whole numbers, where 0.0 was given
        if not 0 <= self.num_random_steps <= len(self.random_steps):
            raise ValueError(
                f"num_random_steps is {self.num_random_steps}; expected 0 to {len(self.random_steps)}, as many as "
                "random_steps has."
            )
        last = self.num_action_inference_steps - 1
        if self.action_noise_scale < 1 and self.random_steps != [last]:
            raise ValueError(
                f"action_noise_scale is {self.action_noise_scale} and random_steps {self.random_steps}: all steps but "
                f"the last renew noise in whole. Give random_steps=[{last}] with last_step_std, or "
                "action_noise_scale=1."
            )

    def _steps_with_noise(self) -> list[int]:
        """Indices of the denoising steps with noise, and therefore with a likelihood."""
        sde, x = FlowSDE(self.noise_level, last_step_std=self.last_step_std), torch.ones(1, 1)
        count = self.num_action_inference_steps
        times = [1 - step / count for step in range(count)] + [0]
        return [step for step in range(count) if sde.step(x, x, t=times[step], s=times[step + 1])[1] > 0]

    def made_from(self) -> dict[str, Any]:
        # A checkpoint holds each process's rollouts, so their distribution over processes must not change on resume.
        names = ("per_device_train_batch_size", "gradient_accumulation_steps")
        return super().made_from() | {name: getattr(self, name) for name in names} | {"processes": self.world_size}

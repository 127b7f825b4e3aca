"""Stage 2: GRPO on the action head alone, eq. (12) and (13), on the Hugging Face Trainer.

One iteration: groups of episodes are rolled out from the same scenes, rewarded, and compared within their group; then
the head takes `steps_per_generation / gradient_accumulation_steps` optimizer steps on them, `num_iterations` times
over. Names are those of TRL's `GRPOTrainer` where the meaning is the same: a completion is an episode, a token is an
action, or a mode of a chunk's actions, at one of the random denoising steps of its chunk.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.utils import logging

from ..envs.base import SeedRejected
from ..evaluation.policies import AIMPolicy
from ..evaluation.rollout import run_episodes
from ..evaluation.statistics import wilson_interval
from ..evaluation.vector_env import VectorEnvironment, cores_of_this_process
from ..extras import SimulatorFailed
from ..files import reading
from ..pipeline_aim import AIMPipeline, check_action_noise_scale
from ..sampling import with_steps
from .checkpoints import MEND, CheckpointedTrainer, ResumableArguments
from .policy import POLICY_INPUTS, ActionPolicy, FlowSDE
from .rewards import Outcome, RewardFunction, success_reward, value_hits, value_map_reward
from .rollouts import Collector, Group, Scene, Scenes

VALUE_REWARD, SUCCESS = f"rewards/{value_map_reward.__name__}/mean", "eval_success_rate"
LEVELS, LOSSES, SCALES = ("token", "sequence"), ("grpo", "dapo"), ("group", "batch", "none")
# Numbers of the configuration, those that may be None too, by what they have to be.
AT_LEAST_ONE = (
    *("num_iterations", "num_inference_steps", "num_action_inference_steps", "noise_modes"),
    *("steps_per_generation", "max_completion_length", "num_env_workers", "hacking_patience"),
)
ABOVE_ZERO = ("epsilon", "epsilon_high", "env_timeout", "max_kl")
NOT_NEGATIVE = ("beta", "noise_level", "last_step_std")


logger = logging.get_logger(__name__)


@dataclass
class AIMGRPOConfig(ResumableArguments):
    """`TrainingArguments` and what GRPO adds to them; `per_device_train_batch_size` counts episodes, in whole groups.

    Raises:
        ValueError: for values out of range, or that don't fit together.
    """

    MAY_CHANGE: ClassVar = ("num_env_workers", "env_timeout", "max_kl", "hacking_patience")

    learning_rate: float = field(default=1e-4, metadata={"help": "AdamW's"})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "episodes of a forward pass, whole groups"})
    num_generations: int = field(default=8, metadata={"help": "G, episodes of a group"})
    steps_per_generation: int | None = field(
        default=None,
        metadata={"help": "batches that are rolled out together; gradient_accumulation_steps if not given"},
    )
    num_iterations: int = field(default=1, metadata={"help": "times that an iteration's episodes are learned from"})
    max_completion_length: int | None = field(
        default=None,
        metadata={"help": "control steps after which an episode of practice ends; the task's own limit if not given"},
    )
    epsilon: float = field(default=0.2, metadata={"help": "how far the ratio may fall below 1"})
    epsilon_high: float | None = field(default=None, metadata={"help": "and rise above it; epsilon if not given"})
    beta: float = field(default=0.0, metadata={"help": "weight of the KL divergence from the reference"})
    loss_type: str = field(
        default="dapo",
        metadata={"help": "grpo: mean over episodes of their tokens' mean; dapo: mean over all tokens"},
    )
    importance_sampling_level: str = field(
        default="token", metadata={"help": "token: a ratio for each action; sequence: for each chunk, of the mean"}
    )
    scale_rewards: str = field(
        default="group", metadata={"help": "by which standard deviation advantages are divided: group, batch or none"}
    )
    reward_weights: list[float] | None = field(default=None, metadata={"help": "one for each reward; 1 if not given"})
    noise_level: float = field(default=0.7, metadata={"help": "a of the SDE, see training/policy.py"})
    noise_modes: int | None = field(
        default=None,
        metadata={
            "help": "cosine modes of a chunk's noise that random steps replace, 1 moves all its actions together; all "
            "if not given"
        },
    )
    last_step_std: float = field(
        default=0.0,
        metadata={"help": "standard deviation of the noise of the last denoising step, in normalized actions"},
    )
    random_steps: list[int] | None = field(
        default=None,
        metadata={
            "help": "denoising steps, from 0 on, that random ones are drawn from; those that have noise if not given"
        },
    )
    num_random_steps: int = field(
        default=1, metadata={"help": "how many of a chunk's denoising steps are random; 0: all of random_steps"}
    )
    num_inference_steps: int = field(default=5, metadata={"help": "denoising steps of RGB and value maps"})
    num_action_inference_steps: int = field(default=10, metadata={"help": "denoising steps of actions"})
    action_noise_scale: float | None = field(
        default=None,
        metadata={
            "help": "of the noise that actions start from, also of the trained pipeline; below 1 the last denoising "
            "step alone may be random. The given pipeline's if not given"
        },
    )
    suite: str = field(default="tabletop", metadata={"help": "of the scenes"})
    split: str = field(default="easy", metadata={"help": "of the scenes"})
    num_env_workers: int | None = field(
        default=None, metadata={"help": "environment processes; one for each core of this process if not given"}
    )
    env_timeout: float = field(default=300, metadata={"help": "seconds after which an environment counts as hung"})
    max_kl: float | None = field(default=None, metadata={"help": "stop when an iteration's mean KL exceeds this"})
    hacking_patience: int | None = field(
        default=None,
        metadata={"help": "stop after so many evaluations in a row with more value reward and less success"},
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "of the head's gradient"})
    logging_steps: float = field(default=1, metadata={"help": "optimizer steps between two logs"})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "of the learning rate"})
    ddp_find_unused_parameters: bool = field(default=False, metadata={"help": "there are none"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "there are none"})

    def __post_init__(self):
        super().__post_init__()
        for name, known in (
            ("loss_type", LOSSES),
            ("importance_sampling_level", LEVELS),
            ("scale_rewards", SCALES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}.")
        for names, fits, expected in (
            (AT_LEAST_ONE, lambda value: value >= 1, "at least 1"),
            (ABOVE_ZERO, lambda value: 0 < value < math.inf, "a number above 0"),
            (NOT_NEGATIVE, lambda value: 0 <= value < math.inf, "a number of at least 0"),
        ):
            for name in names:
                if (value := getattr(self, name)) is not None and not fits(value):
                    raise ValueError(f"{name} is {value}; expected {expected}.")
        if self.num_generations < 2:
            raise ValueError(f"num_generations is {self.num_generations}; episodes are compared: at least 2.")
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
        random = self._steps_with_noise()
        if not random:
            raise ValueError(
                f"no denoising step is random with noise_level {self.noise_level}, last_step_std {self.last_step_std} "
                f"and num_action_inference_steps {self.num_action_inference_steps}, and so nothing has a likelihood; "
                "expected noise_level above 0 with at least 2 steps, or last_step_std above 0."
            )
        if self.random_steps is None:
            self.random_steps = random
        if not self.random_steps or sorted(set(self.random_steps) & set(random)) != self.random_steps:
            raise ValueError(
                f"random_steps is {self.random_steps}; expected some of {random}, in ascending order: those that have "
                f"noise, and so a likelihood, with noise_level={self.noise_level} and, for the last one, "
                f"last_step_std={self.last_step_std}."
            )
        if not 0 <= self.num_random_steps <= len(self.random_steps):
            raise ValueError(
                f"num_random_steps is {self.num_random_steps}; expected 0 to {len(self.random_steps)}, as many as "
                "random_steps has."
            )
        self.epsilon_high = self.epsilon if self.epsilon_high is None else self.epsilon_high

    def _steps_with_noise(self) -> list[int]:
        sde, count, x = (
            FlowSDE(self.noise_level, None, self.last_step_std),
            self.num_action_inference_steps,
            torch.ones(1, 1),
        )
        times = [1 - step / count for step in range(count)] + [0]
        return [step for step in range(count) if sde.step(x, x, *times[step : step + 2])[1] > 0]

    def made_from(self) -> dict[str, Any]:
        # An iteration's rollouts are shared among processes, and kept: so who learns from what stays too.
        names = ("per_device_train_batch_size", "gradient_accumulation_steps")
        return super().made_from() | {name: getattr(self, name) for name in names} | {"processes": self.world_size}


class RepeatSampler(Sampler[list[int]]):
    """Which scenes a process needs at each of its steps: those of the whole generation that the step belongs to.

    The groups of one optimizer step are the same however many processes share them. Who takes which goes round from
    step to step: tasks come in turn, and a process that met the same ones always would wait, or be waited for.
    """

    def __init__(self, args: AIMGRPOConfig, num_scenes: int, rank: int, world_size: int):
        self.groups = args.per_device_train_batch_size // args.num_generations  # of a process's step
        self.steps, self.repeats = args.steps_per_generation, args.steps_per_generation * args.num_iterations
        self.rank, self.world_size = rank, world_size
        self.per_generation = self.steps * world_size * self.groups
        self.generations = num_scenes // self.per_generation
        if not self.generations:
            raise ValueError(
                f"train_dataset has {num_scenes} scenes; expected at least the {self.per_generation} of an iteration."
            )

    def __len__(self) -> int:
        return self.generations * self.repeats

    def __iter__(self) -> Iterator[list[int]]:
        for generation in range(self.generations):
            mine = [
                (step * self.world_size + (self.rank + step) % self.world_size) * self.groups + group
                for step in range(generation * self.steps, (generation + 1) * self.steps)
                for group in range(self.groups)
            ]
            yield from [mine] * self.repeats


class AIMGRPOTrainer(CheckpointedTrainer):
    """Trains the action head of a pipeline by GRPO; video and value branch stay as they are, to the last bit.

    Args:
        pipe: the stage 1 pipeline. Its model is trained in place.
        reward_funcs: plain callables, see `rewards.py`; the two of the paper if not given.
        args: see [`AIMGRPOConfig`].
        train_dataset, eval_dataset: [`Scenes`], for RL and for validation.

    Logs beside TRL's metrics: `rollout/success_rate`, `rollout/value_hit` (share of landing points in the high region
    of the predicted map), `ratio_max`, `rollout/lost`, seconds of simulation, inference and learning.

    Raises:
        ValueError: for arguments that don't fit together, and FloatingPointError for a reward that isn't finite.
    """

    def __init__(
        self,
        pipe: AIMPipeline,
        args: AIMGRPOConfig,
        train_dataset: Scenes,
        reward_funcs: Sequence[RewardFunction] | None = None,
        eval_dataset: Scenes | None = None,
        **kwargs,
    ):
        self.reward_funcs = list((value_map_reward, success_reward) if reward_funcs is None else reward_funcs)
        weights = [1.0] * len(self.reward_funcs) if args.reward_weights is None else args.reward_weights
        if len(weights) != len(self.reward_funcs):
            raise ValueError(f"{len(weights)} reward_weights for {len(self.reward_funcs)} reward_funcs.")
        self.reward_weights = weights
        for name, scenes, purpose in (("train", train_dataset, "rl"), ("eval", eval_dataset, "validation")):
            if scenes is not None and scenes.purpose != purpose:
                raise ValueError(f"{name}_dataset has scenes for {scenes.purpose}; expected scenes for {purpose}.")
        scale = pipe.config.action_noise_scale if args.action_noise_scale is None else args.action_noise_scale
        check_action_noise_scale(scale)
        last = args.num_action_inference_steps - 1
        if scale < 1 and args.random_steps != [last]:
            raise ValueError(
                f"action_noise_scale is {scale} and random_steps {args.random_steps}: all steps but the last renew "
                f"noise in whole. Give random_steps=[{last}] with last_step_std, or action_noise_scale=1."
            )
        pipe.register_to_config(action_noise_scale=scale)  # it will be used as it has practised
        pipe.to(args.device)
        pipe.model.eval()
        pipe.set_progress_bar_config(disable=True)
        self.pipe = pipe
        scheduler = with_steps(pipe.action_scheduler, args.num_action_inference_steps, args.device)
        times = scheduler.sigmas.double().tolist()
        mask = pipe.processor.moving_dimensions.to(args.device)
        sde = FlowSDE(args.noise_level, args.noise_modes, args.last_step_std)
        sde.basis(pipe.model.config.action_horizon)  # more modes than actions are refused here, before any rollout
        policy = ActionPolicy(pipe.model, times, sde, mask)
        super().__init__(model=policy, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("the action head is small and all else is frozen: GRPO runs on whole models (DDP).")
        self._collector: Collector | None = None
        self._buffer: list[list[Group]] = []  # of this generation: the kept groups of each of its steps
        self._tokens = 0.0  # of this generation, by optimizer step and process: what the loss is divided by
        self._step = 0  # batches so far
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self.add_callback(_Safety(self))

    # ------------------------------------------------------------------------------------------------------ data

    @property
    def scenes(self) -> dict[str, Scenes]:
        """What was practised on, and what was looked at meanwhile."""
        return {"rl": self.train_dataset} | ({} if self.eval_dataset is None else {"validation": self.eval_dataset})

    def get_train_dataloader(self) -> DataLoader:
        # Not prepared by accelerate: the sampler gives each process its own scenes already.
        sampler = RepeatSampler(
            self.args, len(self.train_dataset), self.accelerator.process_index, self.accelerator.num_processes
        )
        return DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=list)

    def training_step(self, model, inputs: list[Scene], num_items_in_batch=None):
        args = self.args
        position = self._step % (args.steps_per_generation * args.num_iterations)
        if position == 0:
            self._generate(inputs, generation=self._step // (args.steps_per_generation * args.num_iterations))
        groups = self._buffer[position % args.steps_per_generation]
        self._step += 1
        began = perf_counter()
        loss = super().training_step(model, groups)
        self._metrics["time/learning"].append(perf_counter() - began)
        return loss

    def _prepare_inputs(self, groups: list[Group]) -> list[Group]:
        return groups

    # -------------------------------------------------------------------------------------------------- rollouts

    @property
    def collector(self) -> Collector:
        if self._collector is None:
            args = self.args
            environments = VectorEnvironment(
                args.suite,
                args.split,
                self._workers(),
                timeout=args.env_timeout,
                purpose="rl",
                discard_lost=True,
            )
            self._collector = Collector(
                *(self.pipe, self.model, environments, args.num_generations),
                *(args.random_steps, args.num_random_steps or len(args.random_steps), args.num_inference_steps),
                *(args.max_completion_length, args.seed),
            )
        return self._collector

    def _workers(self) -> int:
        return self.args.num_env_workers or cores_of_this_process()

    def _generate(self, scenes: list[Scene], generation: int) -> None:
        """Rolls out the groups of one iteration and scores them."""
        args, collector = self.args, self.collector
        before, lost, control_steps = collector.seconds.copy(), collector.lost, collector.control_steps
        total = len(scenes) * args.num_generations
        progress = tqdm(total=total, unit="episode", desc=f"rollout {generation}", leave=False)
        with progress, self.accelerator.autocast():  # in the precision of the learner, or the ratio wouldn't be 1
            results = collector.collect(scenes, generation, progress)
        for name in ("simulation", "inference"):
            self._metrics[f"time/{name}"].append(collector.seconds[name] - before[name])
        self._metrics["rollout/lost"].append(collector.lost - lost)
        self._metrics["rollout/control_steps"].append(collector.control_steps - control_steps)
        self._check_episodes(generation, sum(len(result[1]) for result in results if result), collector.reasons)
        scored = [None if result is None else (result[0], self._rewards(result[1])) for result in results]
        self._log_outcomes([outcome for result in results if result for outcome in result[1]])
        self._score([result for result in scored if result is not None])
        per_step = len(scenes) // args.steps_per_generation
        self._buffer = [[] for _ in range(args.steps_per_generation)]
        for index, result in enumerate(scored):
            if result is not None and result[0].advantages is not None:
                self._buffer[index // per_step].append(result[0])
        # Every optimizer step's loss is divided by the same number, whatever it got of the groups that were kept.
        tokens = sum(self._weights(group).sum().item() for groups in self._buffer for group in groups)
        everywhere = self.accelerator.reduce(torch.tensor(tokens, device=args.device, dtype=torch.float64))
        self._tokens = everywhere.item() / (args.steps_per_generation * self.accelerator.num_processes)

    def _check_episodes(self, generation: int, kept: int, reasons: list[str]) -> None:
        """Raises SimulatorFailed if no process kept an episode: there is nothing to learn from, and never will be."""
        everywhere = _gather_objects({"kept": kept, "reasons": reasons}, self.accelerator)
        if not any(one["kept"] for one in everywhere):
            told = sorted({reason for one in everywhere for reason in one["reasons"]})
            raise SimulatorFailed(
                f"every episode of iteration {generation} was lost: {'; '.join(told[:3])}. See what the environments "
                "said above, and try one by itself: aim-hf evaluate."
            )

    def _rewards(self, outcomes: list[Outcome]) -> list[list[torch.Tensor]]:
        """Of each reward function, each episode's: a scalar, or one for each chunk."""
        rewards = []
        for function in self.reward_funcs:
            given = [torch.as_tensor(reward, dtype=torch.float64) for reward in function(outcomes)]
            if len(given) != len(outcomes):
                raise ValueError(f"{_name(function)} gave {len(given)} rewards for {len(outcomes)} episodes.")
            for outcome, reward in zip(outcomes, given):
                chunks = len(outcome.targets)
                if reward.shape not in ((), (chunks,)):
                    raise ValueError(
                        f"{_name(function)} gave a reward of shape {tuple(reward.shape)} to an episode of {chunks} "
                        "chunks; expected a number, or one for each chunk."
                    )
                if not torch.isfinite(reward).all():
                    raise FloatingPointError(
                        f"the reward {_name(function)} is {reward.tolist()} for {outcome.task}, seed {outcome.seed}."
                    )
            rewards.append(given)
        return rewards

    def _score(self, scored: list[tuple[Group, list[list[torch.Tensor]]]]) -> None:
        """Sets the groups' advantages; a group whose returns don't differ has none.

        An episode's return is the weighted sum of its rewards, dense ones averaged over its chunks. Each of its chunks
        gets what the return is above the group's mean, with the chunk's own dense reward, above the mean of the
        group's same chunk, in place of their average.
        """
        returns, deviations = [], []
        for _, rewards in scored:
            means = torch.stack([torch.stack([reward.mean() for reward in given]) for given in rewards])
            for function, values in zip(self.reward_funcs, means):
                self._metrics[f"rewards/{_name(function)}/mean"].append(values.mean().item())
                self._metrics[f"rewards/{_name(function)}/std"].append(values.std().item())
            returns.append(torch.tensor(self.reward_weights, dtype=torch.float64) @ means)
            deviations.append(returns[-1].std().item())
            self._metrics["reward"].append(returns[-1].mean().item())
            self._metrics["reward_std"].append(deviations[-1])
            self._metrics["frac_reward_zero_std"].append(float(deviations[-1] < 1e-8))
        if self.args.scale_rewards == "batch":
            mine = {"returns": torch.cat(returns).tolist() if returns else []}
            everything = [r for one in _gather_objects(mine, self.accelerator) for r in one["returns"]]
        for (group, rewards), deviation in zip(scored, deviations):
            if deviation < 1e-8:
                continue
            chunks = int(group.num_chunks.max())
            inside = torch.arange(chunks) < group.num_chunks[:, None]  # (G, C)
            advantages = torch.zeros(inside.shape, dtype=torch.float64)
            for weight, given in zip(self.reward_weights, rewards):
                if given[0].ndim == 0:
                    advantages += weight * (torch.stack(given) - torch.stack(given).mean())[:, None]
                    continue
                dense = torch.zeros_like(advantages)
                for row, reward in enumerate(given):
                    dense[row, : len(reward)] = reward
                mean = (dense * inside).sum(dim=0) / inside.sum(dim=0)
                advantages += weight * (dense - mean)
            scale = {"group": deviation, "none": 1.0}.get(self.args.scale_rewards)
            scale = torch.tensor(everything).std().item() if scale is None else scale
            group.advantages = (advantages * inside / (scale + 1e-4)).float()

    def _log_outcomes(self, outcomes: list[Outcome]) -> None:
        hits, shown = zip(*(value_hits(outcome) for outcome in outcomes)) if outcomes else ((0,), (0,))
        self._metrics["rollout/success_rate"] += [float(outcome.success) for outcome in outcomes]
        self._metrics["rollout/value_hit"].append(sum(hits) / max(sum(shown), 1))
        self._metrics["completions/mean_length"] += [float(outcome.steps) for outcome in outcomes]

    # ------------------------------------------------------------------------------------------------------ loss

    def compute_loss(self, model, groups: list[Group], return_outputs=False, num_items_in_batch=None):
        """Eq. (13): - min(ratio * A, clip(ratio) * A) + beta * KL, over the groups of one batch."""
        inputs = [
            {name: value.to(self.args.device) for name, value in group.tensors().items() if name in POLICY_INPUTS}
            for group in groups
        ]
        outputs, loss = model(inputs)
        for group, output in zip(groups, outputs):
            group_loss, metrics = self._group_loss(group, *output)
            loss = loss + group_loss
            for name, value in metrics.items():
                self._metrics[name].append(value)
        if self._tokens:
            loss = loss / self._tokens
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.state.global_step}.")
        return loss

    def _group_loss(
        self, group: Group, log_probs: torch.Tensor, divergence: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        args, device = self.args, self.args.device
        advantages = group.advantages.to(device)[:, :, None, None]
        log_ratio = log_probs - group.log_probs.to(device)
        if args.importance_sampling_level == "sequence":
            share = self._executed_share().to(log_ratio)
            of_chunk = (log_ratio * share).sum(dim=(2, 3), keepdim=True) / (log_ratio.shape[2] * share.sum())
            log_ratio = of_chunk.expand_as(log_probs)
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - args.epsilon, 1 + args.epsilon_high)
        loss = -torch.minimum(ratio * advantages, clipped * advantages) + args.beta * divergence
        weights = self._weights(group).to(device)
        inside = weights > 0

        def mean(values: torch.Tensor) -> float:
            return values.expand_as(weights)[inside].mean().item()

        metrics = {
            "kl": mean(divergence.detach()),
            "clip_ratio/low_mean": mean(((ratio < 1 - args.epsilon) & (advantages < 0)).float()),
            "clip_ratio/high_mean": mean(((ratio > 1 + args.epsilon_high) & (advantages > 0)).float()),
            "ratio_max": ratio.detach()[inside].max().item(),
        }
        metrics["clip_ratio/region_mean"] = metrics["clip_ratio/low_mean"] + metrics["clip_ratio/high_mean"]
        return (loss * weights).sum(), metrics

    def _weights(self, group: Group) -> torch.Tensor:
        """What each token counts, (G, C, S, M): nothing beyond an episode's end, nor for the lookahead, which the next
        chunk chooses again."""
        C, S = group.log_probs.shape[1:3]
        share = self._executed_share()
        inside = (torch.arange(C) < group.num_chunks[:, None]).float()
        if self.args.loss_type == "grpo":
            inside = inside / group.num_chunks[:, None] / (S * share.sum())
        return inside[:, :, None, None] * share.expand(S, -1)

    def _executed_share(self) -> torch.Tensor:
        """How much of each mode is executed, (M,): 1 or 0 where modes are actions."""
        basis = self.model.sde.basis(self.pipe.model.config.action_horizon)
        return basis[:, : self.pipe.actions_per_chunk].square().sum(dim=1).float()

    # --------------------------------------------------------------------------------------------- logs, evaluation

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs |= self._drained_metrics()
        super().log(logs, *args, **kwargs)

    def _drained_metrics(self) -> dict[str, float]:
        """Means over all processes since the last call; `ratio_max` is a maximum, and seconds and counts are sums."""
        mine = {name: list(values) for name, values in self._metrics.items() if values}
        self._metrics.clear()
        merged: dict[str, list[float]] = defaultdict(list)
        for one in _gather_objects(mine, self.accelerator):
            for name, values in one.items():
                merged[name] += values
        how = {"ratio_max": max, "rollout/lost": sum, "rollout/control_steps": sum}
        metrics = {
            name: sum(values) if name.startswith("time/") else how.get(name, lambda v: sum(v) / len(v))(values)
            for name, values in merged.items()
        }
        if metrics.get("time/simulation"):
            metrics["rollout/control_steps_per_core_second"] = (
                metrics["rollout/control_steps"] / metrics["time/simulation"] / self._workers()
            )
            spent = sum(value for name, value in metrics.items() if name.startswith("time/"))
            metrics["time/simulation_share"] = metrics["time/simulation"] / spent
        return metrics

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Success of the policy without its random steps, on the scenes of `eval_dataset`: held out from training, and
        apart from those that results are reported on."""
        scenes = self.eval_dataset if eval_dataset is None else eval_dataset
        seeds: dict[str, list[int]] = defaultdict(list)
        for scene in (scenes[index] for index in range(len(scenes))):
            seeds[scene.task].append(scene.seed)
        # As many of each task for every process; the odd ones go round.
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        by_task = {task: seeds[task][(rank + n) % processes :: processes] for n, task in enumerate(seeds)}
        steps = {name: getattr(self.args, name) for name in ("num_inference_steps", "num_action_inference_steps")}
        policy = AIMPolicy(self.pipe, {"policy": "in training"}, **steps)
        counts: dict[str, list[bool]] = defaultdict(list)
        with (
            VectorEnvironment(
                self.args.suite, self.args.split, self._workers(), self.args.env_timeout, scenes.purpose
            ) as environments,
            tqdm(total=sum(map(len, by_task.values())), unit="episode", desc="evaluation", leave=False) as progress,
        ):
            for task, seeds in by_task.items():
                for first in range(0, len(seeds), self.args.per_device_eval_batch_size):
                    batch = seeds[first : first + self.args.per_device_eval_batch_size]
                    for result in run_episodes(policy, environments, task, batch):
                        if not isinstance(result, SeedRejected):
                            counts[task].append(result.success)
                        progress.update()
        merged: dict[str, list[bool]] = defaultdict(list)
        for one in _gather_objects(dict(counts), self.accelerator):
            for task, successes in one.items():
                merged[task] += successes
        everything = [success for successes in merged.values() for success in successes]
        if not everything:
            raise SimulatorFailed(f"none of the {len(scenes)} scenes of the evaluation could be set up.")
        low, high = wilson_interval(sum(everything), len(everything))
        metrics = {
            f"{metric_key_prefix}_success_rate": sum(everything) / len(everything),
            f"{metric_key_prefix}_success_low": low,
            f"{metric_key_prefix}_success_high": high,
            f"{metric_key_prefix}_episodes": len(everything),
        }
        for task in scenes.tasks:
            if merged[task]:
                metrics[f"{metric_key_prefix}_success/{task}"] = sum(merged[task]) / len(merged[task])
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --------------------------------------------------------------------------------------------------- resume

    def save_to_checkpoint(self, folder: Path) -> None:
        tensors = {
            f"{step}.{number}.{name}": tensor.contiguous()
            for step, groups in enumerate(self._buffer)
            for number, group in enumerate(groups)
            for name, tensor in group.tensors().items()
        }
        scenes = [[[group.scene.task, group.scene.seed] for group in groups] for groups in self._buffer]
        described = {"scenes": json.dumps(scenes), "tokens": repr(self._tokens)}
        save_file(tensors, self._buffer_file(folder), metadata=described)

    def resume_buffer(self) -> None:
        """Goes on in the middle of an iteration: with the episodes that it was learning from."""
        if self.resumed_from is None:
            return
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        path = self._buffer_file(self.resumed_from)
        with reading(path, MEND), safe_open(path, "pt") as file:
            described = file.metadata()
            self._tokens = float(described["tokens"])
            self._buffer = []
            names = defaultdict(dict)
            for key in file.keys():
                step, number, name = key.split(".", 2)
                names[int(step), int(number)][name] = file.get_tensor(key)
            for step, scenes in enumerate(json.loads(described["scenes"])):
                self._buffer.append(
                    [Group(Scene(*scene), **names[step, number]) for number, scene in enumerate(scenes)]
                )

    def _buffer_file(self, folder: Path) -> Path:
        return folder / f"rollouts-{self.accelerator.process_index}.safetensors"

    def close(self) -> None:
        """Ends the environments' processes."""
        if self._collector is not None:
            self._collector.environments.close()
            self._collector = None


class _Safety(TrainerCallback):
    """Stops a run that drifts from its reference, or that earns reward and loses success."""

    def __init__(self, trainer: AIMGRPOTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.resume_buffer()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if args.max_kl is not None and (logs or {}).get("kl", 0.0) > args.max_kl:
            logger.warning(f"stopped: the KL divergence {logs['kl']:.4g} exceeds max_kl={args.max_kl}.")
            control.should_training_stop = True

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        evaluated = _evaluations(state.log_history)
        if not evaluated:  # it is the one before anything was rolled out
            return
        # Where the run began: the first rollouts, which stage 1 made, and the first evaluation.
        first_reward = next(entry[VALUE_REWARD] for entry in state.log_history if VALUE_REWARD in entry)
        first_success = next(entry[SUCCESS] for entry in state.log_history if SUCCESS in entry)
        reward, success, _ = evaluated[-1]
        hacked = [r > first_reward and success_high < first_success for r, _, success_high in evaluated]
        self.trainer.log({"eval_reward_hacking": float(hacked[-1])})
        patience = args.hacking_patience
        if patience is not None and len(hacked) >= patience and all(hacked[-patience:]):
            logger.warning(
                f"stopped: the value map's reward rose from {first_reward:.3f} to {reward:.3f}, while success fell "
                f"from {first_success:.0%} to {success:.0%}."
            )
            control.should_training_stop = True


def _evaluations(log_history: list[dict]) -> list[tuple[float, float, float]]:
    """Of each evaluation after rollouts: their mean value map reward since the one before, success, and its upper
    bound."""
    evaluated, rewards = [], []
    for entry in log_history:
        if VALUE_REWARD in entry:
            rewards.append(entry[VALUE_REWARD])
        if SUCCESS in entry and rewards:
            evaluated.append((sum(rewards) / len(rewards), entry[SUCCESS], entry["eval_success_high"]))
            rewards = []
    return evaluated


def _name(function: RewardFunction) -> str:
    return getattr(function, "__name__", None) or getattr(function, "func", function).__name__


def _gather_objects(mine: dict, accelerator) -> list[dict]:
    """The dict of every process, in all of them."""
    if accelerator.num_processes == 1:
        return [mine]
    everyone = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(everyone, mine)
    return everyone

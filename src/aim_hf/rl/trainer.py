"""Stage 2: GRPO on the action head, eq. (12) and (13), with the Hugging Face Trainer.

One iteration: groups of episodes are rolled out from the same scenes, rewarded, and compared within their group; then
the head takes `steps_per_generation / gradient_accumulation_steps` optimizer steps on them, `num_iterations` times.
Names are those of TRL's `GRPOTrainer` where the meaning is the same: a completion is an episode, a token is an action
(or a mode of a chunk's actions) at one of the random denoising steps of its chunk.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..pipeline.pipeline_aim import AIMPipeline
from ..pipeline.sampling import with_steps
from ..rollout.policies import AIMPolicy
from ..rollout.vector_env import VectorEnvironment, cores_of_this_process
from ..training.arguments import SAMPLING
from ..training.checkpoints import CheckpointedTrainer
from ..utils.checks import check_kind
from .advantages import Rewards, group_advantages, group_returns, mean_rewards
from .buffer import Buffer, Group
from .collector import Collector
from .config import AIMGRPOConfig
from .loss import policy_loss, token_weights
from .metrics import check_episodes, gathered, merged_metrics, scene_successes, success_metrics
from .policy import POLICY_INPUTS, ActionPolicy, FlowSDE
from .rewards import (
    Outcome,
    RewardFunction,
    evaluate_rewards,
    reward_name,
    success_reward,
    value_hits,
    value_map_reward,
)
from .safety import Safety
from .scenes import PracticeScene, RepeatSampler, Scenes


class AIMGRPOTrainer(CheckpointedTrainer):
    """Trains the action head of a pipeline by GRPO; all weights that RGB and value maps depend on stay as they are.

    Args:
        pipe: the stage 1 pipeline. Its model is trained in place.
        reward_funcs: callables, see `rewards.py`; the two rewards of the paper if not given.
        args: see [`AIMGRPOConfig`].
        train_dataset, eval_dataset: [`Scenes`], for RL and for validation.

    Logs, in addition to TRL's metrics: `rollout/success_rate`, `rollout/value_hit` (share of landing points in the
    high region of the predicted map), `ratio_max`, `rollout/lost`, seconds of simulation, inference and learning.

    Raises:
        ValueError: for arguments that don't fit together; FloatingPointError for a reward that isn't finite.
    """

    def __init__(
        self,
        pipe: AIMPipeline,
        args: AIMGRPOConfig,
        train_dataset: Scenes,
        reward_funcs: Sequence[RewardFunction] | None = None,
        eval_dataset: Scenes | None = None,
        **kwargs: Any,
    ):
        check_kind("pipe", pipe, AIMPipeline)
        check_kind("args", args, AIMGRPOConfig)
        check_kind("train_dataset", train_dataset, Scenes)
        self.reward_funcs = list((value_map_reward, success_reward) if reward_funcs is None else reward_funcs)
        weights = [1.0] * len(self.reward_funcs) if args.reward_weights is None else args.reward_weights
        if len(weights) != len(self.reward_funcs):
            raise ValueError(f"{len(weights)} reward_weights for {len(self.reward_funcs)} reward_funcs.")
        self.reward_weights = weights
        train_dataset.check("train_dataset", args.suite, "rl")
        if eval_dataset is not None:
            eval_dataset.check("eval_dataset", args.suite, "validation")
        args = args.for_pipeline(pipe.sampling_config)
        # Sampling in rollouts and evaluation. The trained pipeline keeps the noise scale, not the numbers of steps.
        self.sampling_config = replace(pipe.sampling_config, **{name: getattr(args, name) for name in SAMPLING})
        pipe.sampling_config = replace(pipe.sampling_config, action_noise_scale=args.action_noise_scale)
        pipe.to(args.device).model.float().eval()  # in float32, since small updates vanish in lower precision
        pipe.set_progress_bar_config(disable=True)
        self.pipe = pipe
        scheduler = with_steps(pipe.action_scheduler, args.num_action_inference_steps, args.device)
        times = [1.0, *scheduler.sigmas[1:].double().tolist()]  # shifts such as 0.2 round the first sigma to above 1
        mask = pipe.processor.moving_dimensions.to(args.device)
        sde = FlowSDE(args.noise_level, args.noise_modes, args.last_step_std)
        sde.basis(pipe.model.config.action_horizon)  # raises ValueError for more modes than actions
        policy = ActionPolicy(pipe.model, times, sde, mask)
        super().__init__(model=policy, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("the action head is small and all else is frozen: GRPO runs on whole models (DDP).")
        self._collector: Collector | None = None
        self._buffer = Buffer()  # of this iteration
        self._step = 0  # number of batches so far
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self.add_callback(Safety(self.log))

    # ------------------------------------------------------------------------------------------------------ data

    @property
    def scenes(self) -> dict[str, Scenes]:
        """Training and validation scenes, by their purpose."""
        return {"rl": self.train_dataset} | ({} if self.eval_dataset is None else {"validation": self.eval_dataset})

    def get_train_dataloader(self) -> DataLoader:
        # Not prepared by accelerate, since the sampler distributes scenes over processes.
        sampler = RepeatSampler(
            self.args, len(self.train_dataset), self.accelerator.process_index, self.accelerator.num_processes
        )
        return DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=list)

    def training_step(
        self, model: torch.nn.Module, inputs: list[PracticeScene], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        args = self.args
        position = self._step % (args.steps_per_generation * args.num_iterations)
        if position == 0:
            self._generate(inputs, generation=self._step // (args.steps_per_generation * args.num_iterations))
        groups = self._buffer.groups[position % args.steps_per_generation]
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
                self.pipe,
                self.model,
                environments,
                self.sampling_config,
                num_generations=args.num_generations,
                random_steps=args.random_steps,
                num_random_steps=args.num_random_steps or len(args.random_steps),
                max_completion_length=args.max_completion_length,
                seed=args.seed,
            )
        return self._collector

    def _workers(self) -> int:
        """Number of environment processes."""
        return self.args.num_env_workers or cores_of_this_process()

    def _generate(self, scenes: list[PracticeScene], generation: int) -> None:
        """Rolls out the groups of one iteration and scores them."""
        args, collector = self.args, self.collector
        before, lost, control_steps = collector.seconds.copy(), collector.lost, collector.control_steps
        total = len(scenes) * args.num_generations
        progress = tqdm(total=total, unit="episode", desc=f"rollout {generation}", leave=False)
        with progress, self.accelerator.autocast():  # the learner's precision, so that the first ratios are 1
            results = collector.collect(scenes, generation, progress)
        for name in ("simulation", "inference"):
            self._metrics[f"time/{name}"].append(collector.seconds[name] - before[name])
        self._metrics["rollout/lost"].append(collector.lost - lost)
        self._metrics["rollout/control_steps"].append(collector.control_steps - control_steps)
        outcomes = [outcome for result in results if result for outcome in result[1]]
        check_episodes(generation, len(outcomes), collector.reasons)
        scored = [
            None if result is None else (result[0], evaluate_rewards(self.reward_funcs, result[1]))
            for result in results
        ]
        self._log_outcomes(outcomes)
        self._score([result for result in scored if result is not None])
        per_step = len(scenes) // args.steps_per_generation
        kept: list[list[Group]] = [[] for _ in range(args.steps_per_generation)]
        for index, result in enumerate(scored):
            if result is not None and result[0].advantages is not None:
                kept[index // per_step].append(result[0])
        # The loss of every batch is divided by the same number of tokens, for any number of its groups.
        tokens = sum(self._weights(group).sum().item() for groups in kept for group in groups)
        all_tokens = self.accelerator.reduce(torch.tensor(tokens, device=args.device, dtype=torch.float64)).item()
        self._buffer = Buffer(kept, all_tokens / (args.steps_per_generation * self.accelerator.num_processes))

    def _score(self, scored: list[tuple[Group, Rewards]]) -> None:
        """Sets the groups' advantages, and logs rewards. A group with equal returns gets no advantages."""
        weights, to_go = self.reward_weights, self.args.return_to_go
        all_returns = [group_returns(rewards, weights, to_go) for _, rewards in scored]
        deviations = [returns.std().item() for returns in all_returns]
        for (_, rewards), returns, deviation in zip(scored, all_returns, deviations):
            for function, values in zip(self.reward_funcs, mean_rewards(rewards)):
                self._metrics[f"rewards/{reward_name(function)}/mean"].append(values.mean().item())
                self._metrics[f"rewards/{reward_name(function)}/std"].append(values.std().item())
            self._metrics["reward"].append(returns.mean().item())
            self._metrics["reward_std"].append(deviation)
            self._metrics["frac_reward_zero_std"].append(float(deviation < 1e-8))
        batch_deviation = None
        if self.args.scale_rewards == "batch":
            gathered_returns = gather_object([value for returns in all_returns for value in returns.tolist()])
            batch_deviation = torch.tensor(gathered_returns).std().item()
        for (group, rewards), deviation in zip(scored, deviations):
            if deviation >= 1e-8:
                scale = {"group": deviation, "none": 1.0, "batch": batch_deviation}[self.args.scale_rewards]
                group.advantages = group_advantages(rewards, weights, group.num_chunks, scale, to_go)

    def _log_outcomes(self, outcomes: list[Outcome]) -> None:
        for hits, shown in map(value_hits, outcomes):
            self._metrics["rollout/value_hit"] += [1.0] * hits + [0.0] * (shown - hits)
        self._metrics["rollout/success_rate"] += [float(outcome.success) for outcome in outcomes]
        self._metrics["completions/mean_length"] += [float(outcome.steps) for outcome in outcomes]

    # ------------------------------------------------------------------------------------------------------ loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        groups: list[Group],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Eq. (13): - min(ratio * A, clip(ratio) * A) + beta * KL, over the groups of one batch."""
        inputs = [
            {name: value.to(self.args.device) for name, value in group.tensors().items() if name in POLICY_INPUTS}
            for group in groups
        ]
        outputs, loss = model(inputs)
        for group, (log_probs, divergence) in zip(groups, outputs):
            group_loss, metrics = self._group_loss(group, log_probs, divergence)
            loss = loss + group_loss
            for name, value in metrics.items():
                self._metrics[name].append(value)
        if self._buffer.tokens:
            loss = loss / self._buffer.tokens
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.state.global_step}.")
        return loss

    def _group_loss(
        self, group: Group, log_probs: torch.Tensor, divergence: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Sum of the weighted token losses of a group, and its metrics."""
        args, device = self.args, self.args.device
        advantages = group.advantages.to(device)
        loss, ratio = policy_loss(
            log_probs,
            group.log_probs.to(device),
            advantages,
            divergence,
            epsilon=args.epsilon,
            epsilon_high=args.epsilon_high,
            beta=args.beta,
        )
        weights = self._weights(group).to(device)
        inside, advantages = weights > 0, advantages[:, :, None, None]

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
        """Loss weight of each token, (G, C, S, M)."""
        basis = self.model.sde.basis(self.pipe.model.config.action_horizon)
        # The share of each mode that lies in executed actions, (M,); 1 or 0 if modes are actions.
        executed = basis[:, : self.pipe.actions_per_chunk].square().sum(dim=1).float()
        return token_weights(group.num_chunks, *group.log_probs.shape[1:3], executed, self.args.loss_type)

    # --------------------------------------------------------------------------------------------- logs, evaluation

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= merged_metrics(gathered(self._metrics), self._workers())
            self._metrics.clear()
        super().log(logs, *args, **kwargs)

    def evaluate(
        self,
        eval_dataset: Scenes | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Success of the deterministic policy on validation scenes. These are neither training scenes nor the scenes
        of reported results."""
        scenes = self.eval_dataset if eval_dataset is None else eval_dataset
        check_kind("eval_dataset", scenes, Scenes)
        scenes.check("eval_dataset", self.args.suite)
        policy = AIMPolicy(self.pipe, {"policy": "in training"}, self.sampling_config)
        with VectorEnvironment(
            self.args.suite, self.args.split, self._workers(), self.args.env_timeout, scenes.purpose
        ) as environments:
            successes = gathered(scene_successes(policy, environments, scenes, self.args.per_device_eval_batch_size))
        metrics = success_metrics(successes, scenes, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --------------------------------------------------------------------------------------------------- resume

    def save_to_checkpoint(self, folder: Path) -> None:
        self._buffer.save(self._buffer_file(folder))

    def begin(self) -> None:
        """Sets the batch count, and loads the current iteration's episodes of a resumed run."""
        self._metrics.clear()
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        if self.resumed_from is not None:
            self._buffer = Buffer.load(self._buffer_file(self.resumed_from))

    def _buffer_file(self, folder: Path) -> Path:
        return folder / f"rollouts-{self.accelerator.process_index}.safetensors"

    def close(self) -> None:
        """Ends the environment processes."""
        if self._collector is not None:
            self._collector.environments.close()
            self._collector = None

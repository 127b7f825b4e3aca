"""Stops runs that diverge from the reference policy, or hack the reward."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from .config import AIMGRPOConfig
from .contact_reward import contact_reward
from .rewards import value_map_reward

# Rewards that the policy's own value maps give, which may rise without success.
MAP_REWARDS = [f"rewards/{function.__name__}/mean" for function in (value_map_reward, contact_reward)]
SUCCESS = "eval_success_rate"

logger = logging.get_logger(__name__)


class Safety(TrainerCallback):
    """Stops a run whose KL divergence exceeds `max_kl`, or one of whose value map rewards rises while success falls.

    Args:
        log: the trainer's `log`.
    """

    def __init__(self, log: Callable[[dict[str, float]], None]):
        self.log = log

    def on_log(
        self,
        args: AIMGRPOConfig,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if args.max_kl is not None and (logs or {}).get("kl", 0.0) > args.max_kl:
            logger.warning(f"stopped: the KL divergence {logs['kl']:.4g} exceeds max_kl={args.max_kl}.")
            control.should_training_stop = True

    def on_evaluate(
        self,
        args: AIMGRPOConfig,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        watched = [name for name in MAP_REWARDS if any(name in entry for entry in state.log_history)]
        if not watched:  # no such reward, or the evaluation before the first rollouts
            return
        first_success = next(entry[SUCCESS] for entry in state.log_history if SUCCESS in entry)
        hacking, patience = False, args.hacking_patience
        for name in watched:
            # Baselines: the first rollouts, by the stage 1 policy, and the first evaluation.
            first_reward = next(entry[name] for entry in state.log_history if name in entry)
            evaluated = _evaluations(state.log_history, name)
            reward, success, _ = evaluated[-1]
            hacked = [value > first_reward and success_high < first_success for value, _, success_high in evaluated]
            hacking |= hacked[-1]
            if patience is not None and len(hacked) >= patience and all(hacked[-patience:]):
                logger.warning(
                    f"stopped: {name} rose from {first_reward:.3f} to {reward:.3f}, while success fell from "
                    f"{first_success:.0%} to {success:.0%}."
                )
                control.should_training_stop = True
        self.log({"eval_reward_hacking": float(hacking)})


def _evaluations(log_history: list[dict[str, Any]], reward: str) -> list[tuple[float, float, float]]:
    """Mean of a reward since the previous evaluation, success rate and its upper bound, of each evaluation after
    rollouts."""
    evaluated, rewards = [], []
    for entry in log_history:
        if reward in entry:
            rewards.append(entry[reward])
        if SUCCESS in entry and rewards:
            evaluated.append((sum(rewards) / len(rewards), entry[SUCCESS], entry["eval_success_high"]))
            rewards = []
    return evaluated

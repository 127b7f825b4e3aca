"""What ends a run that drifts from its reference, or that earns reward and loses success."""

from collections.abc import Callable

from transformers import TrainerCallback
from transformers.utils import logging

from .rewards import value_map_reward

VALUE_REWARD, SUCCESS = f"rewards/{value_map_reward.__name__}/mean", "eval_success_rate"

logger = logging.get_logger(__name__)


class Safety(TrainerCallback):
    """Stops a run that drifts from its reference, or that earns reward and loses success.

    Args:
        log: of the trainer.
    """

    def __init__(self, log: Callable[[dict[str, float]], None]):
        self.log = log

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
        self.log({"eval_reward_hacking": float(hacked[-1])})
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

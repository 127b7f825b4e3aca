"""Stage 2: GRPO on the action head."""

from .config import AIMGRPOConfig
from .contact_reward import contact_reward
from .rewards import Outcome, RewardFunction, success_reward, value_map_reward
from .scenes import PracticeScene, Scenes
from .trainer import AIMGRPOTrainer

__all__ = [
    "AIMGRPOConfig",
    "AIMGRPOTrainer",
    "Outcome",
    "RewardFunction",
    "PracticeScene",
    "Scenes",
    "contact_reward",
    "success_reward",
    "value_map_reward",
]

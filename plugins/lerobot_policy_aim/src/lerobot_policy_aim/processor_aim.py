"""LeRobot's processors around `AIMPolicy`.

They rename observations, add a batch axis and move tensors, and LeRobot's own steps make actions relative to the state
and absolute again, with `use_relative_actions`. They scale nothing: pictures stay in [0, 1], and the policy's
`AIMProcessor` scales actions. The normalizers are there because LeRobot's commands override their statistics.
"""

from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    ObservationProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    ProcessorStepRegistry,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from lerobot.utils.constants import OBS_STATE

from .configuration_aim import AIMPolicyConfig


@ProcessorStepRegistry.register("aim_current_state")
class CurrentStateStep(ObservationProcessorStep):
    """The states of a training window, (B, T, D), become its first one, (B, D), as LeRobot's next step expects it."""

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        state = observation.get(OBS_STATE)
        return observation if state is None or state.ndim < 3 else observation | {OBS_STATE: state[:, 0]}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        return features


def make_aim_pre_post_processors(
    config: AIMPolicyConfig, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """The preprocessor of a policy's batches, and the postprocessor of its actions."""
    steps, relative = make_default_policy_processor_steps(config, dataset_stats), config.relative_step()
    prepare = [steps.rename_observations, steps.add_batch_dim, CurrentStateStep()]
    return make_policy_processor_pipelines(
        input_steps=[*prepare, relative, steps.to_device, steps.normalize],
        output_steps=[
            steps.unnormalize,
            AbsoluteActionsProcessorStep(enabled=config.use_relative_actions, relative_step=relative),
            steps.to_cpu,
        ],
    )

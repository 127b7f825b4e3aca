"""A tiny random pipeline on the tabletop's canvas."""

from dataclasses import fields

from aim_hf.model.canvas import t_pose_canvas
from aim_hf.pipeline.sampling_config import SamplingConfig
from aim_hf.rollout.execution_config import ExecutionConfig
from aim_hf.rollout.policies import AIMPolicy

from ..fixtures_pipeline import make_pipeline, make_processor

CANVAS, HEAD, WRIST = (96, 96), (64, 96), (32, 48)


# Relative to the first pose: random actions tremble around it, and never press a bell by chance.
STATISTICS = {"q01": [-0.03] * 3 + [0.9] + [-0.1] * 3 + [0], "q99": [0.03] * 3 + [1] + [0.1] * 3 + [1]}
STATISTICS = {name: numbers * 2 for name, numbers in STATISTICS.items()}


def make_policy(seed: int = 0, action_lookahead_frames: int = 0, cameras: dict | None = None, **options) -> AIMPolicy:
    """With fields of `SamplingConfig` and of `ExecutionConfig`."""
    pipe = make_pipeline(seed=seed, action_lookahead_frames=action_lookahead_frames)
    cameras = cameras or t_pose_canvas(CANVAS, HEAD, WRIST)
    processor = make_processor(canvas_size=CANVAS, cameras=cameras, max_text_length=32, action_statistics=STATISTICS)
    pipe.register_modules(processor=processor)
    steps = {"num_inference_steps": 1, "num_action_inference_steps": 1}
    sampling = {field.name: options.pop(field.name) for field in fields(SamplingConfig) if field.name in options}
    return AIMPolicy(
        pipe, {"policy": f"random-{seed}"}, SamplingConfig(**steps | sampling), ExecutionConfig(**options)
    )

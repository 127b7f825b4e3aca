"""Recorded episodes, closed loops over them, and what the tests of the pipeline compare."""

import numpy as np
import torch

from aim_hf.pipeline.pipeline_aim import AIMPipeline
from aim_hf.pipeline.pipeline_output import AIMPipelineOutput

from ..fixtures_pipeline import HEAD, WRIST, make_observation, make_pose

SIZES = {"head_camera": HEAD, "left_camera": WRIST, "right_camera": WRIST}
INSTRUCTIONS = ["put the red block", "ring bell", "lift pot left"]
# What is no number of steps, rows or chunks.
ODD = (2.5, 2.0, True, "2", np.nan, 0, -1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_episode(pipe: AIMPipeline, rng, chunks: int) -> tuple[dict, list[tuple[list[dict], np.ndarray]]]:
    """A first observation, and what happened in each chunk: its observations and executed actions."""
    first = make_observation(rng)
    happened = []
    for _ in range(chunks):
        observations = [make_observation(rng) for _ in range(pipe.frames_per_chunk)]
        happened.append((observations, np.stack([make_pose(rng) for _ in range(pipe.actions_per_chunk)])))
    return first, happened


def roll_out(pipe: AIMPipeline, instructions, episodes, generator, **kwargs) -> list[AIMPipelineOutput]:
    """Closed loop over recorded episodes, one a row: outputs of every chunk."""
    session = pipe.start(instructions)
    outputs = [pipe([first for first, _ in episodes], session=session, generator=generator, **kwargs)]
    for c in range(len(episodes[0][1])):
        pipe.append(session, [h[c][0] for _, h in episodes], np.stack([h[c][1] for _, h in episodes]))
        outputs.append(pipe(session=session, generator=generator, **kwargs))
    return outputs


def assert_same(a: AIMPipelineOutput, b: AIMPipelineOutput, rows=slice(None), others=slice(None), atol: float = 0):
    for field in ("frames", "value_maps"):
        for camera in SIZES:
            np.testing.assert_allclose(a[field][camera][rows], b[field][camera][others], rtol=0, atol=atol)
    np.testing.assert_allclose(a.actions[rows], b.actions[others], rtol=0, atol=atol)


def reference_steps(shift: float, steps: int) -> list[tuple[float, float]]:
    """(t, next t) of the flow-matching schedule t = s * u / (1 + (s - 1) * u), u falling evenly from 1 to 0."""
    u = np.linspace(1, 0, steps + 1)
    t = shift * u / (1 + (shift - 1) * u)
    return list(zip(t[:-1], t[1:], strict=True))

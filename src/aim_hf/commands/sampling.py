"""Options shared by commands that sample: the fields of a [`SamplingConfig`]."""

import argparse
from dataclasses import fields
from typing import Any

from ..pipeline.sampling_config import SamplingConfig


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each field of [`SamplingConfig`], whose defaults are the policy's values."""
    group = parser.add_argument_group("sampling", "defaults: the values saved with the policy")
    group.add_argument("--num_inference_steps", type=int, help="denoising steps of RGB and value maps")
    group.add_argument("--num_action_inference_steps", type=int, help="denoising steps of actions")
    group.add_argument("--stop_after", type=int, help="stop denoising RGB and value maps after this step")
    group.add_argument("--guidance_scale", type=float, help="classifier-free guidance of RGB and value maps; 1: none")
    group.add_argument("--action_noise_scale", type=float, help="scale of the noise that actions start from; 0: none")


def sampling_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_sampling_arguments` that were given."""
    given = {field.name: getattr(args, field.name) for field in fields(SamplingConfig)}
    return {name: value for name, value in given.items() if value is not None}

"""Options shared by commands that load a policy and sample from it: the fields of their configurations."""

import argparse
from dataclasses import fields
from typing import Any

from ..pipeline.loading_config import COMPILE_MODES, OFFLOADS, QUANTIZATIONS


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each field of [`LoadingConfig`]."""
    group = parser.add_argument_group("loading", "of the policy")
    group.add_argument("--dtype", help="dtype of the model and the text encoder, such as bfloat16; default: as stored")
    group.add_argument(
        "--attn_implementation", help="attention of the model, such as flash_attention_2; default: sdpa, PyTorch's"
    )
    group.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="store matrices of the video experts and the text encoder in 8 bits (torchao) or 4 (bitsandbytes)",
    )
    group.add_argument(
        "--text_encoder_device", help="where the text encoder stays, such as cpu; it runs once an episode"
    )
    group.add_argument(
        "--offload",
        choices=OFFLOADS,
        help="keep the text encoder on the CPU, and move it to the GPU for each prompt: whole, or layer by layer",
    )
    group.add_argument(
        "--compile_blocks",
        nargs="?",
        const="default",
        choices=COMPILE_MODES,
        help="torch.compile the layers, in a mode of it: reduce-overhead also captures them as CUDA graphs; the first "
        "calls take long, and a CPU needs a C++ compiler",
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each field of [`SamplingConfig`], whose defaults are the policy's values."""
    group = parser.add_argument_group("sampling", "defaults: the values saved with the policy")
    group.add_argument("--num_inference_steps", type=int, help="denoising steps of RGB and value maps")
    group.add_argument("--num_action_inference_steps", type=int, help="denoising steps of actions")
    group.add_argument("--stop_after", type=int, help="stop denoising RGB and value maps after this step")
    group.add_argument("--guidance_scale", type=float, help="classifier-free guidance of RGB and value maps; 1: none")
    group.add_argument("--action_noise_scale", type=float, help="scale of the noise that actions start from; 0: none")


def given_options(args: argparse.Namespace, *configurations: type) -> dict[str, Any]:
    """The options for fields of these dataclasses that were given."""
    options = {field.name: getattr(args, field.name) for kind in configurations for field in fields(kind)}
    return {name: value for name, value in options.items() if value is not None}

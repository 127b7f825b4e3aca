"""Options shared by commands that load a pipeline: the fields of a [`LoadingConfig`]."""

import argparse
from dataclasses import fields
from typing import Any

from ..pipeline.loading_config import OFFLOADS, QUANTIZATIONS, LoadingConfig


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
        action="store_true",
        default=None,
        help="torch.compile the layers; the first calls take long, and a CPU needs a C++ compiler",
    )


def loading_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_loading_arguments` that were given."""
    given = {field.name: getattr(args, field.name) for field in fields(LoadingConfig)}
    return {name: value for name, value in given.items() if value is not None}

"""Differences between the supported versions of diffusers and transformers."""

import re
from importlib.metadata import version

import transformers

# Name of the dtype argument of diffusers' pipelines; its models take `torch_dtype` in all versions.
PIPELINE_DTYPE = "dtype" if [int(part) for part in version("diffusers").split(".")[:2]] >= [0, 40] else "torch_dtype"
# Name of transformers' training argument and, with `_enable`, of the model's method; older versions have the second.
ACTIVATION_CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable")
    else "gradient_checkpointing"
)


def with_installed_names(argv: list[str]) -> list[str]:
    """Options of `TrainingArguments`, given by their current names, as the installed transformers names them."""
    return [re.sub("^--activation_checkpointing", f"--{ACTIVATION_CHECKPOINTING}", option) for option in argv]

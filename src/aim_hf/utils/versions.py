"""Where the oldest and the newest supported versions of other libraries differ; nothing else asks for a version."""

from importlib.metadata import version

import transformers

# How diffusers' pipelines call the dtype to load in; its models take `torch_dtype` throughout.
PIPELINE_DTYPE = "dtype" if [int(part) for part in version("diffusers").split(".")[:2]] >= [0, 40] else "torch_dtype"
# transformers' option and methods of the same name with `_enable`; older versions know the other one alone.
ACTIVATION_CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable")
    else "gradient_checkpointing"
)

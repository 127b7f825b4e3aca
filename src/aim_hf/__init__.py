"""AIM on Hugging Face: a robot world-action model that predicts where it will act."""

import sys
from importlib import import_module
from pathlib import Path

from .model import auto  # noqa: F401  AIM among transformers' Auto classes, once transformers is imported

# Imported when first asked for: simulators and the command line import this package too, and need neither torch nor
# transformers.
_MODULES = {
    "AIMConfig": "model.configuration_aim",
    "AIMForWorldAction": "model.modeling_aim",
    "AIMOutput": "model.modeling_aim",
    "AIMPipeline": "pipeline.pipeline_aim",
    "AIMPipelineOutput": "pipeline.pipeline_aim",
    "AIMProcessor": "model.processing_aim",
    "AIMSession": "pipeline.session",
    "SamplingConfig": "pipeline.sampling_config",
    "VideoCodec": "pipeline.codec",
    "t_pose_canvas": "model.processing_aim",
}
__all__ = sorted([*_MODULES, "AIM_TINY"])

# The checkpoint that comes with the project: a wheel holds it (setup.py), a checkout has it beside `src/`.
_INSTALLED = Path(__file__).parent / "checkpoints" / "aim-tiny"
AIM_TINY = str(_INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "checkpoints" / "aim-tiny")

# Folders that aim-hf 0.1.0 has saved name these modules, and take AIM's classes from them.
for _name in ("modeling_aim", "pipeline_aim", "processing_aim"):
    sys.modules[f"{__name__}.{_name}"] = sys.modules[__name__]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)

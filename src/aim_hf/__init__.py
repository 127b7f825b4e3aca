"""AIM on Hugging Face: a robot world-action model that predicts where it will act."""

from importlib import import_module
from pathlib import Path

from . import auto  # noqa: F401  AIM among transformers' Auto classes, once transformers is imported

# Imported when first asked for: simulators and the command line import this package too, and need neither torch nor
# transformers.
_MODULES = {
    "AIMConfig": "configuration_aim",
    "AIMForWorldAction": "modeling_aim",
    "AIMOutput": "modeling_aim",
    "AIMPipeline": "pipeline_aim",
    "AIMPipelineOutput": "pipeline_aim",
    "AIMProcessor": "processing_aim",
    "AIMSession": "session",
    "SamplingConfig": "sampling",
    "VideoCodec": "codec",
    "t_pose_canvas": "processing_aim",
}
__all__ = sorted([*_MODULES, "AIM_TINY"])

# The checkpoint that comes with the project: a wheel holds it (setup.py), a checkout has it beside `src/`.
_INSTALLED = Path(__file__).parent / "checkpoints" / "aim-tiny"
AIM_TINY = str(_INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "checkpoints" / "aim-tiny")


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)

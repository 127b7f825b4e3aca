"""AIM on Hugging Face: a robot world-action model that predicts where it will act."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from .model import auto  # noqa: F401  AIM among transformers' Auto classes, once transformers is imported

# Imported when first asked for: simulators and the command line import this package too, and need neither torch nor
# transformers.
_MODULES = {
    "AIMConfig": ".model.configuration_aim",
    "AIMForWorldAction": ".model.modeling_aim",
    "AIMOutput": ".model.modeling_aim",
    "AIMPipeline": ".pipeline.pipeline_aim",
    "AIMPipelineOutput": ".pipeline.pipeline_aim",
    "AIMProcessor": ".model.processing_aim",
    "AIMSession": ".pipeline.session",
    "SamplingConfig": ".pipeline.sampling_config",
    "VideoCodec": ".pipeline.codec",
    "t_pose_canvas": ".model.processing_aim",
}
__all__ = sorted([*_MODULES, "AIM_TINY"])

# The checkpoint that comes with the project: a wheel holds it (setup.py), a checkout has it beside `src/`.
_INSTALLED = Path(__file__).parent / "checkpoints" / "aim-tiny"
AIM_TINY = str(_INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "checkpoints" / "aim-tiny")


# Modules that folders saved by aim-hf 0.1.0 name, and where they lie now.
_MOVED = {
    "aim_hf.modeling_aim": "aim_hf.model.modeling_aim",
    "aim_hf.pipeline_aim": "aim_hf.pipeline.pipeline_aim",
    "aim_hf.processing_aim": "aim_hf.model.processing_aim",
}


class _Moved(ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):  # looked for in all modules, and no reason to import this one
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MOVED[self.__name__]), name)


sys.modules |= {name: _Moved(name) for name in _MOVED}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)

"""AIM on Hugging Face: a robot world-action model that predicts where it will act."""

from importlib import import_module
from multiprocessing import current_process

# Imported when first asked for: simulator processes import this package too, and need neither torch nor diffusers.
_MODULES = {
    "AIMConfig": "configuration_aim",
    "AIMForWorldAction": "modeling_aim",
    "AIMOutput": "modeling_aim",
    "AIMPipeline": "pipeline_aim",
    "AIMPipelineOutput": "pipeline_aim",
    "AIMProcessor": "processing_aim",
    "AIMSession": "pipeline_aim",
    "VideoCodec": "codec",
    "t_pose_canvas": "processing_aim",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


# transformers' Auto classes know AIM once this package is imported. A worker process knows nothing of them.
if current_process().name == "MainProcess":
    import_module(".auto", __name__)

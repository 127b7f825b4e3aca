"""AIM on Hugging Face: a robot world-action model that predicts where it will act."""

from .codec import VideoCodec
from .configuration_aim import AIMConfig
from .modeling_aim import AIMForWorldAction, AIMOutput
from .pipeline_aim import AIMPipeline, AIMPipelineOutput, AIMSession
from .processing_aim import AIMProcessor, t_pose_canvas

__all__ = [
    "AIMConfig",
    "AIMForWorldAction",
    "AIMOutput",
    "AIMPipeline",
    "AIMPipelineOutput",
    "AIMProcessor",
    "AIMSession",
    "VideoCodec",
    "t_pose_canvas",
]

from .configuration_aim import AIMConfig
from .modeling_aim import AIMForWorldAction, AIMOutput

__all__ = ["AIMConfig", "AIMForWorldAction", "AIMOutput"]

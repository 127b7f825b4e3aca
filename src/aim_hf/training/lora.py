"""LoRA adapters on the video stream, by PEFT.

No video model has the action head, the action experts and the value noise token. Therefore these are trained in full,
and saved with the adapters.
"""

import torch

from ..model.modeling_aim import AIMForWorldAction
from ..utils.extras import extra

with extra("lora"):
    from peft import LoraConfig, PeftModel, get_peft_model

# All matrices of the video experts. PEFT matches full names, so those of the action experts don't match.
VIDEO_LAYERS = r"blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ffn\.net\.(0\.proj|2))"
TRAINED_IN_FULL = ["action_head", "action", "value_noise_token"]


def with_lora(model: AIMForWorldAction, rank: int, frozen_dtype: torch.dtype | None = None) -> PeftModel:
    """`model` with new adapters of this rank, which don't change its outputs yet.

    Args:
        frozen_dtype: of all weights that aren't trained; as they are if not given. In bfloat16 they take half of the
            memory, and autocast to bfloat16 computes with the same numbers. Trained weights keep their dtype.
    """
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=VIDEO_LAYERS, modules_to_save=TRAINED_IN_FULL)
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if not parameter.requires_grad and frozen_dtype is not None:
            parameter.data = parameter.data.to(frozen_dtype)
    return adapted

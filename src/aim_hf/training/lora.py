"""Fine-tuning with LoRA on the video stream, by PEFT.

The action head, the action experts and the value noise token, which no video model has, are trained in full and saved
with the adapter.
"""

from ..model.modeling_aim import AIMForWorldAction
from ..utils.extras import extra

with extra("lora"):
    from peft import LoraConfig, PeftModel, get_peft_model

# Every matrix product of the video experts. PEFT matches whole names, so those of the action experts don't.
VIDEO_LAYERS = r"blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ffn\.net\.(0\.proj|2))"
TRAINED_IN_FULL = ["action_head", "action", "value_noise_token"]


def with_lora(model: AIMForWorldAction, rank: int, alpha: float | None = None) -> PeftModel:
    """`model` with new adapters of this rank, which change nothing yet. `alpha`: their scale times the rank; the rank
    if not given."""
    config = LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=VIDEO_LAYERS, modules_to_save=TRAINED_IN_FULL)
    return get_peft_model(model, config)

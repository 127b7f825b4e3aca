"""The initial model of stage 1."""

from pathlib import Path
from typing import Any

import torch

from ..model.configuration_aim import AIMConfig
from ..model.modeling_aim import AIMForWorldAction

# Fields in which adapters may differ from their base: only training reads the first three, and the adapters contain
# the layers that depend on `action_dim`.
OF_ADAPTERS = ("value_loss_weight", "action_loss_weight", "initializer_range", "action_dim")


def initial_model(folder: Path, fields: dict[str, Any], adapters: bool) -> AIMForWorldAction:
    """Loads the model in `folder` for stage 1, in float32, since small updates vanish in lower precision.

    For a robot with another number of joints, the input and output layers of the action head are initialized anew. A
    model after stage 2 continues with its stage 1 head, as `join_history_head` restores it.

    Args:
        fields: of the config, to be changed.
        adapters: whether LoRA adapters are trained. They must fit the model in `folder`, so both heads are kept.

    Raises:
        ValueError: if tensors other than those input and output layers have other sizes, are missing in `folder`, or
            have no place in the model; and for fields that change what the model does with adapters, which don't hold
            them.
    """
    model, report = AIMForWorldAction.from_pretrained(
        folder, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True, **fields
    )
    new = sorted(key for key, *_ in report["mismatched_keys"])
    trained = ("action_head",) if adapters else ("action_head", "history_head")
    ends = tuple(f"{head}.{layer}." for head in trained for layer in ("action_embedder", "proj_out"))
    wrong = {
        "of another size": [key for key in new if not key.startswith(ends)],
        "missing there": sorted(report["missing_keys"]),
        "left over": sorted(report["unexpected_keys"]),
    }
    told = [f"{len(keys)} tensors are {what}, {keys[0]} the first" for what, keys in wrong.items() if keys]
    if told:
        mend = "Leave out the fields that change its layers, or train a new model with --preset."
        if adapters and any(key.startswith("history_head.") for key in new):
            mend = "Train without --lora_rank: adapters keep both heads of stage 2, which have the base's action_dim."
        raise ValueError(f"{folder} does not fit --config {fields}: {'; '.join(told)}. {mend}")
    if adapters:
        stored, asked = AIMConfig.from_pretrained(folder), AIMConfig(**fields)
        both = {name: (getattr(stored, name), getattr(asked, name)) for name in fields if name not in OF_ADAPTERS}
        if changed := [f"{name} {there!r} to {now!r}" for name, (there, now) in both.items() if there != now]:
            raise ValueError(
                f"--config changes {', '.join(changed)}, which adapters don't hold: on the model in {folder} they "
                "would act otherwise than they were trained. Leave it out, train without --lora_rank, or set it in "
                "`pipe.model.config` of the policy, save that pipeline, and train adapters of it."
            )
    if new:
        print(f"{folder} was trained on other actions; new: {', '.join(new)}")
    if not adapters:
        model.join_history_head()
    return model

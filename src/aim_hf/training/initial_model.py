"""The model that stage 1 starts from."""

from pathlib import Path

import torch

from ..model.modeling_aim import AIMForWorldAction


def initial_model(folder: Path, fields: dict, adapters: bool) -> AIMForWorldAction:
    """The model in `folder`, in float32 (updates vanish in less), with other `fields` of its config. For a robot with
    another number of joints, the layers at both ends of the action head are new. Of a model after stage 2, stage 1
    goes on with the head that it left; with `adapters`, which have to fit the folder's model, both heads stay.

    Raises:
        ValueError: if other tensors don't fit.
    """
    model, report = AIMForWorldAction.from_pretrained(
        folder, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True, **fields
    )
    new = sorted(key for key, *_ in report["mismatched_keys"])
    trained = ("action_head",) if adapters else ("action_head", "history_head")
    ends = tuple(f"{head}.{layer}." for head in trained for layer in ("action_embedder", "proj_out"))
    wrong = [key for key in new if not key.startswith(ends)]
    if wrong:
        raise ValueError(f"{folder} does not fit --config {fields}: {', '.join(wrong)} have other sizes")
    if new:
        print(f"{folder} was trained on other actions; new: {', '.join(new)}")
    if not adapters:
        model.join_history_head()
    return model

"""Random changes of a batch of windows, as arguments of `FlowMatchingLoss`."""

import torch

from .arguments import AIMTrainingArguments
from .flow_matching import FlowMatchingLoss


def check_committed(args: AIMTrainingArguments, horizon: int) -> None:
    """Raises ValueError unless `committed_max` is below `horizon`, the number of actions in a prediction."""
    if args.committed_probability and not 1 <= args.committed_max < horizon:
        raise ValueError(f"committed_max is {args.committed_max}; expected 1 to {horizon - 1}, for {horizon} actions.")


def augmentations(
    inputs: dict[str, torch.Tensor],
    args: AIMTrainingArguments,
    chunk_latent_frames: int,
    no_prompt_embeds: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Noisy history, committed actions and dropped instructions, where `args` ask for them.

    Args:
        inputs: arguments of the loss.
        no_prompt_embeds: text features of the empty instruction, which replace dropped ones.
    """
    latents, changed = inputs["latents"], {}
    if args.history_noise_probability:
        level, chosen = torch.rand(2, len(latents), device=latents.device, dtype=latents.dtype)
        chosen = chosen < args.history_noise_probability
        changed["history_timestep"] = args.history_noise_max * level * chosen
    if args.committed_probability:
        chunks = inputs["value_latents"].shape[2] // chunk_latent_frames
        shape = (len(latents), args.num_action_draws, chunks)
        count = torch.randint(1, args.committed_max + 1, shape, device=latents.device)
        chosen = torch.rand(shape, device=latents.device) < args.committed_probability
        changed["committed_actions"] = count * chosen
    if args.prompt_dropout:
        dropped = torch.rand(len(latents), device=latents.device) < args.prompt_dropout
        no_prompt = no_prompt_embeds.to(latents)
        changed["prompt_embeds"] = torch.where(dropped[:, None, None], no_prompt, inputs["prompt_embeds"])
    return changed


def imagined(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], objective: FlowMatchingLoss, probability: float, step: int
) -> dict[str, torch.Tensor]:
    """Value maps that the actions see, imagined by the model in a share of the windows."""
    shown = inputs["value_latents"].clone()
    # A share that isn't a whole number of windows is rounded up in some steps. These are the same in all processes,
    # since under FSDP each takes part in every pass.
    share = probability * len(shown)
    count = int((step + 1) * share) - int(step * share)
    if not count:
        return {}
    rows = torch.randperm(len(shown), device=shown.device)[:count]
    chosen = {name: tensor[rows] for name, tensor in inputs.items()}
    shown[rows] = objective.imagined_values(model, **chosen).to(shown)
    return {"shown_value_latents": shown}

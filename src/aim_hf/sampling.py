"""One chunk sampled from noise: the world, then the actions."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from .cache import AIMCache
from .modeling_aim import AIMForWorldAction

NUM_ACTION_INFERENCE_STEPS = 10  # what is taken where nothing else is asked for

Latents = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
OnStepEnd = Callable[[int, torch.Tensor, Latents], Latents]


@torch.no_grad()
def sample_chunk(
    model: AIMForWorldAction,
    cache: AIMCache,
    noise: Latents,
    scheduler: FlowMatchEulerDiscreteScheduler,
    action_scheduler: FlowMatchEulerDiscreteScheduler,
    num_inference_steps: int,
    num_action_inference_steps: int = NUM_ACTION_INFERENCE_STEPS,
    stop_after: int | None = None,
    guidance_scale: float = 1.0,
    unguided_cache: AIMCache | None = None,
    true_value_latents: torch.Tensor | None = None,
    committed_actions: torch.Tensor | None = None,
    on_step_end: OnStepEnd | None = None,
) -> Latents:
    """Denoises the chunk that follows what `cache` holds: `sample_world`, then `sample_actions`.

    Args:
        noise: of RGB and value latents, (B, C, F, h, w) each, and of normalized actions, (B, action_horizon,
            action_dim), in float32, whatever the model's dtype.
        true_value_latents: (B, C, F, h, w), to decode the actions from instead of the predicted ones.

    Returns:
        RGB latents, value latents (those that the actions were decoded from) and normalized actions.
    """
    latents = sample_world(
        model,
        cache,
        noise,
        scheduler,
        num_inference_steps,
        stop_after=stop_after,
        guidance_scale=guidance_scale,
        unguided_cache=unguided_cache,
        on_step_end=on_step_end,
    )
    if true_value_latents is not None:
        latents = latents[0], true_value_latents.to(latents[0]), latents[2]
    return sample_actions(
        model,
        cache,
        latents,
        action_scheduler,
        num_action_inference_steps,
        committed_actions=committed_actions,
        on_step_end=on_step_end,
        first_step=num_inference_steps if stop_after is None else stop_after,
    )


@torch.no_grad()
def sample_world(
    model: AIMForWorldAction,
    cache: AIMCache,
    noise: Latents,
    scheduler: FlowMatchEulerDiscreteScheduler,
    num_inference_steps: int,
    stop_after: int | None = None,
    guidance_scale: float = 1.0,
    unguided_cache: AIMCache | None = None,
    on_step_end: OnStepEnd | None = None,
) -> Latents:
    """RGB and value latents on one trajectory, eq. (6).

    Args:
        noise: as in `sample_chunk`; that of the actions is passed through.
        stop_after: end the trajectory after this many of its steps, at the sample that the last of them predicts,
            x_t - t * v; None to take them all.
        guidance_scale: g of v = v_unguided + g * (v - v_unguided). Actions are never guided.
        unguided_cache: the same history under the text that guidance leads away from.
        on_step_end: called after each step with its index, its timestep and the three latents; what it returns is
            used from there on.
    """
    latents, value_latents, action_latents = noise
    scheduler = with_steps(scheduler, num_inference_steps, model.device)
    context = model.world_context(cache)
    unguided_context = None if guidance_scale == 1 else model.world_context(unguided_cache)
    for i, t in enumerate(scheduler.timesteps[:stop_after]):
        world = torch.stack([latents, value_latents])
        time = _unit_time(scheduler, t, len(latents))
        velocity = torch.stack(model.denoise_world(context, *world.to(model.dtype), time)).float()
        if unguided_context is not None:
            unguided = torch.stack(model.denoise_world(unguided_context, *world.to(model.dtype), time)).float()
            velocity = unguided + guidance_scale * (velocity - unguided)
        if i + 1 == stop_after:
            latents, value_latents = world - time[0] * velocity
        else:
            latents, value_latents = scheduler.step(velocity, t, world).prev_sample
        if on_step_end is not None:
            latents, value_latents, action_latents = on_step_end(i, t, (latents, value_latents, action_latents))
    return latents, value_latents, action_latents


@torch.no_grad()
def sample_actions(
    model: AIMForWorldAction,
    cache: AIMCache,
    latents: Latents,
    action_scheduler: FlowMatchEulerDiscreteScheduler,
    num_action_inference_steps: int = NUM_ACTION_INFERENCE_STEPS,
    committed_actions: torch.Tensor | None = None,
    on_step_end: OnStepEnd | None = None,
    first_step: int = 0,
) -> Latents:
    """The actions from a finished world, eq. (10).

    Args:
        latents: RGB and value latents, and the noise of the actions.
        committed_actions: (B, d, action_dim), normalized: the first d actions are certain already, since they are
            executed while this runs; the others are chosen to follow them.
        on_step_end: as in `sample_world`.
        first_step: the index that `on_step_end` gets with the first of these steps.
    """
    rgb, value, actions = latents
    context = model.action_context(cache, rgb.to(model.dtype), value.to(model.dtype))
    scheduler = with_steps(action_scheduler, num_action_inference_steps, model.device)
    certain = 0 if committed_actions is None else committed_actions.shape[1]
    for i, t in enumerate(scheduler.timesteps):
        time = _unit_time(scheduler, t, len(actions))
        if certain:
            # What is certain is given as it is, each action with a time of its own.
            actions = torch.cat([committed_actions.to(actions), actions[:, certain:]], dim=1)
            time = time[:, None].repeat(1, actions.shape[1])
            time[:, :certain] = 0
        velocity = model.denoise_actions(context, actions.to(model.dtype), time)
        stepped = scheduler.step(velocity.float(), t, actions).prev_sample
        actions = torch.cat([actions[:, :certain], stepped[:, certain:]], dim=1) if certain else stepped
        if on_step_end is not None:
            rgb, value, actions = on_step_end(first_step + i, t, (rgb, value, actions))
    return rgb, value, actions


def _unit_time(scheduler, timestep, rows: int) -> torch.Tensor:
    """t in [0, 1] for each row, (B,); diffusers' timesteps run over its training steps."""
    return (timestep / scheduler.config.num_train_timesteps).expand(rows)


def with_steps(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, device: torch.device
) -> FlowMatchEulerDiscreteScheduler:
    """A copy of the scheduler that is set to `steps` steps: a scheduler counts the steps that it has taken, so calls
    that run at the same time need one each.

    Its times are given explicitly: the scheduler's own default shifts its last sigma twice, so that the last of few
    steps is next to none.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device)
    return scheduler

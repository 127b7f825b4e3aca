"""One chunk sampled from noise: the world, then the actions, or both together."""

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
    """Denoises the chunk that follows what `cache` holds.

    Args:
        noise: of RGB and value latents, (B, C, F, h, w) each, and of normalized actions, (B, action_horizon,
            action_dim), in float32, whatever the model's dtype.
        num_action_inference_steps: not looked at in joint denoising, whose action steps go with the world's.
        stop_after: end the world's trajectory after this many of its steps, at the sample that the last of them
            predicts, x_t - t * v; None to take them all.
        guidance_scale: g of v = v_unguided + g * (v - v_unguided) for RGB and value maps. Actions are never guided.
        unguided_cache: the same history under the text that guidance leads away from.
        true_value_latents: (B, C, F, h, w), to decode the actions from instead of the predicted ones.
        committed_actions: (B, d, action_dim), normalized: the first d actions are certain already, since they are
            executed while this runs; the others are chosen to follow them.
        on_step_end: called after each step with its index, its timestep and the three latents; what it returns is
            used from there on.

    Returns:
        RGB latents, value latents (those that the actions were decoded from) and normalized actions.
    """
    *world, action_latents = noise
    joint = model.config.joint_denoising
    if joint:
        action_scheduler = with_steps(action_scheduler, num_inference_steps, model.device)

    def after_step(i, t, world):
        nonlocal action_latents
        if joint:
            model.condition_actions(cache)
            of_step = action_scheduler, action_scheduler.timesteps[i], committed_actions
            action_latents = _action_step(model, cache, action_latents, *of_step)
        if on_step_end is not None:
            *world, action_latents = on_step_end(i, t, (*world, action_latents))
        return world

    latents, value_latents = sample_world(
        *(model, cache, world, scheduler, num_inference_steps, stop_after, guidance_scale, unguided_cache, after_step)
    )
    if joint:
        return latents, value_latents, action_latents
    if true_value_latents is not None:
        value_latents = true_value_latents.to(latents)
    return sample_actions(
        *(model, cache, (latents, value_latents, action_latents), action_scheduler, num_action_inference_steps),
        committed_actions=committed_actions,
        on_step_end=on_step_end,
        first_step=num_inference_steps,
    )


@torch.no_grad()
def sample_world(
    model: AIMForWorldAction,
    cache: AIMCache,
    noise: tuple[torch.Tensor, torch.Tensor],
    scheduler: FlowMatchEulerDiscreteScheduler,
    num_inference_steps: int,
    stop_after: int | None = None,
    guidance_scale: float = 1.0,
    unguided_cache: AIMCache | None = None,
    after_step: Callable[[int, torch.Tensor, tuple], tuple] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first half of `sample_chunk`: RGB and value latents on one trajectory, eq. (6).

    Args:
        noise: of RGB and value latents.
        after_step: called with a step's index, its timestep and both latents; what it returns is used from there on.
    """
    latents, value_latents = noise
    scheduler = with_steps(scheduler, num_inference_steps, model.device)
    for i, t in enumerate(scheduler.timesteps[:stop_after]):
        world = torch.stack([latents, value_latents])
        time = _unit_time(scheduler, t, len(latents))
        velocity = torch.stack(model.denoise_world(cache, *world.to(model.dtype), time)).float()
        if guidance_scale != 1:
            unguided = torch.stack(model.denoise_world(unguided_cache, *world.to(model.dtype), time)).float()
            velocity = unguided + guidance_scale * (velocity - unguided)
        if i + 1 == stop_after:
            latents, value_latents = world - time[0] * velocity
        else:
            latents, value_latents = scheduler.step(velocity, t, world).prev_sample
        if after_step is not None:
            latents, value_latents = after_step(i, t, (latents, value_latents))
    return latents, value_latents


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
    """The second half of `sample_chunk`: the actions from a finished world, eq. (10).

    Args:
        latents: RGB and value latents, and the noise of the actions.
        first_step: the index that `on_step_end` gets with the first of these steps.
    """
    rgb, value, actions = latents
    # The clean pass: what actions may see of the future is the finished value map.
    model.condition_actions(cache, rgb.to(model.dtype), value.to(model.dtype))
    scheduler = with_steps(action_scheduler, num_action_inference_steps, model.device)
    # Only the head runs.
    for i, t in enumerate(scheduler.timesteps):
        actions = _action_step(model, cache, actions, scheduler, t, committed_actions)
        if on_step_end is not None:
            rgb, value, actions = on_step_end(first_step + i, t, (rgb, value, actions))
    return rgb, value, actions


def _action_step(model, cache, actions, scheduler, timestep, committed) -> torch.Tensor:
    time = _unit_time(scheduler, timestep, len(actions))
    if committed is not None:
        # What is certain is given as it is, each action with a time of its own.
        certain = committed.shape[1]
        actions = torch.cat([committed.to(actions), actions[:, certain:]], dim=1)
        time = time[:, None].repeat(1, actions.shape[1])
        time[:, :certain] = 0
    velocity = model.denoise_actions(cache, actions.to(model.dtype), time)
    stepped = scheduler.step(velocity.float(), timestep, actions).prev_sample
    return stepped if committed is None else torch.cat([actions[:, :certain], stepped[:, certain:]], dim=1)


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

"""Samples a chunk from noise: first RGB and value latents (the world), then actions.

A loop over denoising steps neither waits for the device nor sends to it: times, their embeddings and the context are
there before the first step, and each step overwrites the keys and values of the one before.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor

from ..model.cache import AIMCache
from ..model.configuration_aim import AIMConfig
from ..model.modeling_aim import AIMForWorldAction
from .sampling_config import SamplingConfig

# Called after each denoising step with its index, its timestep and the latents by name; returns the latents to use.
OnStepEnd = Callable[[int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def new_schedulers(config: AIMConfig) -> dict[str, FlowMatchEulerDiscreteScheduler]:
    """`scheduler` of RGB and value latents and `action_scheduler` of actions, with the shifts of the training."""
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=config.video_shift),
        "action_scheduler": FlowMatchEulerDiscreteScheduler(shift=config.action_shift),
    }


def prepare_latents(
    config: AIMConfig,
    sampling_config: SamplingConfig,
    batch_size: int,
    latent_size: tuple[int, int],
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise of a chunk, eq. (5), in float32: RGB and value latents, (B, C, F, h, w) each, and normalized actions, (B,
    action_horizon, action_dim), multiplied by `action_noise_scale`."""
    world = (batch_size, config.in_channels, config.chunk_latent_frames, *latent_size)
    latents, value_latents, action_latents = (
        randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        for shape in (world, world, (batch_size, config.action_horizon, config.action_dim))
    )
    return latents, value_latents, sampling_config.action_noise_scale * action_latents


@torch.no_grad()
def denoise_world(
    model: AIMForWorldAction,
    cache: AIMCache,
    latents: torch.Tensor,
    value_latents: torch.Tensor,
    scheduler: FlowMatchEulerDiscreteScheduler,
    config: SamplingConfig,
    unguided_cache: AIMCache | None = None,
    on_step_end: OnStepEnd | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RGB and value latents of the chunk after `cache`, denoised together on one trajectory, eq. (6).

    Args:
        latents, value_latents: noise, (B, C, F, h, w), in float32 for every dtype of the model.
        unguided_cache: the same history under the negative prompt, for classifier-free guidance: v = v_unguided +
            guidance_scale * (v - v_unguided).
    """
    scheduler = with_steps(scheduler, config.num_inference_steps, model.device, config.stop_after)
    caches = [cache] if config.guidance_scale == 1 else [cache, unguided_cache]
    contexts = [model.world_context(each) for each in caches]
    # Times in [0, 1]; a timestep of diffusers counts training steps.
    times = model.condition_embedder.steps(scheduler.timesteps / scheduler.config.num_train_timesteps)
    for i, (t, time) in enumerate(zip(scheduler.timesteps, times, strict=True)):
        world = torch.stack([latents, value_latents])
        velocity, *unguided = (
            torch.stack(model.world_velocity(context, *world.to(model.dtype), time)).float() for context in contexts
        )
        if unguided:
            velocity = unguided[0] + config.guidance_scale * (velocity - unguided[0])
        latents, value_latents = scheduler.step(velocity, t, world).prev_sample
        if on_step_end is not None:
            tensors = on_step_end(i, t, {"latents": latents, "value_latents": value_latents})
            latents, value_latents = tensors["latents"], tensors["value_latents"]
    return latents, value_latents


@torch.no_grad()
def denoise_actions(
    model: AIMForWorldAction,
    cache: AIMCache,
    latents: torch.Tensor,
    value_latents: torch.Tensor,
    action_latents: torch.Tensor,
    scheduler: FlowMatchEulerDiscreteScheduler,
    config: SamplingConfig,
    committed_actions: torch.Tensor | None = None,
    on_step_end: OnStepEnd | None = None,
) -> torch.Tensor:
    """Normalized actions, (B, action_horizon, action_dim), from noise and finished RGB and value latents, eq. (10).

    Args:
        latents, value_latents: denoised, (B, C, F, h, w).
        action_latents: noise, in float32 for every dtype of the model.
        committed_actions: (B, d, action_dim), normalized: the first d actions are fixed, since the robot executes them
            during the inference delay; the others are sampled to follow them.
        on_step_end: its step index continues after the world's steps.
    """
    context = model.action_context(cache, latents.to(model.dtype), value_latents.to(model.dtype))
    scheduler = with_steps(scheduler, config.num_action_inference_steps, model.device)
    delay = 0 if committed_actions is None else committed_actions.shape[1]
    times = scheduler.timesteps / scheduler.config.num_train_timesteps
    if delay:
        committed_actions = committed_actions.to(action_latents)
        # Committed actions are given clean, at time 0; every action then has its own time.
        times = times[:, None].repeat(1, action_latents.shape[1])
        times[:, :delay] = 0
    times = model.action_head.condition_embedder.steps(times)
    for i, (t, time) in enumerate(zip(scheduler.timesteps, times, strict=True)):
        if delay:
            action_latents = torch.cat([committed_actions, action_latents[:, delay:]], dim=1)
        velocity = model.action_velocity(context, action_latents.to(model.dtype), time)
        stepped = scheduler.step(velocity.float(), t, action_latents).prev_sample
        action_latents = torch.cat([action_latents[:, :delay], stepped[:, delay:]], dim=1) if delay else stepped
        if on_step_end is not None:
            tensors = on_step_end(config.world_steps + i, t, {"action_latents": action_latents})
            action_latents = tensors["action_latents"]
    return action_latents


def with_steps(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, device: torch.device, stop_after: int | None = None
) -> FlowMatchEulerDiscreteScheduler:
    """A copy of the scheduler, set to `steps` denoising steps, of which the `stop_after`-th goes to sigma 0 at once.

    A scheduler counts its steps, so concurrent calls need a copy each. The sigmas are given explicitly: diffusers'
    default shifts the last sigma twice, which makes the last of few steps almost empty.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device)
    scheduler.set_begin_index()  # else the first step looks for its timestep, which waits for the device
    if stop_after is not None:
        scheduler.timesteps = scheduler.timesteps[:stop_after]
        scheduler.sigmas = torch.cat([scheduler.sigmas[:stop_after], scheduler.sigmas.new_zeros(1)])
    return scheduler

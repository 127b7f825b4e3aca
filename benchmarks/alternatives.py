"""The plain ways of doing what AIM does, to compare with. Each runs on the same model, weights and inputs.

- `UncachedRollout`: no keys and values are kept; every denoising step runs over the whole prefix, under the mask.
- `BackboneRollout`: what LingBot-VA does. Actions are denoised by the video backbone; guidance doubles the rows of
  both loops; the instruction's keys and values are computed in each step. History is cached, as it is there; value
  tokens don't exist there, so they don't count here either.
"""

from functools import partial

import torch
from common import Rollout
from torch import nn

from aim_hf import AIMForWorldAction
from aim_hf.layers import action_positions, attention, video_positions
from aim_hf.modeling_aim import Segment
from aim_hf.visibility import Kind, Units


class UncachedRollout:
    """A rollout's prefix: observations (B, C, N, h, w) and the actions after the first, (B, (N-1)*n, action_dim)."""

    def __init__(self, model: AIMForWorldAction, prompt_embeds, latents, actions):
        self.model, self.prompt_embeds, self.latents, self.actions = model, prompt_embeds, latents, actions

    @torch.no_grad()
    def denoise_world(self, rgb: torch.Tensor, value: torch.Tensor, timestep: torch.Tensor):
        """As `AIMForWorldAction.denoise_world`."""
        frames, (height, width) = rgb.shape[2], rgb.shape[3:]
        time = timestep[:, None].expand(-1, frames)
        videos, _ = self._pass([(Kind.FUTURE_RGB, rgb, time), (Kind.FUTURE_VALUE, value, time)], [self._executed()])
        return tuple(self.model._video_velocity(*video, frames, height, width) for video in videos[1:])

    def denoise_actions(self, rgb, value, actions, timestep: torch.Tensor):
        """As `AIMForWorldAction.denoise_actions` after `condition_actions(rgb, value)`."""
        config, frames = self.model.config, rgb.shape[2]
        clean = timestep.new_zeros(len(timestep), frames)
        chunk = torch.tensor([(self.latents.shape[2] - 1) // config.chunk_latent_frames + 1])
        units = Units.future_actions(chunk, config.chunk_latent_frames, config.action_lookahead_frames)
        time = timestep[:, None].expand(-1, len(units.kind))
        denoised = Segment(units, self.model.action_head.action_embedder(actions), time)
        segments = [(Kind.OBSERVATION, rgb, clean), (Kind.CLEAN_VALUE, value, clean)]
        _, actions = self._pass(segments, [self._executed(), denoised])
        return self.model.action_head.velocity(*actions[1])

    def _executed(self) -> Segment:
        config = self.model.config
        units = Units.segment(Kind.ACTION, torch.arange(1, self.latents.shape[2]), config.chunk_latent_frames)
        time = self.actions.new_zeros(len(self.actions), len(units.kind))
        return Segment(units, self.model._executed_head.action_embedder(self.actions), time)

    def _pass(self, future, action_segments):
        model, config, N = self.model, self.model.config, self.latents.shape[2]
        past = self.latents.new_zeros(len(self.latents), N)
        segments = []
        for kind, latents, time in [(Kind.OBSERVATION, self.latents, past), *future]:
            frames = torch.arange(N) if latents is self.latents else torch.arange(N, N + latents.shape[2])
            hidden = model._embed_video(latents)
            if kind in (Kind.FUTURE_VALUE, Kind.CLEAN_VALUE):
                hidden = hidden + model.value_noise_token.weight
            segments.append(Segment(Units.segment(kind, frames, config.chunk_latent_frames), hidden, time))
        grid = model._grid(*self.latents.shape[3:])
        return model._masked_pass(segments, action_segments, self.prompt_embeds, grid)

    @torch.no_grad()
    def sample(self, noise, schedulers, world_steps: int, action_steps: int):
        """One chunk, by the same steps as `sample_chunk`."""
        rgb, value, actions = noise
        dtype, rows = self.model.dtype, len(rgb)
        for scheduler, steps in zip(schedulers, (world_steps, action_steps)):
            scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], device=rgb.device)
        for t in schedulers[0].timesteps:
            velocity = torch.stack(self.denoise_world(rgb.to(dtype), value.to(dtype), (t / 1000).expand(rows)))
            rgb, value = schedulers[0].step(velocity.float(), t, torch.stack([rgb, value])).prev_sample
        for t in schedulers[1].timesteps:
            velocity = self.denoise_actions(rgb.to(dtype), value.to(dtype), actions.to(dtype), (t / 1000).expand(rows))
            actions = schedulers[1].step(velocity.float(), t, actions).prev_sample
        return rgb, value, actions


class BackboneRollout(Rollout):
    """Denoising loops that run the video backbone for both, on the keys and values of a history."""

    def __init__(self, model: AIMForWorldAction, args):
        super().__init__(model, args)
        config = model.config
        with torch.device(model.device):
            self.embed_actions = nn.Linear(config.action_dim, config.hidden_size).to(model.dtype)
            self.read_actions = nn.Linear(config.hidden_size, config.action_dim).to(model.dtype)

    @torch.no_grad()
    def chunk(self, video_steps: int, action_steps: int) -> None:
        """`video_steps` of RGB and a pass over the finished one, `action_steps` of actions and the same."""
        config = self.model.config
        rgb, _, _ = self.noise()
        actions = self.randn(config.actions_per_chunk, config.action_dim)
        for _ in range(video_steps + 1):
            self.video_step(rgb.to(self.model.dtype))
        for _ in range(action_steps + 1):
            self.action_step(actions, self.model._text(self.prompt_embeds))

    @torch.no_grad()
    def video_step(self, rgb: torch.Tensor) -> torch.Tensor:
        frames, (height, width) = rgb.shape[2], rgb.shape[3:]
        grid = self.model._grid(height, width)
        hidden, embedding = self._pass(
            self.model._embed_video(rgb),
            video_positions(self.cache.next_frames(frames).to(rgb.device), *grid),
            frames,
            self.model._text(self.prompt_embeds),
            self.cache.future_start,
        )
        return self.model._video_velocity(hidden, embedding, frames, height, width)

    @torch.no_grad()
    def action_step(self, actions: torch.Tensor, text) -> torch.Tensor:
        config, cache = self.model.config, self.cache
        frames = config.chunk_latent_frames
        hidden, _ = self._pass(
            self.embed_actions(actions),
            action_positions(cache.next_frames(frames).to(actions.device), config.actions_per_latent_frame),
            frames,
            text,
            cache.future_start + frames * cache.tokens_per_frame,
        )
        return self.read_actions(hidden)

    def _pass(self, hidden, positions, frames: int, text, place: int):
        """All layers of the backbone; keys and values are written at `place`, and everything before it is seen."""
        model, cache = self.model, self.cache
        embedding, time = model.condition_embedder(torch.full((len(hidden), frames), 0.5, device=hidden.device))
        rotation = model._rotary(positions)

        def attend(layer, q, k, v):
            cache.write(layer, place, k, v)
            return attention(q, *cache.view(layer, cache.actions_start, place + k.shape[2]))

        for layer, block in enumerate(model.blocks):
            hidden = block(hidden, time, rotation, partial(attend, layer), text[layer], hidden.shape[1])
        return hidden, embedding

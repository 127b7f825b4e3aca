"""The plain ways of doing what AIM does, to compare with. Each runs on the same model, weights and inputs.

- `UncachedRollout`: no keys and values are kept; every denoising step runs over the whole prefix, under the mask.
- `BackboneRollout`: LingBot-VA's method. Actions are denoised by the video backbone; guidance doubles the rows of both
  loops; the instruction's keys and values are computed in each step. History is cached, as it is there; value tokens
  don't exist there, so they don't count here either.
"""

import torch
from common import Rollout
from torch import nn

from aim_hf import AIMForWorldAction
from aim_hf.model.attention import KeysValues
from aim_hf.model.layers import Tokens
from aim_hf.model.modeling_aim import Segment
from aim_hf.model.visibility import Kind, Units, Visibility
from aim_hf.pipeline.sampling import with_steps


class UncachedRollout:
    """A rollout's prefix: observations (B, C, N, h, w) and the actions after the first, (B, (N-1)*n, action_dim)."""

    def __init__(self, model: AIMForWorldAction, prompt_embeds, latents, actions):
        self.model, self.prompt_embeds, self.latents, self.actions = model, prompt_embeds, latents, actions

    @torch.no_grad()
    def world_velocity(self, rgb: torch.Tensor, value: torch.Tensor, timestep: torch.Tensor):
        """As `AIMForWorldAction.world_velocity`."""
        frames, (height, width) = rgb.shape[2], rgb.shape[3:]
        time = timestep[:, None].expand(-1, frames)
        videos, _ = self._pass([(Kind.FUTURE_RGB, rgb, time), (Kind.FUTURE_VALUE, value, time)], [self._executed()])
        return tuple(self.model._video_velocity(*video, frames, height, width) for video in videos[1:])

    def action_velocity(self, rgb, value, actions, timestep: torch.Tensor):
        """As `AIMForWorldAction.action_velocity` in the `action_context` of rgb and value."""
        config, frames = self.model.config, rgb.shape[2]
        clean = timestep.new_zeros(len(timestep), frames)
        chunk = torch.tensor([(self.latents.shape[2] - 1) // config.chunk_latent_frames + 1])
        time = timestep[:, None].expand(-1, frames + config.action_lookahead_frames)
        denoised = self.model._predicted_segment(chunk, actions, time)
        visibility, segments = Visibility(config.visibility), []
        if visibility.action_needs_rgb:
            segments.append((Kind.OBSERVATION, rgb, clean))
        if visibility.action_sees_value:
            segments.append((Kind.CLEAN_VALUE, value, clean))
        _, segments = self._pass(segments, [self._executed(), denoised])
        return self.model.action_head.velocity(*segments[1])

    def _executed(self) -> Segment:
        config, frames = self.model.config, torch.arange(1, self.latents.shape[2])
        times = self.actions.new_zeros(len(self.actions), len(frames))
        if len(frames):
            return self.model._executed_segment(frames, self.actions, times)
        none = times.new_zeros(len(times), 0, config.actions_per_latent_frame, config.action_hidden_size)
        return Segment(Units.segment(Kind.ACTION, frames, config.chunk_latent_frames), none, times)

    def _pass(self, future, actions: list[Segment]):
        model, N = self.model, self.latents.shape[2]
        past = self.latents.new_zeros(len(self.latents), N)
        videos = []
        for kind, latents, time in [(Kind.OBSERVATION, self.latents, past), *future]:
            frames = torch.arange(N) if latents is self.latents else torch.arange(N, N + latents.shape[2])
            videos.append(model._video_segment(kind, frames, latents, time))
        text = model.condition_embedder.text_embedder(self.prompt_embeds)
        return model._packed_pass(videos, actions, text, model._grid(*self.latents.shape[3:]))

    @torch.no_grad()
    def sample(self, noise, schedulers, world_steps: int, action_steps: int):
        """One chunk, by the same steps as `sample_chunk`."""
        rgb, value, actions = noise
        dtype, rows = self.model.dtype, len(rgb)
        world = with_steps(schedulers[0], world_steps, rgb.device)
        action = with_steps(schedulers[1], action_steps, rgb.device)
        for t in world.timesteps:
            velocity = torch.stack(self.world_velocity(rgb.to(dtype), value.to(dtype), (t / 1000).expand(rows)))
            rgb, value = world.step(velocity.float(), t, torch.stack([rgb, value])).prev_sample
        for t in action.timesteps:
            velocity = self.action_velocity(rgb.to(dtype), value.to(dtype), actions.to(dtype), (t / 1000).expand(rows))
            actions = action.step(velocity.float(), t, actions).prev_sample
        return rgb, value, actions


class BackboneRollout(Rollout):
    """Denoising loops that run the video backbone for both, on the keys and values of a history."""

    def __init__(self, model: AIMForWorldAction, args, history: int = 0):
        super().__init__(model, args, history)
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
            self.action_step(actions, self.text())

    def text(self) -> list[KeysValues]:
        features = self.model.condition_embedder.text_embedder(self.prompt_embeds)
        return [layer.attn2.key_value(features) for layer in self.model.blocks]

    @torch.no_grad()
    def video_step(self, rgb: torch.Tensor) -> torch.Tensor:
        frames, (height, width) = rgb.shape[2], rgb.shape[3:]
        history = self.cache.history(frames * self.cache.tokens_per_frame)
        rotation = self.model._video_rotary(self.cache.next_frames(frames).to(rgb.device), self.cache.grid)
        hidden, embedding = self._pass(self.model._embed_video(rgb), rotation, frames, self.text(), history)
        room = self.cache.new_room(self.model.config.actions_per_chunk)
        self.seen = [tuple(torch.cat([part, room], dim=2) for part in pair) for pair in history]  # by actions
        return self.model._video_velocity(hidden, embedding, frames, height, width)

    @torch.no_grad()
    def action_step(self, actions: torch.Tensor, text: list[KeysValues]) -> torch.Tensor:
        frames = self.model.config.chunk_latent_frames
        rotation = self.model._action_rotary(self.cache.next_frames(frames).to(actions.device))
        hidden, _ = self._pass(
            self.embed_actions(actions).unflatten(1, (frames, -1)), rotation, frames, text, self.seen
        )
        return self.read_actions(hidden.flatten(1, 2))

    def _pass(
        self,
        hidden: torch.Tensor,
        rotation: torch.Tensor,
        frames: int,
        text: list[KeysValues],
        pasts: list[KeysValues],
    ):
        """All layers of the backbone, over everything in `pasts`, which gets the keys and values of these tokens."""
        embedding, proj = self.model.condition_embedder(torch.full((len(hidden), frames), 0.5, device=hidden.device))
        tokens = Tokens(hidden, proj, rotation, text_units=frames)
        for layer, past, of_layer in zip(self.model.blocks, pasts, text):
            tokens = layer(tokens, None, None, None, past, of_layer).video
        return tokens.hidden_states, embedding

"""What a model keeps of a rollout: keys and values of the past, and what a chunk's denoising sees of it.

One buffer per layer holds

    [ action history, growing left | observations, growing right ]

so that the visible sets of eq. (10) are plain slices of it. Positions are absolute, so keys stay valid for as long as
they are kept.

Attention has no order of keys. It is what lets actions grow left, and what makes both histories rings once
`history_chunks` is reached: latent frame f lives in slot f modulo the number of slots, and a new chunk overwrites the
oldest one where it lies. Nothing is ever moved.

Rows may differ in age, when some of them have been reset. Each fills its slots from the middle outwards, so rows of
the same length need no mask; others get one for what they don't have yet.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .attention import KeysValues, VisibleSet


@dataclass(frozen=True)
class WorldContext:
    """What RGB and value tokens of the next chunk see and are told; [`AIMForWorldAction.world_context`] makes it.

    past: of each layer, kept actions and observations. text: of each layer, the instruction. The cache that it was
    made from must not be appended to before it is used.
    """

    past: list[KeysValues]
    text: list[KeysValues]
    visible: list[VisibleSet]
    rotary_emb: KeysValues


@dataclass(frozen=True)
class ActionContext:
    """What the actions of the next chunk see, V_a of eq. (10); [`AIMForWorldAction.action_context`] makes it.

    past: of each layer, the last observed latent frame, kept actions, and the tokens of the finished value map.
    """

    past: list[KeysValues]
    visible: list[VisibleSet]
    rotary_emb: KeysValues

    def repeat_interleave(self, draws: int) -> "ActionContext":
        """The context of `draws` predictions of each row, one after the other."""

        def repeated(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.repeat_interleave(draws, dim=0)

        return ActionContext(
            [(repeated(keys), repeated(values)) for keys, values in self.past],
            [
                VisibleSet(one.queries, one.keys, None if one.key_mask is None else repeated(one.key_mask))
                for one in self.visible
            ],
            tuple(part if len(part) == 1 else repeated(part) for part in self.rotary_emb),
        )


class AIMCache:
    """Keys and values of a batch of rollouts.

    Args:
        config: the model's `AIMConfig`.
        batch_size: B.
        grid: rows and columns of video tokens in one latent frame.
        device, dtype: of the buffers.

    `frames` (B,), on the CPU, counts the latent frames that each row has observed so far, `chunks` the chunks. With
    `config.history_chunks` = H a row keeps its last H chunks, and the buffers never grow.
    """

    def __init__(self, config, batch_size: int, grid: tuple[int, int], device=None, dtype=None):
        self.config = config
        self.grid = grid
        self.tokens_per_frame = grid[0] * grid[1]
        self.device, self.dtype = device, dtype
        self.frames = torch.zeros(batch_size, dtype=torch.long, device="cpu")
        self.text: list[KeysValues] | None = None  # of each layer
        # Latent frames that fit, and actions of as many.
        self._slots = (config.history_chunks or 4) * config.chunk_latent_frames
        self._buffers = [self._new_buffer() for _ in range(config.num_layers)]

    def _new_buffer(self) -> KeysValues:
        config = self.config
        tokens = self._slots * (config.actions_per_latent_frame + self.tokens_per_frame)
        shape = (self.batch_size, config.num_attention_heads, tokens, config.attention_head_dim)
        # Zeros: masked keys must be finite.
        return tuple(torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in range(2))

    @property
    def batch_size(self) -> int:
        return len(self.frames)

    @property
    def chunks(self) -> torch.Tensor:
        """(B,), chunks observed; the first observation is one."""
        F_ = self.config.chunk_latent_frames
        return (self.frames + F_ - 1) // F_

    # ------------------------------------------------------------------------------------------------ borders

    @property
    def _origin(self) -> int:
        """Where actions end and observations begin."""
        return self._slots * self.config.actions_per_latent_frame

    @property
    def _kept_observations(self) -> torch.Tensor:
        """(B,), latent frames."""
        return self.frames.clamp(max=self._slots)

    @property
    def _kept_actions(self) -> torch.Tensor:
        """(B,), latent frames that actions are kept of. The first observation has none."""
        return (self.frames - 1).clamp(min=0, max=self._slots)

    @property
    def held(self) -> torch.Tensor:
        """(B,), the same for rows that have keys in the same slots: those of equal age, and all whose history is
        full."""
        return self.frames.clamp(max=self._slots + 1)

    @property
    def observation_tokens(self) -> int:
        """Of the row that has the most."""
        return int(self._kept_observations.max()) * self.tokens_per_frame

    @property
    def action_tokens(self) -> int:
        """Of the row that has the most."""
        return int(self._kept_actions.max()) * self.config.actions_per_latent_frame

    def next_frames(self, count: int) -> torch.Tensor:
        """Indices of the `count` latent frames after the last observed one: (B, count), or (1, count) where all rows
        agree."""
        frames = self.frames[:1] if (self.frames == self.frames[0]).all() else self.frames
        return frames[:, None] + torch.arange(count, device="cpu")

    def mask(self, *, actions: bool, observations: bool, before: int = 0, after: int = 0) -> torch.Tensor | None:
        """Which keys each row has, (B, 1, 1, keys), in `before` keys that all have, the kept actions and observations
        if asked for, and `after` more that all have. None where every row has all of them."""
        if (self.held == self.held[0]).all():
            return None
        held = []
        for kept, tokens, reverse in (
            (self._kept_actions, self.config.actions_per_latent_frame, True),
            (self._kept_observations, self.tokens_per_frame, False),
        ):
            slots = torch.arange(int(kept.max()), device="cpu")
            seen = (slots < kept[:, None]).repeat_interleave(tokens, dim=1)
            held.append(seen.flip(1) if reverse else seen)
        wanted = [part for part, asked in zip(held, (actions, observations)) if asked]
        return F.pad(torch.cat(wanted, dim=1)[:, None, None].to(self.device), (before, after), value=True)

    # --------------------------------------------------------------------------------------- reading and writing

    def history(self, layer: int) -> KeysValues:
        """The kept actions, and then the kept observations."""
        return self._view(layer, self._origin - self.action_tokens, self._origin + self.observation_tokens)

    def current_frame(self, layer: int) -> KeysValues:
        """The last observed latent frame of each row."""
        slots = (self.frames - 1) % self._slots * self.tokens_per_frame + self._origin
        places = (slots[:, None] + torch.arange(self.tokens_per_frame, device="cpu")).to(self.device)
        rows = torch.arange(self.batch_size, device=self.device)[:, None]
        return tuple(buffer[rows, :, places].transpose(1, 2) for buffer in self._buffers[layer])

    def action_history(self, layer: int) -> KeysValues:
        return self._view(layer, self._origin - self.action_tokens, self._origin)

    def _view(self, layer: int, start: int, stop: int) -> KeysValues:
        keys, values = self._buffers[layer]
        return keys[:, :, start:stop], values[:, :, start:stop]

    def reserve(self, latent_frames: int) -> None:
        """Makes room for `latent_frames` more. Only unlimited history ever grows; it doubles, so that the copies cost
        O(1) a token."""
        needed = int(self.frames.max()) + latent_frames
        if self.config.history_chunks is None and needed > self._slots:
            self._grow(max(needed, 2 * self._slots))

    def _grow(self, slots: int) -> None:
        old, origin = self._buffers, self._origin
        start, stop = origin - self.action_tokens, origin + self.observation_tokens
        self._slots = slots
        self._buffers = [self._new_buffer() for _ in old]
        for old_pair, new_pair in zip(old, self._buffers):
            for before, after in zip(old_pair, new_pair):
                shift = self._origin - origin
                after[:, :, start + shift : stop + shift] = before[:, :, start:stop]

    def observed_slots(self, latent_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where `latent_frames` new frames of observations, and the actions that led to them, shall lie: (B, tokens)
        each, for `keep`."""
        frames = self.frames[:, None] + torch.arange(latent_frames, device="cpu")
        L, n = self.tokens_per_frame, self.config.actions_per_latent_frame
        observation_starts = self._origin + frames % self._slots * L
        action_starts = self._origin - ((frames - 1) % self._slots + 1) * n
        return tuple(
            (starts[..., None] + torch.arange(length, device="cpu")).flatten(1).to(self.device)
            for starts, length in ((observation_starts, L), (action_starts, n))
        )

    def keep(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Writes what was observed to `slots`, over the oldest chunk once the history is full."""
        rows = torch.arange(self.batch_size, device=self.device)[:, None]
        for buffer, new in zip(self._buffers[layer], (keys, values)):
            buffer[rows, :, slots] = new.transpose(1, 2)

    def advance(self, latent_frames: int) -> None:
        """Counts a chunk that has been kept."""
        self.frames = self.frames + latent_frames

    # --------------------------------------------------------------------------------------------------- rows

    def select(self, rows: torch.Tensor) -> "AIMCache":
        """A cache of these rows, in this order; a row may be taken several times. It shares nothing with this one."""
        other = copy.copy(self)
        other.frames = self.frames[rows]
        rows = rows.to(self.device)
        other._buffers = [(keys[rows], values[rows]) for keys, values in self._buffers]
        other.text = None if self.text is None else [(keys[rows], values[rows]) for keys, values in self.text]
        return other

    @staticmethod
    def stack(caches: "Sequence[AIMCache]") -> "AIMCache":
        """The inverse of `select`: a cache of the rows of all of these, in order. It shares nothing with them."""
        slots = max(cache._slots for cache in caches)
        for cache in caches:
            if cache._slots < slots:
                cache._grow(slots)
        other = copy.copy(caches[0])
        other.frames = torch.cat([cache.frames for cache in caches])
        other._buffers = _stacked([cache._buffers for cache in caches])
        other.text = _stacked([cache.text for cache in caches])
        return other

    def assign(self, rows: torch.Tensor, other: "AIMCache") -> None:
        """Sets `rows` to the histories of `other`'s rows; texts stay."""
        if other._slots > self._slots:
            self._grow(other._slots)
        shift = self._origin - other._origin
        start, stop = other._origin - other.action_tokens, other._origin + other.observation_tokens
        self.frames = self.frames.index_copy(0, rows, other.frames)
        rows = rows.to(self.device)
        for pair, other_pair in zip(self._buffers, other._buffers):
            for buffer, new in zip(pair, other_pair):
                buffer[rows, :, start + shift : stop + shift] = new[:, :, start:stop]

    def reset(self, rows: torch.Tensor) -> None:
        """Forgets what `rows` have observed."""
        self.frames = self.frames.index_fill(0, rows, 0)
        rows = rows.to(self.device)
        for buffer in (buffer for pair in self._buffers for buffer in pair):
            buffer[rows] = 0  # a mask keeps out old keys, but not NaN among them


def _stacked(layers: "Sequence[list[KeysValues]]") -> list[KeysValues]:
    return [tuple(torch.cat(parts) for parts in zip(*pairs, strict=True)) for pairs in zip(*layers, strict=True)]

"""Key-value cache of a rollout, and the parts of it that the denoising of a chunk attends to.

One buffer per layer holds

    [ executed actions, growing left | observations, growing right | room for the next chunk's RGB and value tokens ]

so that the visible sets of eq. (10) are plain slices of it. A denoising step of the next chunk writes its keys and
values behind the observations, where the next step overwrites them; nothing is copied. Rotary positions are absolute,
so cached keys stay valid.

Attention doesn't depend on the order of keys. Therefore actions may grow left, and both histories become ring buffers
once `history_chunks` is reached: latent frame f has slot f modulo the number of slots, and a new chunk overwrites the
oldest one. Nothing is moved.

Rows have different numbers of frames after some of them were reset. Each row fills its slots from the middle outwards.
Rows with equally many frames need no mask; otherwise a key mask hides the slots that a row hasn't filled yet.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .attention import KeysValues, VisibleSet
from .configuration_aim import AIMConfig


@dataclass(frozen=True)
class WorldContext:
    """Keys and values that RGB and value tokens of the next chunk attend to; from [`AIMForWorldAction.world_context`].

    past: cached actions and observations of each layer, and room for the keys and values of the chunk, where each
    denoising step writes its own. These are views of the cache: use the context before appending to it, and in one
    thread. text: keys and values of the instruction, of each layer.
    """

    past: list[KeysValues]
    text: list[KeysValues]
    visible: list[VisibleSet]
    rotary_emb: torch.Tensor


@dataclass(frozen=True)
class ActionContext:
    """Keys and values that the next chunk's actions attend to, V_a of eq. (10); from
    [`AIMForWorldAction.action_context`].

    past: of each layer, the last observed latent frame, cached actions, the clean value tokens of the chunk, and room
    for the keys and values of the actions, where each denoising step writes its own. A backward pass needs the keys
    and values of its own step, so take a copy, by `repeat_interleave`, for each step.
    """

    past: list[KeysValues]
    key_mask: torch.Tensor | None
    rotary_emb: torch.Tensor

    def repeat_interleave(self, draws: int) -> "ActionContext":
        """A copy of the context with each row repeated `draws` times, as `torch.repeat_interleave`."""

        def repeated(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.repeat_interleave(draws, dim=0)

        return ActionContext(
            [(repeated(keys), repeated(values)) for keys, values in self.past],
            None if self.key_mask is None else repeated(self.key_mask),
            self.rotary_emb if len(self.rotary_emb) == 1 else repeated(self.rotary_emb),
        )


class AIMCache:
    """Keys and values of a batch of rollouts.

    Args:
        config: of the model.
        batch_size: B.
        grid: rows and columns of video tokens in one latent frame.
        device, dtype: of the buffers.

    Attributes:
        frames: (B,), on the CPU, number of latent frames that each row has observed so far.
        text: keys and values of the instruction, of each layer; None before `set_text`.

    With `config.history_chunks` = H a row keeps its last H chunks, and the buffers never grow.
    """

    def __init__(
        self,
        config: AIMConfig,
        batch_size: int,
        grid: tuple[int, int],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.config = config
        self.grid = grid
        self.tokens_per_frame = grid[0] * grid[1]
        self.device, self.dtype = device, dtype
        self.frames = torch.zeros(batch_size, dtype=torch.long, device="cpu")
        self.text: list[KeysValues] | None = None
        # Capacity in latent frames, of observations and of actions each.
        self._slots = (config.history_chunks or 4) * config.chunk_latent_frames
        self._buffers = [self._new_buffer() for _ in range(config.num_layers)]

    def _new_buffer(self) -> KeysValues:
        config = self.config
        tokens = self._slots * (config.actions_per_latent_frame + self.tokens_per_frame)
        tokens += 2 * config.chunk_latent_frames * self.tokens_per_frame
        shape = (self.batch_size, config.num_attention_heads, tokens, config.attention_head_dim)
        # Zeros, because masked keys must be finite.
        return tuple(torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in range(2))

    @property
    def batch_size(self) -> int:
        return len(self.frames)

    @property
    def chunks(self) -> torch.Tensor:
        """(B,), number of observed chunks; the first observation counts as one."""
        chunk_latent_frames = self.config.chunk_latent_frames
        return (self.frames + chunk_latent_frames - 1) // chunk_latent_frames

    # ------------------------------------------------------------------------------------------------ borders

    @property
    def _origin(self) -> int:
        """Index of the first observation token; action tokens lie before it."""
        return self._slots * self.config.actions_per_latent_frame

    @property
    def _kept_observations(self) -> torch.Tensor:
        """(B,), number of latent frames whose observation is cached."""
        return self.frames.clamp(max=self._slots)

    @property
    def _kept_actions(self) -> torch.Tensor:
        """(B,), number of latent frames whose actions are cached. The first observation has no actions."""
        return (self.frames - 1).clamp(min=0, max=self._slots)

    @property
    def held(self) -> torch.Tensor:
        """(B,), equal for rows that have filled the same slots: rows with equally many frames, and all full rows."""
        return self.frames.clamp(max=self._slots + 1)

    @property
    def observation_tokens(self) -> int:
        """Number of cached observation tokens, of the row that has most."""
        return int(self._kept_observations.max()) * self.tokens_per_frame

    @property
    def action_tokens(self) -> int:
        """Number of cached action tokens, of the row that has most."""
        return int(self._kept_actions.max()) * self.config.actions_per_latent_frame

    def next_frames(self, count: int) -> torch.Tensor:
        """Indices of the `count` latent frames after the last observed one: (B, count), or (1, count) if they are the
        same in all rows."""
        frames = self.frames[:1] if (self.frames == self.frames[0]).all() else self.frames
        return frames[:, None] + torch.arange(count, device="cpu")

    def mask(self, *, actions: bool, observations: bool, before: int = 0, after: int = 0) -> torch.Tensor | None:
        """Key mask (B, 1, 1, keys), False for keys that a row doesn't have; None if every row has all keys.

        Args:
            actions, observations: whether the keys contain the cached actions, and the cached observations.
            before, after: number of other keys before and after the cached ones, which every row has.
        """
        if (self.held == self.held[0]).all():
            return None
        parts = []
        if actions:
            slots = torch.arange(int(self._kept_actions.max()), device="cpu")
            filled = (slots < self._kept_actions[:, None]).repeat_interleave(
                self.config.actions_per_latent_frame, dim=1
            )
            parts.append(filled.flip(1))  # actions grow left
        if observations:
            slots = torch.arange(int(self._kept_observations.max()), device="cpu")
            filled = slots < self._kept_observations[:, None]
            parts.append(filled.repeat_interleave(self.tokens_per_frame, dim=1))
        return F.pad(torch.cat(parts, dim=1)[:, None, None].to(self.device), (before, after), value=True)

    # ------------------------------------------------------------------------------------------------- checks

    def check_started(self) -> None:
        """Raises ValueError, naming the rows, if some hold no observation yet."""
        if waiting := (self.frames == 0).nonzero().flatten().tolist():
            raise ValueError(f"rows {waiting} of the cache hold no observation yet; call append first.")

    def check_appended(self, latents: torch.Tensor, actions: torch.Tensor | None) -> None:
        """Raises ValueError if the next observation can't have these latents and executed actions."""
        config, f = self.config, latents.shape[2]
        if self.text is None:
            raise ValueError("the cache has no instruction yet; call set_text first.")
        started = self.frames > 0
        if started.any() != started.all():
            raise ValueError(
                f"rows {(~started).nonzero().flatten().tolist()} have observed nothing yet and others have; append to "
                "them in separate calls, by `rows`."
            )
        if not started.any() and (f != 1 or actions is not None):
            raise ValueError(f"the first observation is one latent frame without actions, got {f} frames.")
        if started.any() and f != config.chunk_latent_frames:
            raise ValueError(
                f"an observation after the first has {config.chunk_latent_frames} latent frames, got {f}."
            )
        expected = (latents.shape[0], f * config.actions_per_latent_frame, config.action_dim)
        if started.any() and (actions is None or actions.shape != expected):
            raise ValueError(
                f"executed actions are {None if actions is None else tuple(actions.shape)}; expected {expected}."
            )

    # --------------------------------------------------------------------------------------- reading and writing

    def history(self, room: int = 0) -> list[KeysValues]:
        """Keys and values of each layer: cached actions, cached observations, and room for `room` more tokens, at most
        the RGB and value tokens of the next chunk."""
        return self._views(self._origin - self.action_tokens, self._origin + self.observation_tokens + room)

    def action_history(self) -> list[KeysValues]:
        """Cached actions of each layer."""
        return self._views(self._origin - self.action_tokens, self._origin)

    def new_room(self, tokens: int) -> torch.Tensor:
        """An empty buffer (B, heads, tokens, head_dim) for keys or values of a layer, to concatenate behind others."""
        config = self.config
        shape = self.batch_size, config.num_attention_heads, tokens, config.attention_head_dim
        return torch.empty(shape, device=self.device, dtype=self.dtype)

    def _views(self, start: int, stop: int) -> list[KeysValues]:
        return [(keys[:, :, start:stop], values[:, :, start:stop]) for keys, values in self._buffers]

    def current_frame(self) -> Iterator[KeysValues]:
        """Yields for each layer a copy of the keys and values of each row's last observed latent frame."""
        starts = (self.frames[:, None] - 1) % self._slots * self.tokens_per_frame + self._origin
        index = self._index(starts, self.tokens_per_frame)
        for pair in self._buffers:
            yield tuple(buffer[index].transpose(1, 2) for buffer in pair)

    def _index(self, starts: torch.Tensor, length: int) -> tuple[torch.Tensor, slice, torch.Tensor]:
        """Index of `length` tokens from each of `starts`, (B, frames), in a buffer."""
        tokens = (starts[..., None] + torch.arange(length, device="cpu")).flatten(1)
        return torch.arange(self.batch_size, device=self.device)[:, None], slice(None), tokens.to(self.device)

    def reserve(self, latent_frames: int) -> None:
        """Makes room for `latent_frames` more. Only an unlimited history grows, by an eighth of its capacity. At most
        an eighth of the memory is unused then, and a token is copied about 8 times."""
        needed = int(self.frames.max()) + latent_frames
        if self.config.history_chunks is None and needed > self._slots:
            self._grow(max(needed, self._slots + self._slots // 8))

    def _grow(self, slots: int) -> None:
        origin = self._origin
        start, stop = origin - self.action_tokens, origin + self.observation_tokens
        self._slots = slots
        shift = self._origin - origin
        # Layer by layer: the old buffer of a layer is freed before the next layer gets its new one.
        for layer, old_pair in enumerate(self._buffers):
            new_pair = self._new_buffer()
            for before, after in zip(old_pair, new_pair):
                after[:, :, start + shift : stop + shift] = before[:, :, start:stop]
            self._buffers[layer] = new_pair

    def observed_slots(self, latent_frames: int) -> tuple[tuple, tuple]:
        """Indices, for `keep`, of `latent_frames` new observed frames and of the actions before them."""
        frames = self.frames[:, None] + torch.arange(latent_frames, device="cpu")
        L, n = self.tokens_per_frame, self.config.actions_per_latent_frame
        observation_starts = self._origin + frames % self._slots * L
        action_starts = self._origin - ((frames - 1) % self._slots + 1) * n
        return self._index(observation_starts, L), self._index(action_starts, n)

    def keep(self, layer: int, slots: tuple, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Writes keys and values to `slots`, which overwrites the oldest chunk once the history is full."""
        for buffer, new in zip(self._buffers[layer], (keys, values)):
            buffer[slots] = new.transpose(1, 2).to(buffer.dtype)  # autocast computes in another dtype

    def advance(self, latent_frames: int) -> None:
        """Counts `latent_frames` frames as observed, after `keep` wrote them in all layers."""
        self.frames = self.frames + latent_frames

    # --------------------------------------------------------------------------------------------------- rows

    def select(self, rows: torch.Tensor) -> "AIMCache":
        """A copy of these rows, in this order; a row may be given several times."""
        other = copy.copy(self)
        other.frames = self.frames[rows]
        rows = rows.to(self.device)
        other._buffers = [(keys[rows], values[rows]) for keys, values in self._buffers]
        other.text = None if self.text is None else [(keys[rows], values[rows]) for keys, values in self.text]
        return other

    @staticmethod
    def stack(caches: "Sequence[AIMCache]") -> "AIMCache":
        """A copy of the rows of all caches, in order; the inverse of `select`."""
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
        """Replaces the histories of `rows` by those of `other`'s rows; the instructions stay."""
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
        """Clears the history of `rows`."""
        self.frames = self.frames.index_fill(0, rows, 0)
        rows = rows.to(self.device)
        for buffer in (buffer for pair in self._buffers for buffer in pair):
            buffer[rows] = 0  # a mask hides old keys, but not NaN among them


def _stacked(layers: "Sequence[list[KeysValues]]") -> list[KeysValues]:
    return [tuple(torch.cat(parts) for parts in zip(*pairs, strict=True)) for pairs in zip(*layers, strict=True)]

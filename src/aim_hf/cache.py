"""The keys and values of a rollout.

One buffer per layer holds

    [ action history, growing left | observations, growing right | X | M ]

so that the visible sets of eq. (10) are plain slices of it: V_x is the slice from the first action to the end of X,
V_m the one from the first observation to the end of M. V_a is small (last observed latent frame, action history, value
tokens); it is gathered once a chunk. Positions are absolute, so keys stay valid for as long as they are kept.

Attention has no order of keys. It is what lets actions grow left, and what makes both histories rings once
`history_chunks` is reached: latent frame f lives in slot f modulo the number of slots, and a new chunk overwrites the
oldest one where it lies. Nothing is ever moved.

Rows may differ in age, when some of them have been reset. Each fills its slots from the middle outwards, so rows of
the same length need no mask; others get one for what they don't have yet.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

KeysValues = tuple[torch.Tensor, torch.Tensor]  # (B, heads, tokens, head_dim) each


class AIMCache:
    """Keys and values of a batch of rollouts.

    Args:
        config: the model's `AIMConfig`.
        batch_size: B.
        tokens_per_frame: video tokens of one latent frame.
        device, dtype: of the buffers.

    `frames` (B,), on the CPU, counts the latent frames that each row has observed so far, `chunks` the chunks. With
    `config.history_chunks` = H a row keeps its last H chunks, and the buffers never grow.
    """

    def __init__(self, config, batch_size: int, tokens_per_frame: int, device=None, dtype=None):
        self.config = config
        self.tokens_per_frame = tokens_per_frame
        self.device, self.dtype = device, dtype
        self.frames = torch.zeros(batch_size, dtype=torch.long, device="cpu")
        self.holds_future = False  # whether X and M have been written since the last observation
        # One pair of keys and values per layer.
        self.text: list[KeysValues] | None = None
        self.action_context: list[KeysValues] | None = None
        # Latent frames that fit, and actions of as many.
        self._slots = (config.history_chunks or 4) * config.chunk_latent_frames
        self._buffers = [self._new_buffer() for _ in range(config.num_layers)]
        self._history_mask: torch.Tensor | None = None
        # Positions of the tokens of the next chunk, as the model rotates by them.
        self.rotations: dict[str, KeysValues] = {}

    def _new_buffer(self) -> KeysValues:
        config = self.config
        tokens = self._origin + (self._slots + 2 * config.chunk_latent_frames) * self.tokens_per_frame
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

    @property
    def actions_start(self) -> int:
        return self._origin - self.action_tokens

    @property
    def observations_start(self) -> int:
        return self._origin

    @property
    def future_start(self) -> int:
        return self._origin + self.observation_tokens

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
        if self._history_mask is None:
            held = []
            for kept, tokens, reverse in (
                (self._kept_actions, self.config.actions_per_latent_frame, True),
                (self._kept_observations, self.tokens_per_frame, False),
            ):
                slots = torch.arange(int(kept.max()), device="cpu")
                seen = (slots < kept[:, None]).repeat_interleave(tokens, dim=1)
                held.append(seen.flip(1) if reverse else seen)
            self._history_mask = torch.cat(held, dim=1)[:, None, None].to(self.device)
        start = 0 if actions else self.action_tokens
        stop = None if observations else self.action_tokens
        return F.pad(self._history_mask[..., start:stop], (before, after), value=True)

    # --------------------------------------------------------------------------------------- reading and writing

    def write(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        for buffer, new in zip(self._buffers[layer], (keys, values)):
            buffer[:, :, start : start + new.shape[2]] = new

    def view(self, layer: int, start: int, stop: int) -> KeysValues:
        keys, values = self._buffers[layer]
        return keys[:, :, start:stop], values[:, :, start:stop]

    def current_frame(self, layer: int) -> KeysValues:
        """The last observed latent frame of each row."""
        slots = (self.frames - 1) % self._slots * self.tokens_per_frame + self._origin
        places = (slots[:, None] + torch.arange(self.tokens_per_frame, device="cpu")).to(self.device)
        rows = torch.arange(self.batch_size, device=self.device)[:, None]
        return tuple(buffer[rows, :, places].transpose(1, 2) for buffer in self._buffers[layer])

    def action_history(self, layer: int) -> KeysValues:
        return self.view(layer, self.actions_start, self._origin)

    def reserve(self, latent_frames: int) -> None:
        """Makes room for `latent_frames` more. Only unlimited history ever grows; it doubles, so that the copies cost
        O(1) a token."""
        needed = int(self.frames.max()) + latent_frames
        if self.config.history_chunks is None and needed > self._slots:
            self._grow(max(needed, 2 * self._slots))

    def _grow(self, slots: int) -> None:
        old, origin, start, stop = self._buffers, self._origin, self.actions_start, self.future_start
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
        self._changed()

    def _changed(self) -> None:
        self.action_context = None
        self._history_mask = None
        self.rotations = {}
        self.holds_future = False

    # --------------------------------------------------------------------------------------------------- rows

    def select(self, rows: torch.Tensor) -> "AIMCache":
        """A cache of these rows, in this order; a row may be taken several times. It shares nothing with this one."""
        other = AIMCache.__new__(AIMCache)
        other.__dict__.update(self.__dict__)
        other.frames = self.frames[rows]
        rows = rows.to(self.device)
        other._buffers = [(keys[rows], values[rows]) for keys, values in self._buffers]
        other.text = None if self.text is None else [(keys[rows], values[rows]) for keys, values in self.text]
        other._changed()
        return other

    @staticmethod
    def stack(caches: "Sequence[AIMCache]") -> "AIMCache":
        """The inverse of `select`: a cache of the rows of all of these, in order. It shares nothing with them."""
        slots = max(cache._slots for cache in caches)
        for cache in caches:
            if cache._slots < slots:
                cache._grow(slots)
        other = AIMCache.__new__(AIMCache)
        other.__dict__.update(caches[0].__dict__)
        other.frames = torch.cat([cache.frames for cache in caches])
        other._buffers = _stacked([cache._buffers for cache in caches])
        other.text = _stacked([cache.text for cache in caches])
        other._changed()
        return other

    def assign(self, rows: torch.Tensor, other: "AIMCache") -> None:
        """Sets `rows` to the histories of `other`'s rows; texts stay."""
        if other._slots > self._slots:
            self._grow(other._slots)
        shift = self._origin - other._origin
        start, stop = other.actions_start, other.future_start
        self.frames = self.frames.index_copy(0, rows, other.frames)
        rows = rows.to(self.device)
        for pair, other_pair in zip(self._buffers, other._buffers):
            for buffer, new in zip(pair, other_pair):
                buffer[rows, :, start + shift : stop + shift] = new[:, :, start:stop]
        self._changed()

    def reset(self, rows: torch.Tensor) -> None:
        """Forgets what `rows` have observed."""
        self.frames = self.frames.index_fill(0, rows, 0)
        rows = rows.to(self.device)
        for buffer in (buffer for pair in self._buffers for buffer in pair):
            buffer[rows] = 0  # a mask keeps out old keys, but not NaN among them
        self._changed()


def _stacked(layers: "Sequence[list[KeysValues]]") -> list[KeysValues]:
    return [tuple(torch.cat(parts) for parts in zip(*pairs, strict=True)) for pairs in zip(*layers, strict=True)]

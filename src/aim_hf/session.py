"""A batch of episodes in progress: what an [`AIMPipeline`] has been told and shown so far, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import torch

from .cache import AIMCache
from .codec import VideoCodec

if TYPE_CHECKING:
    from .pipeline_aim import AIMPipeline


class AIMSession:
    """Instruction and real history of each row, as keys and values, and where its video codec stands.

    Made by [`AIMPipeline.start`]. Rows don't influence each other, and may differ in age: `reset` starts new episodes
    in some of them, `append(..., rows=...)` moves some of them on. `select` drops rows, or forks them; `stack` joins
    sessions.
    """

    def __init__(
        self, pipe: AIMPipeline, prompt_embeds: torch.Tensor, negative_prompt_embeds: torch.Tensor | None = None
    ):
        self.pipe = pipe
        self.codec = VideoCodec(pipe.vae)
        height, width = (n // self.codec.spatial_factor for n in pipe.processor.canvas_size)
        self.latent_size = (height, width)
        self.cache = self._new_cache(prompt_embeds)
        # The same history under the negative prompt: text reaches every video token, so nothing of it can be shared.
        self.negative_cache = None if negative_prompt_embeds is None else self._new_cache(negative_prompt_embeds)
        # (B, 16), what actions of space `ee` are relative to; a row's first observation sets it.
        relative = pipe.processor.action_space == "ee"
        self.initial_pose = torch.zeros(self.batch_size, 16, dtype=torch.float64) if relative else None
        self._encoders = [self.codec.encoder_state() for _ in range(self.batch_size)]
        self._decoders = [self.codec.decoder_state() for _ in range(self.batch_size)]
        # Real latent frames (C, 1, h, w) that each row's decoder hasn't seen: it catches up when someone wants frames.
        self._undecoded: list[list[torch.Tensor]] = [[] for _ in range(self.batch_size)]

    @torch.no_grad()
    def _new_cache(self, prompt_embeds: torch.Tensor) -> AIMCache:
        model = self.pipe.model
        cache = model.new_cache(len(prompt_embeds), *self.latent_size)
        model.set_text(cache, prompt_embeds.to(model.device, model.dtype))
        return cache

    @property
    def batch_size(self) -> int:
        return self.cache.batch_size

    @property
    def chunks(self) -> list[int]:
        """Chunks that each row has executed so far."""
        return (self.cache.chunks - 1).clamp(min=0).tolist()

    @property
    def forms(self) -> list[tuple]:
        """Of each row, what its past looks like in memory. Rows of one form run together as one batch; a call on rows
        of several forms masks what some of them lack, and encodes them apart."""
        return [(held, *encoder.form) for held, encoder in zip(self.cache.held.tolist(), self._encoders, strict=True)]

    @property
    def waiting(self) -> list[int]:
        """The rows that have no observation yet."""
        return (self.cache.frames == 0).nonzero().flatten().tolist()

    @torch.no_grad()
    def append(self, observations, executed_actions=None, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Appends what really happened. Bad input is refused before anything changes.

        Args:
            observations: in RoboTwin's layout, in time order, one list a row; for one row the outer list may be left
                out. To a row that has none yet a single observation, before any action; then, after each chunk, the
                `pipe.frames_per_chunk` ones taken after every `pipe.actions_per_frame` actions.
            executed_actions: (B, `pipe.actions_per_chunk`, action_dim), or without B for one row: the actions that
                were executed since, in physical units. None with first observations.
            rows: to which rows; the other arguments are of these alone. All if not given. Rows that wait for their
                first observation and rows that have one are appended to apart.

        Returns:
            the observations' latents, (rows, C, f, h, w).

        Raises:
            ValueError: for wrong numbers of rows, observations or actions, and whatever the processor refuses.
        """
        processor, index = self.pipe.processor, self._index(rows)
        first = self.cache.frames[index] == 0
        if first.any() != first.all():
            raise ValueError(
                f"rows {index[first].tolist()} wait for their first observation, and rows {index[~first].tolist()} "
                "for what followed an action; append to them apart, by `rows`."
            )
        first = bool(first.all())
        given = self._rows(observations, len(index))
        expected = 1 if first else self.pipe.frames_per_chunk
        for row, moments in zip(index.tolist(), given, strict=True):
            if len(moments) != expected:
                raise ValueError(
                    f"row {row} has {len(moments)} observations; expected 1 before any action, and after each chunk "
                    f"{self.pipe.frames_per_chunk}, one after every {self.pipe.actions_per_frame} of its actions. "
                    f"{self.cache.chunks[row]} times something was appended to it so far."
                )
        canvas = np.stack(
            [
                np.stack([self._canvas(row, number, observation) for number, observation in enumerate(moments)])
                for row, moments in zip(index.tolist(), given, strict=True)
            ]
        )
        poses, actions = None, None
        if first:
            if executed_actions is not None:
                raise ValueError("executed_actions came with the first observation; nothing was executed before it.")
            if self.initial_pose is not None:
                poses = torch.stack([processor.initial_pose(moments[0]) for moments in given])
        else:
            actions = self._executed(executed_actions, index)

        model = self.pipe.model
        streams = [self._encoders[row] for row in index]
        latents = torch.stack(self.codec.encode_streams(processor.canvas_to_pixels(canvas), streams))
        seen = latents.to(model.device, model.dtype)
        executed = None if actions is None else actions.to(model.device, model.dtype)
        for cache in (self.cache, self.negative_cache):
            if cache is not None:
                model.append(cache, seen, executed, rows=None if len(index) == self.batch_size else index)
        if poses is not None:
            self.initial_pose[index] = poses
        for row, frames in zip(index.tolist(), latents, strict=True):
            self._undecoded[row] += frames.split(1, dim=1)
        return latents

    @torch.no_grad()
    def reset(self, rows: int | Sequence[int], instruction: str | Sequence[str]) -> None:
        """Starts new episodes in `rows`, while the others go on. What is appended to them next is a first observation.

        Args:
            rows: one, or some.
            instruction: one for all of them, or a list of one for each.

        Raises:
            ValueError: for an empty instruction, another number of them, or rows that the session doesn't have.
        """
        index = self._index(rows)
        prompt_embeds = self.pipe.encode_prompt(instruction)
        if isinstance(instruction, str):
            prompt_embeds = prompt_embeds.expand(len(index), -1, -1)
        elif len(instruction) != len(index):
            raise ValueError(f"{len(instruction)} instructions for {len(index)} rows; give one for each, or one.")
        model = self.pipe.model
        self.cache.reset(index)
        model.set_text(self.cache, prompt_embeds.to(model.device, model.dtype), rows=index)
        if self.negative_cache is not None:
            self.negative_cache.reset(index)
        for row in index.tolist():
            self._encoders[row], self._decoders[row] = self.codec.encoder_state(), self.codec.decoder_state()
            self._undecoded[row] = []

    def select(self, rows: Sequence[int]) -> AIMSession:
        """A session of these rows, in this order, that goes on by itself. A row may be taken several times, which
        forks its episode: nothing of the common past is computed again.

        Raises:
            ValueError: for rows that the session doesn't have.
        """
        index = self._index(rows, several=True)
        other = AIMSession.__new__(AIMSession)
        other.__dict__.update(self.__dict__)
        other.cache = self.cache.select(index)
        other.negative_cache = None if self.negative_cache is None else self.negative_cache.select(index)
        other.initial_pose = None if self.initial_pose is None else self.initial_pose[index]
        other._encoders = [self._encoders[row].fork() for row in index]
        other._decoders = [self._decoders[row].fork() for row in index]
        other._undecoded = [list(self._undecoded[row]) for row in index]
        return other

    @staticmethod
    def stack(sessions: Sequence[AIMSession]) -> AIMSession:
        """The inverse of `select`: a session of the rows of all of these, in order, that goes on by itself.

        Raises:
            ValueError: for no session, those of several pipelines, or of which only some have a negative prompt.
        """
        if not isinstance(sessions, Sequence) or not sessions or not all(isinstance(s, AIMSession) for s in sessions):
            raise ValueError(f"sessions are {sessions!r}; expected a list of at least one AIMSession.")
        first = sessions[0]
        if any(session.pipe is not first.pipe for session in sessions):
            raise ValueError("the sessions are of several pipelines; stack those of one.")
        negative = [session.negative_cache for session in sessions if session.negative_cache is not None]
        if len(negative) not in (0, len(sessions)):
            raise ValueError("some of the sessions have a negative prompt, and others none; stack them apart.")
        other = AIMSession.__new__(AIMSession)
        other.__dict__.update(first.__dict__)
        other.cache = AIMCache.stack([session.cache for session in sessions])
        other.negative_cache = AIMCache.stack(negative) if negative else None
        if first.initial_pose is not None:
            other.initial_pose = torch.cat([session.initial_pose for session in sessions])
        other._encoders = [state.fork() for session in sessions for state in session._encoders]
        other._decoders = [state.fork() for session in sessions for state in session._decoders]
        other._undecoded = [list(frames) for session in sessions for frames in session._undecoded]
        return other

    @torch.no_grad()
    def decode_frames(self, latents: torch.Tensor) -> torch.Tensor:
        """Imagined latents (B, C, F, h, w) -> pixels (B, 3, T, H, W), as the continuation of the real frames."""
        while rows := [row for row, frames in enumerate(self._undecoded) if frames]:
            frames = torch.stack([self._undecoded[row].pop(0) for row in rows])
            self.codec.decode_streams(frames, [self._decoders[row] for row in rows])
        return torch.stack(self.codec.decode_streams(latents, [state.fork() for state in self._decoders]))

    def _index(self, rows: int | Iterable[int] | None, several: bool = False) -> torch.Tensor:
        rows = range(self.batch_size) if rows is None else rows.tolist() if torch.is_tensor(rows) else rows
        rows = list(rows) if isinstance(rows, Iterable) else [rows]
        known = [row for row in rows if isinstance(row, Integral) and not isinstance(row, bool)]
        known = [row for row in known if 0 <= row < self.batch_size]
        if not rows or len(known) < len(rows) or (len(set(rows)) < len(rows) and not several):
            raise ValueError(
                f"rows are {rows}; expected some of 0 to {self.batch_size - 1}" + ("." if several else ", each once.")
            )
        return torch.tensor(rows, dtype=torch.long)

    @staticmethod
    def _rows(observations, count: int) -> list[list[Mapping]]:
        rows = [observations] if isinstance(observations, Mapping) else observations
        if isinstance(rows, Sequence) and count == 1 and all(isinstance(moment, Mapping) for moment in rows):
            rows = [rows]
        rows = [[row] if isinstance(row, Mapping) else row for row in rows] if isinstance(rows, Sequence) else [rows]
        if wrong := [type(row).__name__ for row in rows if not isinstance(row, Sequence) or isinstance(row, str)]:
            raise ValueError(f"observations hold {wrong[0]}; expected dicts in RoboTwin's layout, one list a row.")
        if len(rows) != count:
            raise ValueError(f"observations have {len(rows)} rows; expected {count}.")
        return [list(row) for row in rows]

    def _canvas(self, row: int, number: int, observation: Mapping) -> np.ndarray:
        processor = self.pipe.processor
        try:
            canvas = processor.pack_canvas(processor.observation_views(observation))
            if canvas.ndim != 3:
                raise ValueError(f"pictures have leading shape {canvas.shape[:-3]}; expected one picture a camera.")
        except ValueError as error:
            raise ValueError(f"row {row}, observation {number}: {error}") from error
        return canvas

    def _executed(self, actions, index: torch.Tensor) -> torch.Tensor:
        if actions is None:
            raise ValueError("executed_actions are missing; give the actions that led to these observations.")
        actions = as_actions("executed_actions", actions)
        if len(index) == 1 and actions.ndim == 2:
            actions = actions[None]
        expected = (len(index), self.pipe.actions_per_chunk, self.pipe.processor.action_dim)
        if actions.shape != expected:
            raise ValueError(
                f"executed_actions have shape {tuple(actions.shape)}; expected {expected} (rows, actions of one "
                "chunk, numbers of one action)."
            )
        poses = None if self.initial_pose is None else self.initial_pose[index]
        return self.pipe.processor.normalize_executed("executed_actions", actions, poses)


def as_actions(name: str, actions) -> torch.Tensor:
    """Actions in float64. Raises ValueError, naming them, for anything but numbers."""
    try:
        return torch.tensor(np.asarray(actions), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} are {type(actions).__name__}; expected an array of numbers.") from None

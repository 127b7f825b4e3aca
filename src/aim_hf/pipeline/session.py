"""A batch of episodes in progress: instruction and history of each row, for an [`AIMPipeline`]."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch

from ..model.cache import AIMCache
from .codec import CodecState, StreamDecoder
from .recent import RecentFrames


@dataclass
class AIMSession:
    """Instruction and real history of each row. [`AIMPipeline.start`] makes a session, [`AIMPipeline.append`] extends
    it.

    A session is data: it computes nothing. Rows don't influence each other, and may have different numbers of frames.
    `select` drops rows or forks them; `stack` joins sessions. A session may outlive `torch.inference_mode`, so its
    tensors are ordinary ones, which can be written to in any mode.

    pipeline_id: identifies the pipeline that made it; keys and values of another pipeline don't fit.
    cache: keys and values of the history under the instruction.
    negative_cache: keys and values of the same history under the negative prompt, None without one. Every video token
        depends on the text, so the two caches share nothing.
    initial_pose: (B, 16), pose that actions of space `ee` are relative to; a row's first observation sets it. None for
        other action spaces.
    encoders, decoders: state of the video codec, of each row.
    recent: last real frames of each row, None before the first.
    """

    pipeline_id: str
    cache: AIMCache
    negative_cache: AIMCache | None
    initial_pose: torch.Tensor | None
    encoders: list[CodecState]
    decoders: list[StreamDecoder]
    recent: list[RecentFrames | None]

    def __repr__(self) -> str:
        return f"AIMSession(batch_size={self.batch_size}, chunks={self.chunks}, waiting={self.waiting})"

    @property
    def batch_size(self) -> int:
        return self.cache.batch_size

    @property
    def caches(self) -> list[AIMCache]:
        """The cache, and the negative cache if there is one."""
        return [self.cache] if self.negative_cache is None else [self.cache, self.negative_cache]

    @property
    def chunks(self) -> list[int]:
        """Number of chunks in each row's history, including those that it no longer keeps."""
        return (self.cache.chunks - 1).clamp(min=0).tolist()

    @property
    def forms(self) -> list[tuple[int, bool]]:
        """Memory layout of each row's history. Rows of the same form run as one batch without masks; a call on rows of
        different forms masks missing keys, and encodes rows without observation separately."""
        return [(held, encoder.started) for held, encoder in zip(self.cache.held.tolist(), self.encoders, strict=True)]

    @property
    def waiting(self) -> list[int]:
        """The rows that have no observation yet."""
        return (self.cache.frames == 0).nonzero().flatten().tolist()

    @torch.inference_mode(False)
    def select(self, rows: Sequence[int]) -> AIMSession:
        """An independent session of these rows, in this order. Giving a row several times forks its episode, without
        computing the common history again.

        Raises:
            ValueError: for rows that the session doesn't have.
        """
        index = self.row_index(rows, several=True)
        return AIMSession(
            self.pipeline_id,
            cache=self.cache.select(index),
            negative_cache=None if self.negative_cache is None else self.negative_cache.select(index),
            initial_pose=None if self.initial_pose is None else self.initial_pose[index],
            encoders=[self.encoders[row].fork() for row in index],
            decoders=[self.decoders[row] for row in index],
            recent=[self.recent[row] for row in index],
        )

    @staticmethod
    @torch.inference_mode(False)
    def stack(sessions: Sequence[AIMSession]) -> AIMSession:
        """An independent session of the rows of all sessions, in order; the inverse of `select`.

        Raises:
            ValueError: for no session, sessions of different pipelines, dtypes or devices, or if only some have a
                negative prompt.
        """
        if not isinstance(sessions, Sequence) or not sessions or not all(isinstance(s, AIMSession) for s in sessions):
            raise ValueError(f"sessions are {sessions!r}; expected a list of at least one AIMSession.")
        first = sessions[0]
        if any(session.pipeline_id != first.pipeline_id for session in sessions):
            raise ValueError("the sessions are of several pipelines; stack those of one.")
        if len(places := {f"{session.cache.dtype} on {session.cache.device}" for session in sessions}) > 1:
            raise ValueError(f"the sessions are of {' and '.join(sorted(places))}; stack those of the model as it is.")
        negative = [session.negative_cache for session in sessions if session.negative_cache is not None]
        if len(negative) not in (0, len(sessions)):
            raise ValueError("some of the sessions have a negative prompt, and others none; stack them separately.")
        relative = first.initial_pose is not None
        return AIMSession(
            first.pipeline_id,
            cache=AIMCache.stack([session.cache for session in sessions]),
            negative_cache=AIMCache.stack(negative) if negative else None,
            initial_pose=torch.cat([session.initial_pose for session in sessions]) if relative else None,
            encoders=[state.fork() for session in sessions for state in session.encoders],
            decoders=[decoder for session in sessions for decoder in session.decoders],
            recent=[frames for session in sessions for frames in session.recent],
        )

    def row_index(self, rows: int | Iterable[int] | None, several: bool = False) -> torch.Tensor:
        """`rows` as an index tensor; None for all rows. Raises ValueError for rows that the session doesn't have, and,
        unless `several`, for repeated rows."""
        rows = range(self.batch_size) if rows is None else rows.tolist() if torch.is_tensor(rows) else rows
        rows = list(rows) if isinstance(rows, Iterable) else [rows]
        known = [row for row in rows if isinstance(row, Integral) and not isinstance(row, bool)]
        known = [row for row in known if 0 <= row < self.batch_size]
        if not rows or len(known) < len(rows) or (len(set(rows)) < len(rows) and not several):
            raise ValueError(
                f"rows are {rows}; expected some of 0 to {self.batch_size - 1}" + ("." if several else ", each once.")
            )
        return torch.tensor(rows, dtype=torch.long, device="cpu")

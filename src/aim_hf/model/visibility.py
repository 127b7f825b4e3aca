"""Who may see whom: the intent-causal attention of AIM (eq. 10) as one pure function.

A sequence is made of *units*: one latent frame of a video-stream segment, or the actions of one latent frame. Chunk c
holds the latent frames and the actions that follow the current observation o_{c-1}. Clean units carry t = 0.

    query                               keys it may see
    o_c   OBSERVATION    real RGB       o_0..o_c, a_1..a_{c-1}
    a_c   ACTION         executed       last latent frame of o_{c-1}, a_1..a_c
    x_c   FUTURE_RGB     denoised       o_0..o_{c-1}, a_1..a_{c-1}, x_c
    m_c   FUTURE_VALUE   denoised       o_0..o_{c-1}, x_c, m_c
    m̄_c   CLEAN_VALUE    for the head   o_0..o_{c-1}, m̄_c
    a*_c  FUTURE_ACTION  denoised       last latent frame of o_{c-1}, a_1..a_{c-1}, m̄_c, a*_c

`Visibility` names variants of the last two rows, which differ in how the future reaches the actions:

    variant         a*_c also sees            m̄_c sees clean x_c
    map_only        m̄_c                       no                      the default
    aim             m̄_c                       yes                     the paper
    rgb             clean x_c                 -
    both            m̄_c and clean x_c         yes
    observations    nothing                   -

With a lookahead, a*_c goes on beyond its chunk: actions to be executed while the next chunk is computed.
Clean x_c has the content, weights, time and visible set of o_c, so a training sequence needs no second copy of it.
`history_chunks` = H limits the history to chunks c-H..c-1, in whole chunks because `AIMCache` evicts whole chunks. A
training sequence may hold several noise draws of one chunk; denoised units see only their own draw.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum

import torch


class Kind(IntEnum):
    OBSERVATION = 0
    ACTION = 1
    FUTURE_RGB = 2
    FUTURE_VALUE = 3
    CLEAN_VALUE = 4
    FUTURE_ACTION = 5


class Visibility(StrEnum):
    """How the imagined future reaches the actions."""

    MAP_ONLY = "map_only"
    AIM = "aim"
    RGB = "rgb"
    BOTH = "both"
    OBSERVATIONS = "observations"

    @property
    def action_sees_value(self) -> bool:
        return self in (Visibility.AIM, Visibility.MAP_ONLY, Visibility.BOTH)

    @property
    def action_sees_rgb(self) -> bool:
        return self in (Visibility.RGB, Visibility.BOTH)

    @property
    def clean_value_sees_rgb(self) -> bool:
        return self in (Visibility.AIM, Visibility.BOTH)

    @property
    def action_needs_rgb(self) -> bool:
        """Whether imagined RGB reaches the actions, directly or through the clean value tokens."""
        return self.action_sees_rgb or self.clean_value_sees_rgb


@dataclass
class Units:
    """Attributes of U units, each a long tensor of shape (U,).

    kind: a `Kind`; chunk: c, with 0 for the first observation; frame: index of the latent frame, counted from the
    start of the sequence; draw: index of the noise draw, 0 for clean units.
    """

    kind: torch.Tensor
    chunk: torch.Tensor
    frame: torch.Tensor
    draw: torch.Tensor

    @classmethod
    def segment(cls, kind: Kind, frames: torch.Tensor, chunk_latent_frames: int, draw: int = 0) -> "Units":
        """The units of one segment that covers latent `frames` (long, (N,)). Frame 0 is chunk 0, then each F frames
        are a chunk."""
        chunk = (frames + chunk_latent_frames - 1) // chunk_latent_frames
        return cls(torch.full_like(frames, int(kind)), chunk, frames, torch.full_like(frames, draw))

    @classmethod
    def future_actions(
        cls, chunks: torch.Tensor, chunk_latent_frames: int, lookahead_frames: int, draw: int = 0
    ) -> "Units":
        """The units of a*_c for each of `chunks` (long, (K,)), F + lookahead of them a chunk."""
        steps = torch.arange(1, 1 + chunk_latent_frames + lookahead_frames, device=chunks.device)
        frame = ((chunks - 1) * chunk_latent_frames)[:, None] + steps
        chunk = chunks[:, None].expand_as(frame).flatten()
        return cls(
            torch.full_like(chunk, int(Kind.FUTURE_ACTION)), chunk, frame.flatten(), torch.full_like(chunk, draw)
        )

    @classmethod
    def concatenate(cls, segments: list["Units"]) -> "Units":
        return cls(*(torch.cat([getattr(s, name) for s in segments]) for name in ("kind", "chunk", "frame", "draw")))


def visible(
    query: Units,
    key: Units,
    chunk_latent_frames: int,
    history_chunks: int | None = None,
    visibility: Visibility = Visibility.MAP_ONLY,
) -> torch.Tensor:
    """The tables above. Returns a bool tensor (queries, keys), `True` where the query may see the key."""
    qk, qc, qd = query.kind[:, None], query.chunk[:, None], query.draw[:, None]
    kk, kc, kf, kd = key.kind[None], key.chunk[None], key.frame[None], key.draw[None]

    is_o, is_a = kk == Kind.OBSERVATION, kk == Kind.ACTION
    recent = kc >= (qc - history_chunks if history_chunks is not None else 0)
    past_o, past_a = is_o & recent & (kc < qc), is_a & recent & (kc < qc)
    # Chunk c-1 ends with latent frame (c-1) * F.
    current_o = is_o & (kf == (qc - 1) * chunk_latent_frames)
    same_chunk, same_draw = kc == qc, kd == qd

    rules = {
        Kind.OBSERVATION: past_o | past_a | (is_o & same_chunk),
        Kind.ACTION: current_o | past_a | (is_a & same_chunk),
        Kind.FUTURE_RGB: past_o | past_a | ((kk == Kind.FUTURE_RGB) & same_chunk & same_draw),
        Kind.FUTURE_VALUE: past_o | (((kk == Kind.FUTURE_RGB) | (kk == Kind.FUTURE_VALUE)) & same_chunk & same_draw),
        Kind.CLEAN_VALUE: past_o
        | (is_o & same_chunk & visibility.clean_value_sees_rgb)
        | ((kk == Kind.CLEAN_VALUE) & same_chunk),
        Kind.FUTURE_ACTION: current_o
        | past_a
        | ((kk == Kind.CLEAN_VALUE) & same_chunk & visibility.action_sees_value)
        | (is_o & same_chunk & visibility.action_sees_rgb)
        | ((kk == Kind.FUTURE_ACTION) & same_chunk & same_draw),
    }
    result = torch.zeros(len(query.kind), len(key.kind), dtype=torch.bool, device=query.kind.device)
    for kind, rule in rules.items():
        result |= (qk == kind) & rule
    return result

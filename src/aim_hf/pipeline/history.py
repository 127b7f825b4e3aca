"""Observed frames and executed actions enter the history of a session: the codec encodes them, the model caches their
keys and values."""

from dataclasses import replace

import numpy as np
import torch

from ..model.cache import AIMCache
from ..model.modeling_aim import AIMForWorldAction
from ..model.processing_aim import AIMProcessor
from .codec import CodecState, StreamDecoder, VideoCodec
from .recent import RecentFrames
from .session import AIMSession


def extend(
    model: AIMForWorldAction,
    codec: VideoCodec,
    session: AIMSession,
    index: torch.Tensor,
    pixels: torch.Tensor,
    actions: torch.Tensor | None,
) -> torch.Tensor:
    """Appends a first frame, or a chunk and its normalized actions, to rows of a session. Returns its latents.

    index: (n,), the rows. pixels: (n, 3, T, H, W). actions: (n, actions_per_chunk, action_dim), None with a first
    frame.
    """
    encoders = [session.encoders[row].fork() for row in index]
    latents = torch.stack(codec.encode_streams(pixels, encoders))
    _append_latents(model, session.caches, index, latents, actions)
    for row, encoder, frames in zip(index.tolist(), encoders, latents, strict=True):
        decoder = session.decoders[row]
        session.encoders[row] = encoder
        # A copy: a view would keep the latents of all rows, also of those whose episode has ended.
        session.decoders[row] = replace(decoder, unseen=decoder.unseen + frames.clone().split(1, dim=1))
    return latents


def encode_again(
    model: AIMForWorldAction,
    codec: VideoCodec,
    processor: AIMProcessor,
    session: AIMSession,
    index: torch.Tensor,
    recent: list[RecentFrames],
) -> torch.Tensor:
    """Replaces the history of rows by their recent frames (recent.py), encoded anew. Returns the latents of the last
    chunk, (n, C, F, h, w)."""
    frames_per_chunk = model.config.chunk_latent_frames * codec.temporal_factor
    clips, actions = zip(*(frames.whole_chunks(frames_per_chunk) for frames in recent))
    # Copies: if the memory is full, or after Ctrl-C, the session has its history still, and the same call may follow.
    caches = [cache.select(index) for cache in session.caches]
    encoded: list[tuple[CodecState, torch.Tensor]] = [None] * len(index)
    for length in sorted({len(clip) for clip in clips}):
        places = [place for place, clip in enumerate(clips) if len(clip) == length]
        encoders = [codec.encoder_state() for _ in places]
        pixels = processor.canvas_to_pixels(np.stack([clips[place] for place in places]))
        latents = torch.stack(codec.encode_streams(pixels, encoders))
        of_places = torch.stack([actions[place] for place in places])
        _replace_history(model, caches, torch.tensor(places, device="cpu"), latents, of_places)
        for place, encoder, frames in zip(places, encoders, latents, strict=True):
            encoded[place] = encoder, frames
    for cache, renewed in zip(session.caches, caches, strict=True):
        cache.reset(index)
        cache.assign(index, renewed)
    for row, (encoder, frames) in zip(index.tolist(), encoded, strict=True):
        session.encoders[row] = encoder
        session.decoders[row] = StreamDecoder(codec.decoder_state(), unseen=frames.clone().split(1, dim=1))
    return torch.stack([frames[:, -model.config.chunk_latent_frames :] for _, frames in encoded])


def _replace_history(
    model: AIMForWorldAction,
    caches: list[AIMCache],
    rows: torch.Tensor,
    latents: torch.Tensor,
    actions: torch.Tensor,
) -> None:
    """Caches a first frame and the chunks after it, of which only the newest `history_chunks` are kept."""
    chunk, history = model.config.chunk_latent_frames, model.config.history_chunks
    chunks = (latents.shape[2] - 1) // chunk
    first = chunks - (chunks if history is None else min(chunks, history))
    for cache in caches:
        cache.reset(rows)
    _append_latents(model, caches, rows, latents[:, :, first * chunk : first * chunk + 1], None)
    for number in range(first, chunks):
        frames = slice(1 + number * chunk, 1 + (number + 1) * chunk)
        steps = slice(number * model.config.actions_per_chunk, (number + 1) * model.config.actions_per_chunk)
        _append_latents(model, caches, rows, latents[:, :, frames], actions[:, steps])


def _append_latents(
    model: AIMForWorldAction,
    caches: list[AIMCache],
    index: torch.Tensor,
    latents: torch.Tensor,
    actions: torch.Tensor | None,
) -> None:
    device, dtype = model.device, model.dtype
    rows = None if index.tolist() == list(range(caches[0].batch_size)) else index
    latents, actions = latents.to(device, dtype), None if actions is None else actions.to(device, dtype)
    frames = [cache.frames for cache in caches]
    try:
        for cache in caches:
            model.append(cache, latents, actions, rows=rows)
    except BaseException:  # out of memory, or Ctrl-C: the same call may follow, and must not append to one cache twice
        for cache, count in zip(caches, frames, strict=True):
            cache.frames = count
        raise

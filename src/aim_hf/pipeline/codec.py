"""The shared, frozen VAE E of eq. (2): pixels <-> normalized latents, of whole clips or of streams.

`AutoencoderKLWan` is causal in time: each convolution needs the last frames of its input, and `encode`/`decode` keep
these in a feature cache while they process a clip, one latent frame at a time. Here the caller holds that cache, as a
`CodecState`. A rollout therefore encodes only its new frames, with the same result as encoding the video from its
start. An imagined future is decoded from a fork of the state after the real past.

Latents are normalized per channel, (z - latents_mean) / latents_std, as in diffusers' `WanPipeline`; encoding takes
the posterior's mode. Tiling and slicing, which split a clip in space or batch, are not used.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from torch.amp import is_autocast_available

BLACK = -1.0  # pixel value


@dataclass
class CodecState:
    """State of a stream: the feature cache of each causal convolution, and whether a first frame was processed.

    The VAE replaces entries of `features` and never writes into them, so forks share their tensors safely.
    """

    features: list[torch.Tensor | str | None]  # "Rep" is the VAE's mark of a first frame
    started: bool = False

    def fork(self) -> "CodecState":
        return CodecState(list(self.features), self.started)

    def expand(self, batch_size: int) -> "CodecState":
        """The state of this stream's single row, repeated for `batch_size` rows."""
        features = [f.expand(batch_size, -1, -1, -1, -1) if torch.is_tensor(f) else f for f in self.features]
        return CodecState(features, self.started)

    @staticmethod
    def stack(states: "Sequence[CodecState]") -> "CodecState":
        """One state of several rows, from states of one row each, of which all have started or none has.

        A stream that has just started caches one frame or "Rep" where an older one caches two. Zeros take the place of
        the missing frames, as they do in the convolution's own padding.
        """
        if len(states) == 1:
            return states[0].fork()
        columns = zip(*(state.features for state in states), strict=True)
        return CodecState([_stack_features(column) for column in columns], states[0].started)

    def unstack(self, rows: int) -> "list[CodecState]":
        """States of one row each; the inverse of `stack`."""
        # Views would keep the memory of all rows, also of those whose episode has ended.
        columns = [[g.clone() for g in f.split(1)] if torch.is_tensor(f) else [f] * rows for f in self.features]
        return [CodecState([column[row] for column in columns], self.started) for row in range(rows)]


@dataclass(frozen=True)
class StreamDecoder:
    """Decoder of one row's stream.

    unseen: latent frames (C, 1, h, w) of the stream that it hasn't decoded yet, because no pictures were requested.
    """

    state: CodecState
    unseen: tuple[torch.Tensor, ...] = ()


def _without_autocast(method: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Computes in the VAE's own dtype, also inside of somebody's autocast: trained VAEs are wrong in bfloat16."""

    @wraps(method)
    def run(self: "VideoCodec", *args: torch.Tensor | CodecState, **kwargs: torch.Tensor | CodecState) -> torch.Tensor:
        device = self.vae.device.type
        with torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext():
            return method(self, *args, **kwargs)

    return run


class VideoCodec:
    """Encodes and decodes with a frozen `AutoencoderKLWan`.

    A clip of 1 + k * temporal_factor frames has 1 + k latent frames. Shapes: pixels (B, 3, T, H, W) in [-1, 1],
    latents (B, C, f, H / spatial_factor, W / spatial_factor).

    Raises:
        ValueError: if the VAE's latents_mean or latents_std don't fit its latents.
    """

    def __init__(self, vae: AutoencoderKLWan):
        self.vae = vae
        self.temporal_factor: int = vae.config.scale_factor_temporal
        self.spatial_factor: int = vae.config.scale_factor_spatial
        for name in ("latents_mean", "latents_std"):
            if len(vae.config[name]) != vae.config.z_dim:
                raise ValueError(
                    f"vae.config.{name} has {len(vae.config[name])} numbers; expected one for each of the "
                    f"{vae.config.z_dim} latent channels."
                )
        self._black_states: dict[tuple, tuple[CodecState, CodecState]] = {}

    def encoder_state(self) -> CodecState:
        """The state of an encoder before a clip's first frame."""
        return CodecState([None] * _count_causal_convolutions(self.vae.encoder))

    def decoder_state(self) -> CodecState:
        """The state of a decoder before a clip's first latent frame."""
        return CodecState([None] * _count_causal_convolutions(self.vae.decoder))

    @torch.no_grad()
    @_without_autocast
    def encode(self, pixels: torch.Tensor, state: CodecState | None = None) -> torch.Tensor:
        """Encodes a clip, or the next frames of the clip whose state is `state`; advances `state`.

        Args:
            pixels: (B, 3, T, H, W) in [-1, 1]. T is 1 + k * temporal_factor at a clip's start, k * temporal_factor
                after it.

        Returns:
            (B, C, f, h, w), normalized; f is 1 + k at a clip's start, k after it.

        Raises:
            ValueError: for another number of frames, or a size not divisible by `spatial_factor`.
        """
        state = state if state is not None else self.encoder_state()
        self._check_pixels(pixels, started=state.started)
        mean, std = self._statistics()
        x = pixels.to(mean)
        if self.vae.config.patch_size is not None:
            x = patchify(x, patch_size=self.vae.config.patch_size)
        sizes = ([] if state.started else [1]) + [self.temporal_factor] * (x.shape[2] // self.temporal_factor)
        moments = [self.vae.encoder(piece, feat_cache=state.features, feat_idx=[0]) for piece in x.split(sizes, dim=2)]
        state.started = True
        mode = self.vae.quant_conv(torch.cat(moments, dim=2)).chunk(2, dim=1)[0]
        return (mode - mean) / std

    @torch.no_grad()
    @_without_autocast
    def decode(self, latents: torch.Tensor, state: CodecState | None = None) -> torch.Tensor:
        """Decodes a clip, or the next latent frames of the clip whose state is `state`; advances `state`.

        Args:
            latents: (B, C, f, h, w), normalized, f >= 1.

        Returns:
            pixels (B, 3, T, H, W) in [-1, 1]; T is 1 + (f - 1) * temporal_factor at a clip's start,
            f * temporal_factor after it.
        """
        state = state if state is not None else self.decoder_state()
        mean, std = self._statistics()
        z = self.vae.post_quant_conv(latents.to(mean) * std + mean)
        frames = []
        for frame in z.split(1, dim=2):
            first_chunk = not state.started
            frames.append(self.vae.decoder(frame, feat_cache=state.features, feat_idx=[0], first_chunk=first_chunk))
            state.started = True
        pixels = torch.cat(frames, dim=2)
        if self.vae.config.patch_size is not None:
            pixels = unpatchify(pixels, patch_size=self.vae.config.patch_size)
        return pixels.clamp(-1, 1)

    def encode_streams(self, pixels: torch.Tensor, states: list[CodecState]) -> list[torch.Tensor]:
        """`encode` of a batch whose rows are separate streams, with a state of one row each; advances the states.
        Returns (C, f, h, w) of each row."""
        return self._by_start(self.encode, pixels, states)

    def decode_streams(self, latents: torch.Tensor, states: list[CodecState]) -> list[torch.Tensor]:
        """`decode` of a batch whose rows are separate streams, with a state of one row each; advances the states.
        Returns (3, T, H, W) of each row; T is smaller for a row at its stream's start."""
        return self._by_start(self.decode, latents, states)

    def caught_up(self, decoders: list[StreamDecoder]) -> list[StreamDecoder]:
        """Copies of the decoders that have decoded their `unseen` latent frames."""
        states = [decoder.state.fork() for decoder in decoders]
        unseen = [list(decoder.unseen) for decoder in decoders]
        while rows := [row for row, frames in enumerate(unseen) if frames]:
            frames = torch.stack([unseen[row].pop(0) for row in rows])
            self.decode_streams(frames, [states[row] for row in rows])
        return [StreamDecoder(state) for state in states]

    @staticmethod
    def _by_start(
        run: Callable[[torch.Tensor, CodecState], torch.Tensor], inputs: torch.Tensor, states: list[CodecState]
    ) -> list[torch.Tensor]:
        """Calls `run` once for all rows that have started, and once for the others."""
        results: list[torch.Tensor] = [None] * len(states)
        for started in (True, False):
            rows = [row for row, state in enumerate(states) if state.started is started]
            if not rows:
                continue
            stacked = CodecState.stack([states[row] for row in rows])
            outputs = run(inputs[rows], stacked)
            for row, output, state in zip(rows, outputs, stacked.unstack(len(rows)), strict=True):
                results[row] = output
                states[row].features, states[row].started = state.features, state.started
        return results

    def encode_value_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes one chunk's value maps as the clip [black frame, maps], and drops the black frame's latent.

        The value latents of a chunk therefore start from the null value prior and contain no history.

        Args:
            pixels: (B, 3, F * temporal_factor, H, W) in [-1, 1].

        Returns:
            (B, C, F, h, w), normalized.
        """
        self._check_pixels(pixels, started=True)
        encoder, _ = self._after_black_frame(*pixels.shape[-2:])
        return self.encode(pixels, encoder.expand(len(pixels)))

    def decode_value_maps(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `encode_value_maps`: (B, C, F, h, w) -> (B, 3, F * temporal_factor, H, W) in [-1, 1]."""
        return self.decode(latents, self.value_map_decoder(latents).expand(len(latents)))

    def value_map_decoder(self, latents: torch.Tensor) -> CodecState:
        """The state of one row from which value latents (B, C, F, h, w) are decoded: after a black frame."""
        height, width = (n * self.spatial_factor for n in latents.shape[-2:])
        return self._after_black_frame(height, width)[1].fork()

    def _after_black_frame(self, height: int, width: int) -> tuple[CodecState, CodecState]:
        """Encoder and decoder state of one row after a black frame, computed once per size, device and dtype."""
        key = (height, width, self.vae.device, self.vae.dtype)
        if key not in self._black_states:
            encoder, decoder = self.encoder_state(), self.decoder_state()
            latent = self.encode(torch.full((1, 3, 1, height, width), BLACK, device=self.vae.device), encoder)
            self.decode(latent, decoder)
            self._black_states[key] = encoder, decoder
        return self._black_states[key]

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """latents_mean and latents_std, (1, C, 1, 1, 1), in the VAE's dtype and on its device. Both at once: diffusers
        walks through all modules to find these two."""
        config, options = self.vae.config, {"device": self.vae.device, "dtype": self.vae.dtype}
        mean, std = (
            torch.tensor(numbers, **options).view(1, -1, 1, 1, 1)
            for numbers in (config.latents_mean, config.latents_std)
        )
        return mean, std

    def _check_pixels(self, pixels: torch.Tensor, started: bool) -> None:
        if pixels.ndim != 5 or pixels.shape[1] != 3 or any(n % self.spatial_factor for n in pixels.shape[-2:]):
            raise ValueError(
                f"pixels have shape {tuple(pixels.shape)}; expected (B, 3, T, H, W) with H and W divisible by "
                f"{self.spatial_factor}."
            )
        first, frames = (0 if started else 1), pixels.shape[2]
        if frames < 1 or (frames - first) % self.temporal_factor:
            raise ValueError(
                f"pixels hold {frames} frames; expected "
                + (f"a multiple of {self.temporal_factor}" if started else f"1 + a multiple of {self.temporal_factor}")
                + (" after the clip's start." if started else " at a clip's start.")
            )


def _stack_features(column: Sequence[torch.Tensor | str | None]) -> torch.Tensor | str | None:
    tensors = [feature for feature in column if torch.is_tensor(feature)]
    if not tensors:
        return column[0]
    longest = max(tensors, key=lambda feature: feature.shape[2])
    column = [feature if torch.is_tensor(feature) else longest[:, :, :0] for feature in column]
    return torch.cat([F.pad(feature, (0, 0, 0, 0, longest.shape[2] - feature.shape[2], 0)) for feature in column])


def _count_causal_convolutions(module: torch.nn.Module) -> int:
    return sum(isinstance(m, WanCausalConv3d) for m in module.modules())

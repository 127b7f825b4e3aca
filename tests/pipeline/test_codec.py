"""The streaming codec gives what the VAE itself gives for whole clips."""

import pytest
import torch

from aim_hf.pipeline.codec import VideoCodec

from ..fixtures_pipeline import make_vae

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def codec(request) -> VideoCodec:
    return VideoCodec(make_vae().to(request.param))


def clip(codec: VideoCodec, frames: int, seed: int = 0, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((batch, 3, frames, 48, 32), generator=generator, dtype=codec.vae.dtype) * 2 - 1


def latents_of(codec: VideoCodec, frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, 4, frames, 3, 2), generator=generator, dtype=codec.vae.dtype)


def assert_close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[a.dtype])


def statistics(codec: VideoCodec) -> tuple[torch.Tensor, torch.Tensor]:
    config = codec.vae.config
    return tuple(
        torch.tensor(n, dtype=codec.vae.dtype).view(1, -1, 1, 1, 1) for n in (config.latents_mean, config.latents_std)
    )


def encode_by_vae(codec: VideoCodec, pixels: torch.Tensor) -> torch.Tensor:
    mean, std = statistics(codec)
    with torch.no_grad():
        return (codec.vae.encode(pixels).latent_dist.mode() - mean) / std


def decode_by_vae(codec: VideoCodec, latents: torch.Tensor) -> torch.Tensor:
    mean, std = statistics(codec)
    with torch.no_grad():
        return codec.vae.decode(latents * std + mean).sample


@pytest.mark.parametrize("pieces", [[9], [1, 4, 4], [1, 8], [5, 4]])
def test_streaming_encode_equals_the_full_one(codec, pieces):
    pixels = clip(codec, 9)
    state = codec.encoder_state()
    streamed = torch.cat([codec.encode(piece, state) for piece in pixels.split(pieces, dim=2)], dim=2)
    assert_close(streamed, encode_by_vae(codec, pixels))


def test_autocast_leaves_the_vae_in_its_dtype(codec):
    pixels = clip(codec, 5)
    latents = codec.encode(pixels)
    decoded = codec.decode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(codec.encode(pixels), latents)
        assert_close(codec.decode(latents), decoded)


def test_encoding_needs_its_past(codec):
    """What follows depends on what came before, so the equality above is not empty."""
    state, other = codec.encoder_state(), codec.encoder_state()
    codec.encode(clip(codec, 1, seed=1), state)
    codec.encode(clip(codec, 1, seed=2), other)
    pixels = clip(codec, 4)
    assert (codec.encode(pixels, state) - codec.encode(pixels, other)).abs().max() > 1e-3


@pytest.mark.parametrize("pieces", [[4], [1, 1, 1, 1], [1, 3], [2, 2]])
def test_streaming_decode_equals_the_full_one(codec, pieces):
    latents = latents_of(codec, 4)
    state = codec.decoder_state()
    streamed = torch.cat([codec.decode(piece, state) for piece in latents.split(pieces, dim=2)], dim=2)
    assert streamed.shape[2] == 13
    assert_close(streamed, decode_by_vae(codec, latents))


def test_imagination_continues_the_past_and_does_not_pollute_it(codec):
    real, imagined = latents_of(codec, 3), latents_of(codec, 2, seed=1)
    state = codec.decoder_state()
    first = codec.decode(real[:, :, :2], state)
    fork = state.fork()
    continuation = codec.decode(imagined, fork)
    whole = decode_by_vae(codec, torch.cat([real[:, :, :2], imagined], dim=2))
    assert_close(torch.cat([first, continuation], dim=2), whole)
    # The real stream goes on as if nothing had been imagined.
    assert_close(torch.cat([first, codec.decode(real[:, :, 2:], state)], dim=2), decode_by_vae(codec, real))


def test_streams_of_different_age_share_their_calls(codec):
    """Streams that began at different moments give what each gives alone."""
    pixels, latents = clip(codec, 13, batch=3), torch.cat([latents_of(codec, 4), latents_of(codec, 4, seed=1)])[:3]
    encoders, decoders = ([new() for _ in range(3)] for new in (codec.encoder_state, codec.decoder_state))
    encoded, decoded = ([[] for _ in range(3)] for _ in range(2))
    seen = [0, 0, 0]
    rows_of_calls = []
    hook = codec.vae.decoder.register_forward_pre_hook(lambda _, inputs: rows_of_calls.append(len(inputs[0])))
    # Frames that each stream gets at each moment; with 1 it begins.
    for rows in ([0], [0, 1], [0, 1, 2], [0, 1, 2], [1, 2]):
        for count in (1, 4):
            now = [row for row in rows if (seen[row] == 0) == (count == 1)]
            if now:
                piece = torch.stack([pixels[row, :, seen[row] : seen[row] + count] for row in now])
                answer = codec.encode_streams(piece, [encoders[row] for row in now])
                for row, result in zip(now, answer):
                    encoded[row].append(result)
        frame = torch.stack([latents[row, :, [(seen[row] + 3) // 4]] for row in rows])
        for row, result in zip(rows, codec.decode_streams(frame, [decoders[row] for row in rows])):
            decoded[row].append(result)
        for row in rows:
            seen[row] += 4 if seen[row] else 1
    hook.remove()
    assert rows_of_calls == [1, 1, 1, 2, 1, 3, 2]  # streams that have begun share a call, whenever they began
    for row in range(3):
        assert_close(torch.cat(encoded[row], dim=1)[None], encode_by_vae(codec, pixels[row : row + 1, :, : seen[row]]))
        known = latents[row : row + 1, :, : (seen[row] + 3) // 4]
        assert_close(torch.cat(decoded[row], dim=1)[None], decode_by_vae(codec, known))


def test_value_maps_are_encoded_alone_after_a_black_frame(codec):
    maps = clip(codec, 8)
    black = torch.full_like(maps[:, :, :1], -1)
    reference = encode_by_vae(codec, torch.cat([black, maps], dim=2))
    assert_close(codec.encode_value_maps(maps), reference[:, :, 1:])
    # Again, from the states that were kept.
    assert_close(codec.encode_value_maps(maps[:, :, :4]), reference[:, :, 1:2])


def test_value_maps_are_decoded_alone_after_a_black_frame(codec):
    latents = latents_of(codec, 2)
    black = encode_by_vae(codec, torch.full((2, 3, 1, 48, 32), -1.0, dtype=latents.dtype))
    reference = decode_by_vae(codec, torch.cat([black, latents], dim=2))
    assert_close(codec.decode_value_maps(latents), reference[:, :, 1:])
    assert_close(codec.decode_value_maps(latents[:, :, :1]), reference[:, :, 1:5])


def test_nothing_records_gradients(codec):
    pixels = clip(codec, 1).requires_grad_()
    assert not codec.encode(pixels).requires_grad
    assert not codec.decode(latents_of(codec, 1).requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((1, 3, 4, 48, 32), "4 frames; expected 1 \\+ a multiple of 4"),
        ((1, 3, 1, 40, 32), "divisible by 16"),
        ((1, 1, 1, 48, 32), r"\(B, 3, T, H, W\)"),
        ((3, 1, 48, 32), r"\(B, 3, T, H, W\)"),
    ],
)
def test_wrong_clips_are_refused(codec, shape, match):
    with pytest.raises(ValueError, match=match):
        codec.encode(torch.zeros(shape))


def test_wrong_continuations_are_refused(codec):
    state = codec.encoder_state()
    codec.encode(clip(codec, 1), state)
    with pytest.raises(ValueError, match="5 frames; expected a multiple of 4"):
        codec.encode(clip(codec, 5), state)
    with pytest.raises(ValueError, match="3 frames; expected a multiple of 4"):
        codec.encode_value_maps(clip(codec, 3))


def test_statistics_of_another_width_are_refused():
    vae = make_vae()
    vae.register_to_config(latents_std=[1.0] * 5)
    with pytest.raises(ValueError, match="latents_std has 5 numbers"):
        VideoCodec(vae)

"""The tiny VAE: its encoder's principal components, its decoder's training, checkpoints and numbers."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

import aim_hf.tiny.vae as training_vae
from aim_hf.pipeline.codec import VideoCodec
from aim_hf.tiny.principal_components import condition_encoder
from aim_hf.tiny.vae import (
    CanvasEpisode,
    DecoderLoss,
    VAETrainer,
    median_canvas,
    peak_errors,
    sample_clips,
    set_encoder,
    tiny_vae,
)
from aim_hf.tiny.vae_arguments import VAETrainingArguments

ARGS = VAETrainingArguments(
    steps=4, picture_share=0.5, picture_batch_size=4, clip_batch_size=2, warmup_steps=1, report_steps=2, save_steps=2
)


def make_episode(seed: int, frames: int = 24, size: int = 32) -> CanvasEpisode:
    """A saturated square that moves over a table, and a bright spot that stands still."""
    rng = np.random.default_rng(seed)
    rgb = np.full((frames, size, size, 3), (200, 170, 130), np.uint8)
    start, speed = rng.integers(0, 8, 2), rng.integers(0, 2, 2)
    for t in range(frames):
        top, left = np.minimum(start + t * speed // 2, size - 8)
        rgb[t, top : top + 8, left : left + 8] = (220, 30, 20) if seed % 2 else (20, 60, 230)
    rows, columns = np.mgrid[:size, :size] - rng.integers(6, size - 6, 2)[:, None, None]
    spot = np.rint(255 * np.exp(-(rows**2 + columns**2) / 18)).astype(np.uint8)
    return CanvasEpisode(rgb, np.repeat(spot[None], frames, axis=0))


@pytest.fixture(scope="module")
def episodes():
    return [make_episode(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def vae(episodes):
    torch.manual_seed(0)
    vae = tiny_vae(z_dim=24, base_dim=64, decoder_base_dim=16)
    set_encoder(vae, episodes, stride=2)
    return vae


def clone(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    copy = AutoencoderKLWan.from_config(vae.config)
    copy.load_state_dict(vae.state_dict())
    return copy


def test_shapes_and_saved_statistics(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    loaded = AutoencoderKLWan.from_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 9, 32, 48) * 2 - 1
    latents = VideoCodec(loaded).encode(pixels)
    assert latents.shape == (1, 24, 3, 2, 3)
    assert VideoCodec(loaded).decode(latents).shape == pixels.shape
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in vae.state_dict().items())
    torch.testing.assert_close(VideoCodec(vae).encode(pixels), latents)


def test_latents_are_centered_where_the_model_sees_them(vae, episodes):
    rng = np.random.default_rng(1)
    codec = VideoCodec(vae)
    rgb = codec.encode(sample_clips(episodes, rng, 64, 1, 2, "rgb"))[:, :, 1:]
    value = codec.encode(sample_clips(episodes, rng, 64, 1, 2, "value"))[:, :, 1:]
    latents = torch.cat([rgb, value]).transpose(0, 1).flatten(1)
    assert latents.mean(dim=1).abs().max() < 0.5 * latents.std()
    # The first component varies most; the last ones are not blown up to its size.
    deviations = latents.std(dim=1)
    assert deviations[0] > 2 * deviations[-6:].mean()


def test_pictures_that_do_not_differ_are_refused():
    """As of a camera that was covered; the codec would be NaN."""
    black = CanvasEpisode(np.full((9, 32, 32, 3), 120, np.uint8), np.zeros((9, 32, 32), np.uint8))
    with pytest.raises(ValueError, match="^the pictures of the episodes don't differ, .* aim-hf preview.$"):
        set_encoder(tiny_vae(z_dim=24, base_dim=64, decoder_base_dim=16), [black], 2)


def test_latents_hold_most_of_the_pictures(vae, episodes):
    """A linear readout of single latent cells restores held-out pixels far better than their mean does."""
    rng = np.random.default_rng(2)

    def cells(count):
        clips = sample_clips(episodes, rng, count, 0, 2, "rgb")
        latents = vae.encode(clips).latent_dist.mode()
        pixels = clips.unfold(3, 16, 16).unfold(4, 16, 16).permute(0, 3, 4, 1, 2, 5, 6).flatten(3).flatten(0, 2)
        return latents.permute(0, 2, 3, 4, 1).flatten(0, 3).detach(), pixels

    (x, y), (x_new, y_new) = cells(200), cells(50)
    ones = torch.ones(len(x), 1)
    readout = torch.linalg.lstsq(torch.cat([x, ones], dim=1), y, driver="gelsd").solution
    error = (torch.cat([x_new, ones[: len(x_new)]], dim=1) @ readout - y_new).square().mean()
    assert error < 0.2 * (y_new - y.mean(dim=0)).square().mean()


@pytest.mark.parametrize("z_dim", [24, 64], ids=["some components", "all of them"])
def test_conditioning_changes_the_numbers_inside_alone(episodes, monkeypatch, z_dim):
    """In float32 the latents and their decoded pictures stay the same; in bfloat16 the latents become right."""
    monkeypatch.setattr(training_vae, "condition_encoder", lambda vae: None)
    torch.manual_seed(0)
    before = tiny_vae(z_dim=z_dim, base_dim=64, decoder_base_dim=16)
    set_encoder(before, episodes, stride=2)
    after = clone(before)
    condition_encoder(after)
    rng = np.random.default_rng(3)
    clips = [sample_clips(episodes, rng, 4, 1, 2, kind) for kind in ("rgb", "value")]

    def latents(vae, dtype):
        codec = VideoCodec(clone(vae).to(dtype))
        return torch.cat([codec.encode(clip.to(dtype)).transpose(0, 1).flatten(1).double() for clip in clips], dim=1)

    def error(got, want):
        return ((got - want).norm() / want.norm()).item()

    # Where there are as many latents as channels, the last held what the normalization did to the others.
    kept = slice(min(z_dim, 63))
    exact = latents(before, torch.float64)[kept]
    assert error(latents(after, torch.float32)[kept], exact) < 1e-3
    assert (latents(after, torch.float32)[63:] == 0).all()
    assert error(latents(before, torch.bfloat16)[kept], exact) > 0.5
    assert error(latents(after, torch.bfloat16)[kept], exact) < 0.05
    names = ("weight", "bias")
    assert all(
        p.abs().max() <= 1.1 for n, p in after.encoder.named_parameters() if n.endswith(names) and "conv_out" not in n
    )
    given = torch.randn(1, z_dim, 2, 2, 2)
    torch.testing.assert_close(VideoCodec(after).decode(given), VideoCodec(before).decode(given), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="conditioned already"):
        condition_encoder(after)


def test_a_still_clip_decodes_to_its_first_picture_repeated(vae):
    """The untrained decoder's temporal kernels say "stand still", so that clips start from what pictures taught."""
    latents = torch.randn(1, 24, 1, 2, 2)
    first, *rest = vae.decode(latents.repeat(1, 1, 3, 1, 1)).sample.unbind(dim=2)
    assert len(rest) == 8 and first.std() > 0.01
    for frame in rest:
        torch.testing.assert_close(frame, first, atol=1e-5, rtol=0)


def test_clips(episodes):
    rng = np.random.default_rng(0)
    value = sample_clips(episodes, rng, 6, 1, 2, "value")
    assert value.shape == (6, 3, 5, 32, 32)
    assert (value[:, :, 0] == -1).all() and (value[:, :, 1:].amax((1, 2, 3, 4)) > 0.9).all()
    assert sample_clips(episodes, rng, 6, 0, 2, "value").amax((1, 2, 3, 4)).min() > 0.9
    # Longer than the episode: it stands still at its end.
    long = sample_clips(episodes, rng, 2, 8, 2, "rgb")
    assert long.shape[2] == 33 and torch.equal(long[:, :, -1], long[:, :, -8])


def test_foreground_counts_more(vae, episodes):
    background = median_canvas(episodes)
    loss = DecoderLoss(clone(vae), background, foreground_weight=4.0)
    clip = background[None, :, None].clone()
    clip[..., :4, :4] = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1, 1)
    weights = loss.pixel_weights(clip, "rgb")
    assert (weights[..., :4, :4] == 5).all() and (weights[..., 8:, 8:] == 1).all()


def test_training_moves_the_decoder_alone_and_lowers_the_error(vae, episodes, tmp_path):
    trained = clone(vae)
    args = replace(ARGS, steps=40, picture_share=0.7, report_steps=20, save_steps=40)
    last = VAETrainer(trained, episodes[2:], episodes[:2], args, tmp_path).train()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [20, 40]
    assert last["rgb_psnr"] > 13 and last["rgb_psnr"] > log[0]["rgb_psnr"]
    assert all(torch.equal(a, b) for a, b in zip(trained.encoder.parameters(), vae.encoder.parameters()))
    assert not torch.equal(trained.decoder.conv_out.weight, vae.decoder.conv_out.weight)
    assert (tmp_path / "samples" / "step-000040.png").stat().st_size > 1000


def test_nothing_is_told_of_maps_that_no_episode_has(vae, episodes, tmp_path):
    """Their error was 0, as of perfect maps, and that of their foreground NaN, which JSON lacks."""
    dark = [replace(episode, value=np.zeros_like(episode.value)) for episode in episodes]
    metrics = VAETrainer(clone(vae), dark[2:], dark[:2], replace(ARGS, steps=1), tmp_path).train()
    assert list(metrics) == ["rgb_psnr", "rgb_foreground_psnr", "value_psnr"]
    logged = json.loads((tmp_path / "log.jsonl").read_text())
    assert all(math.isfinite(number) for number in logged.values()) and logged.keys() > metrics.keys()


def test_resumed_run_is_the_uninterrupted_one(vae, episodes, tmp_path):
    whole = clone(vae)
    VAETrainer(whole, episodes[2:], episodes[:2], ARGS, tmp_path / "whole").train()

    first = VAETrainer(clone(vae), episodes[2:], episodes[:2], ARGS, tmp_path / "cut")
    for _ in range(3):
        first._train_step()
        first.step += 1
    first._save()
    (tmp_path / "cut" / "log.jsonl").write_text('{"step": 3}\n{"step": 4}\n{"step": 5, "rgb_l')  # and a kill
    resumed = VAETrainer(clone(vae), episodes[2:], episodes[:2], ARGS, tmp_path / "cut")
    assert resumed.step == 3
    resumed.train()
    stored = AutoencoderKLWan.from_pretrained(tmp_path / "cut" / "checkpoint").state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.vae.state_dict()[name], tensor), name
        assert torch.equal(stored[name], tensor), name
    logs = [
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "cut")
    ]
    assert logs[1] == [{"step": 3}, *(entry for entry in logs[0] if entry["step"] > 3)], "each report once"


def test_a_run_goes_on_only_as_it_began(vae, episodes, tmp_path):
    def trainer(vae=vae, train=episodes[2:], held_out=episodes[:2], **changes):
        return VAETrainer(clone(vae), train, held_out, replace(ARGS, **changes), tmp_path)

    trainer()._save()
    assert VAETrainer(clone(vae), episodes[:1], [], ARGS, tmp_path / "one").held_out["rgb"].shape[0] == 12
    assert trainer(steps=9, report_steps=1).step == 0
    other = clone(vae)
    with torch.no_grad():
        other.encoder.conv_out.bias[0] += 1
    for message, change in (
        ("foreground_weight 4.0 there, 1.0 now", {"foreground_weight": 1.0}),
        ("episodes", {"train": episodes[3:]}),
        ("held_out 2 there, 3 now", {"train": episodes[3:], "held_out": episodes[:3]}),
        ("encoder", {"vae": other}),
    ):
        with pytest.raises(FileExistsError, match=f"made from something else: .*{message}"):
            trainer(**change)
    record = tmp_path / "made_from.json"
    of_one = record.read_text()
    record.write_text(of_one.replace('"processes": 1', '"processes": 2'))
    with pytest.raises(FileExistsError, match="processes 2 there, 1 now"):
        trainer()
    record.write_text(of_one)
    for name in ("training.json", "optimizer.safetensors", "diffusion_pytorch_model.safetensors"):
        path = tmp_path / "checkpoint" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(OSError, match=f"{path} can't be read .*training begins anew"):
            trainer()
        path.write_bytes(whole)
    for content, reason in (({}, "has no 'step'"), ({"step": "9"}, "step is '9'; expected a whole number")):
        (tmp_path / "checkpoint" / "training.json").write_text(json.dumps(content))
        with pytest.raises(OSError, match=f"training.json can't be read .{reason}.*training begins anew"):
            trainer()


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        *((name, [0, -1, 1.5], "a whole number, at least 1") for name in ("steps", "warmup_steps", "frame_stride")),
        *((name, [0, -1], "a whole number, at least 1") for name in ("report_steps", "save_steps")),
        *((name, [1, -4], "a whole number, at least 2") for name in ("picture_batch_size", "clip_batch_size")),
        *((name, [-1.0, math.nan], "a finite number, at least 0") for name in ("learning_rate", "adam_learning_rate")),
        *((name, [-1.0, math.inf], "a finite number, at least 0") for name in ("foreground_weight", "latent_noise")),
        *(
            (name, [3, 5], "an even number: half RGB, half value maps")
            for name in ("picture_batch_size", "clip_batch_size")
        ),
        ("picture_share", [-0.5, 2.0, math.nan], "0 to 1"),
        ("seed", [-1], f"a whole number, 0 to {2**63 - 1}"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_named(name, values, expected):
    for value in values:
        with pytest.raises(ValueError) as error:
            VAETrainingArguments(**{name: value})
        assert str(error.value) == f"{name} is {value!r}; expected {expected}."


def test_peak_errors_by_hand():
    true = torch.full((1, 3, 2, 16, 16), -1.0)
    true[:, :, 0, 4:7, 4:7] = 1.0  # a flat top: each of its pixels is right; the second frame is black
    guess = true.clone()
    guess[:, :, 0, 6, 6] = 1.1
    assert peak_errors(true, guess).tolist() == [0.0]
    guess[:, :, 0, 9, 10] = 1.2
    assert peak_errors(true, guess).tolist() == [5.0]

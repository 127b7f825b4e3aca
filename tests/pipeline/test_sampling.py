"""What a call may change of how it samples: guidance, noise, given maps and actions, callbacks."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from aim_hf.pipeline import sampling
from aim_hf.pipeline.codec import VideoCodec
from aim_hf.pipeline.pipeline_aim import AIMPipeline
from aim_hf.pipeline.sampling_config import SamplingConfig
from aim_hf.rollout.policies import AIMPolicy

from ..fixtures_pipeline import make_observation, make_pipeline
from .fixtures_rollouts import SIZES, make_episode, reference_steps, seeded


def test_guidance(rng):
    """v = v_negative + g (v - v_negative), on the world alone; the instruction itself as negative prompt changes
    nothing."""
    pipe = make_pipeline()
    first, happened = make_episode(pipe, rng, chunks=1)

    def latents(negative_prompt, **arguments):
        session = pipe.start("ring bell", negative_prompt=negative_prompt)
        pipe(first, session=session, output_type="latent", generator=seeded(0))
        pipe.append(session, *happened[0])  # both histories go on
        out = pipe(session=session, output_type="latent", generator=seeded(0), num_inference_steps=1, **arguments)
        return out.frames, out.value_maps

    def plain(instruction):
        session = pipe.start("ring bell")
        if not instruction:
            pipe.model.set_text(session.cache, pipe.encode_prompt("", allow_empty=True))
        pipe(first, session=session, output_type="latent", generator=seeded(0))
        pipe.append(session, *happened[0])
        out = pipe(session=session, output_type="latent", generator=seeded(0), num_inference_steps=1)
        return out.frames, out.value_maps

    for told, untold, guided in zip(plain("ring bell"), plain(""), latents("", guidance_scale=3.0), strict=True):
        assert (told - untold).abs().max() > 1e-3
        torch.testing.assert_close(guided, untold + 3 * (told - untold), rtol=0, atol=1e-4)
    for told, guided in zip(plain("ring bell"), latents("ring bell", guidance_scale=3.0), strict=True):
        torch.testing.assert_close(guided, told, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="nothing to lead away from"):
        pipe(first, session=pipe.start("ring bell"), guidance_scale=2.0)
    session = pipe.start("ring bell")
    pipe.append(session, first)
    with pytest.raises(ValueError, match="guidance_scale is 2.0, but the session has nothing to lead away from"):
        pipe.denoise_world(session, *pipe.prepare_latents(1)[:2], SamplingConfig(guidance_scale=2.0))


def test_stopping_early(rng):
    """After all of its steps it is the whole trajectory; after one, the sample that this one predicts."""
    pipe, observation = make_pipeline(), make_observation(rng)

    def latents(**arguments):
        out = pipe(observation, session=pipe.start("bell"), output_type="latent", generator=seeded(0), **arguments)
        return out.frames

    whole = latents(num_inference_steps=4)
    torch.testing.assert_close(latents(num_inference_steps=4, stop_after=4), whole, rtol=0, atol=1e-5)
    first = latents(num_inference_steps=4, stop_after=1)
    torch.testing.assert_close(first, latents(num_inference_steps=1), rtol=0, atol=1e-5)
    assert (latents(num_inference_steps=4, stop_after=2) - whole).abs().max() > 1e-4
    with pytest.raises(ValueError, match="stop_after is 5"):
        latents(num_inference_steps=4, stop_after=5)


def test_actions_from_less_noise(rng, monkeypatch):
    """Imagined frames and maps stay the same. At scale 0, actions don't depend on the noise."""
    pipe, observation = make_pipeline(), make_observation(rng)

    def sample(seed, **arguments):
        generator = seeded(seed)
        return pipe(observation, session=pipe.start("bell"), output_type="latent", generator=generator, **arguments)

    plain, half, still = (sample(0, action_noise_scale=scale) for scale in (1.0, 0.5, 0.0))
    assert torch.equal(plain.actions, sample(0).actions)
    for other in (half, still):
        assert torch.equal(plain.value_maps, other.value_maps) and torch.equal(plain.frames, other.frames)
        assert not torch.equal(plain.actions, other.actions)
    draw = sampling.randn_tensor

    def another_for_actions(shape, **kwargs):
        noise = draw(shape, **kwargs)
        return noise if len(shape) == 5 else noise.flip(1)

    monkeypatch.setattr(sampling, "randn_tensor", another_for_actions)
    assert not torch.equal(sample(0).actions, plain.actions)
    assert torch.equal(sample(0, action_noise_scale=0.0).actions, still.actions)
    with pytest.raises(ValueError, match="action_noise_scale is 1.5; expected 0 to 1"):
        sample(0, action_noise_scale=1.5)


def test_a_pipeline_keeps_how_it_samples(pipe, rng, tmp_path):
    config = SamplingConfig(num_inference_steps=3, action_noise_scale=0.0)
    pipe.save_pretrained(tmp_path)
    still = AIMPipeline.from_pretrained(tmp_path, sampling_config=config)
    still.save_pretrained(tmp_path)
    loaded, observation = AIMPipeline.from_pretrained(tmp_path), make_observation(rng)
    assert loaded.sampling_config == config
    assert AIMPolicy(loaded, {}).settings == asdict(config) | {"delay": 0}
    policy = AIMPolicy.from_pretrained(tmp_path, action_noise_scale=0.5)
    assert policy.sampling_config == replace(config, action_noise_scale=0.5)
    # As a checkpoint of 0.1.0 has it.
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index.pop("sampling_config") == asdict(config) and index["action_noise_scale"] is None
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"action_noise_scale": 0.25}))
    assert AIMPipeline.from_pretrained(tmp_path).sampling_config == SamplingConfig(action_noise_scale=0.25)
    with pytest.raises(TypeError, match=r"unexpected arguments \['num_steps'\]; SamplingConfig has num_inference"):
        loaded(observation, session=loaded.start("bell"), num_steps=3)
    with pytest.raises(
        TypeError, match=r"\['prompt', 'seed'\].* instruction goes to pipe.start, a seed to generator="
    ):
        loaded(observation, prompt="bell", seed=0)

    def sample(pipe, **arguments):
        return pipe(observation, session=pipe.start("bell"), output_type="latent", generator=seeded(0), **arguments)

    for a, b in (
        (sample(loaded), sample(pipe, num_inference_steps=3, action_noise_scale=0.0)),
        (sample(loaded), sample(pipe, sampling_config=config)),
        (sample(loaded, num_inference_steps=5, action_noise_scale=1.0), sample(pipe)),
    ):
        torch.testing.assert_close(a.actions, b.actions, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="action_noise_scale is -1; expected 0 to 1"):
        AIMPipeline(**pipe.components, sampling_config={"action_noise_scale": -1})


def test_numbers_of_numpy_are_saved_as_pythons(tmp_path):
    """They come from sweeps, such as `np.linspace(1, 2, 5)` of guidance scales."""
    fields = {"num_inference_steps": np.int64(3), "num_action_inference_steps": np.int32(4), "stop_after": np.int64(2)}
    fields |= {"guidance_scale": np.float32(1.5), "action_noise_scale": np.float32(0.5)}
    pipe = make_pipeline()
    pipe.sampling_config = SamplingConfig(**fields)
    pipe.save_pretrained(tmp_path)
    assert AIMPipeline.from_pretrained(tmp_path).sampling_config == SamplingConfig(3, 4, 2, 1.5, 0.5)
    assert '"guidance_scale": 1.5' in repr(pipe)


def test_committed_actions_come_back_unchanged(rng):
    """Real-time chunking: what is executed meanwhile starts the new chunk, bit for bit; the rest follows from it."""
    pipe = make_pipeline(action_lookahead_frames=1)
    (first, happened), (other, _) = (make_episode(pipe, rng, chunks=1) for _ in range(2))
    session = pipe.start(["ring bell", "lift pot"])
    out = pipe([first, other], session=session, num_inference_steps=2)
    assert out.actions.shape == out.lookahead_actions.shape == (2, 8, 16)
    pipe.append(session, [happened[0][0]] * 2, out.actions)
    committed = out.lookahead_actions[:, :3]
    again = pipe(session=session, committed_actions=committed, num_inference_steps=2, generator=seeded(0))
    assert np.array_equal(again.actions[:, :3], committed)
    free = pipe(session=session, num_inference_steps=2, generator=seeded(0))
    assert np.abs(free.actions[:, 3:] - again.actions[:, 3:]).max() > 1e-3
    np.testing.assert_array_equal(again.value_maps["head_camera"], free.value_maps["head_camera"])
    moved = committed.copy()
    moved[..., :3] += 0.05
    moved = pipe(session=session, committed_actions=moved, num_inference_steps=2, generator=seeded(0))
    assert np.abs(moved.actions[:, 3:] - again.actions[:, 3:]).max() > 1e-3
    for wrong, match in [
        (committed[:1], r"shape \(1, 3, 16\); expected \(2, d, 16\)"),
        (committed[:, :0], "0 actions are committed; expected 1 to 15"),
        (np.full((2, 3, 16), np.nan), "NaN"),
    ]:
        with pytest.raises(ValueError, match=match):
            pipe(session=session, committed_actions=wrong)
    with pytest.raises(ValueError, match="came with the first observation"):
        pipe([first, other], session=pipe.start("ring bell", batch_size=2), committed_actions=committed)


def test_given_value_maps_replace_the_predicted_ones(pipe, rng):
    observation, session = make_observation(rng), pipe.start("ring bell")
    predicted = pipe(observation, session=session, generator=seeded(0))
    true = {camera: np.zeros((1, 4, *size), np.float32) for camera, size in SIZES.items()}
    for value_map in true.values():
        value_map[:, :, 4:8, 4:8] = 1
    given = pipe(session=session, generator=seeded(0), value_maps=true)
    for camera in SIZES:
        np.testing.assert_array_equal(given.frames[camera], predicted.frames[camera])
    assert np.abs(given.actions - predicted.actions).max() > 1e-4

    processor, codec = pipe.processor, VideoCodec(pipe.vae)
    canvas = processor.pack_canvas({camera: processor.value_to_rgb(m) for camera, m in true.items()})
    latents = codec.encode_value_maps(processor.canvas_to_pixels(canvas))
    again = pipe(session=session, generator=seeded(0), value_maps=true, output_type="latent")
    torch.testing.assert_close(again.value_maps, latents, rtol=0, atol=1e-6)
    # Its own prediction given back changes nothing: the override enters exactly where the prediction stood.
    frozen = pipe(session=session, generator=seeded(0), output_type="latent")

    def put(pipe, step, timestep, tensors):
        return {"value_latents": frozen.value_maps} if step == 4 else {}

    same = pipe(
        session=session,
        generator=seeded(0),
        output_type="latent",
        callback_on_step_end=put,
        callback_on_step_end_tensor_inputs=["value_latents"],
    )
    assert torch.equal(same.actions, frozen.actions)


def test_callback_sees_every_step_and_may_change_tensors(pipe, rng):
    observation, session = make_observation(rng), pipe.start("ring bell")
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, float(timestep), {name: tensor.shape for name, tensor in tensors.items()}))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    out = pipe(
        observation,
        session=session,
        num_inference_steps=3,
        num_action_inference_steps=2,
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "value_latents", "action_latents"],
    )
    assert [step for step, _, _ in seen] == [0, 1, 2, 3, 4]
    expected = [1000 * t for t, _ in reference_steps(5.0, 3) + reference_steps(1.0, 2)]
    assert [t for _, t, _ in seen] == pytest.approx(expected)
    video = (1, 4, 1, 3, 2)
    assert seen[0][2] == {"latents": video, "value_latents": video, "action_latents": (1, 8, 16)}
    assert (out.frames == 0).all() and (out.value_maps != 0).any()


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        (None, r"returned None; expected a dict of tensors, \{\} for none"),
        ({"x": torch.zeros(1)}, "returned 'x'; expected some of latents"),
        ({"latents": torch.zeros(1)}, r"returned latents of \(1,\); expected \(1, 4, 1, 3, 2\)"),
        ({"latents": None}, "returned latents of NoneType"),
    ],
)
def test_what_a_callback_may_not_return(pipe, rng, returned, match):
    with pytest.raises(ValueError, match=match):
        pipe(make_observation(rng), session=pipe.start("bell"), callback_on_step_end=lambda *args: returned)

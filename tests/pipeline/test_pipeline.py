"""The pipeline: what it computes and returns, and which components and calls it refuses."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from aim_hf.pipeline.codec import VideoCodec
from aim_hf.pipeline.pipeline_aim import AIMPipeline
from aim_hf.pipeline.pipeline_output import AIMPipelineOutput

from ..fixtures_pipeline import HEAD, make_observation, make_pipeline
from .fixtures_rollouts import ODD, SIZES, assert_same, make_episode, reference_steps, roll_out, seeded


@pytest.mark.parametrize("chunk_latent_frames", [1, 2])
@torch.no_grad()
def test_pipeline_equals_the_model_called_by_hand(rng, chunk_latent_frames):
    """Two chunks with Euler steps, codec, normalization and appending all spelled out."""
    pipe = make_pipeline(chunk_latent_frames=chunk_latent_frames)
    first, happened = make_episode(pipe, rng, chunks=1)
    outputs = roll_out(
        pipe, ["ring bell"], [(first, happened)], seeded(1), num_inference_steps=3, num_action_inference_steps=4
    )

    processor, model, config = pipe.processor, pipe.model, pipe.model.config
    codec, generator, F = VideoCodec(pipe.vae), seeded(1), chunk_latent_frames
    tokens = processor.tokenize("ring bell")
    prompt_embeds = pipe.text_encoder(**tokens).last_hidden_state * tokens.attention_mask[..., None]
    cache = model.new_cache(1, 3, 2)
    model.set_text(cache, prompt_embeds)
    initial = processor.initial_pose(first)
    canvases, latents = [processor.pack_canvas(processor.observation_views(first))], None
    executed = None
    for c, out in enumerate(outputs):
        if c:
            canvases += [processor.pack_canvas(processor.observation_views(o)) for o in happened[c - 1][0]]
            executed = processor.normalize_actions(torch.tensor(happened[c - 1][1]), initial).float()[None]
        seen = 0 if latents is None else latents.shape[2]
        latents = codec.encode(processor.canvas_to_pixels(np.stack(canvases)[None]))  # the whole video, every time
        model.append(cache, latents[:, :, seen:], executed)

        x, m, a = (
            torch.randn(shape, generator=generator)
            for shape in ((1, 4, F, 3, 2), (1, 4, F, 3, 2), (1, config.actions_per_chunk, 16))
        )
        context = model.world_context(cache)
        for t, s in reference_steps(5.0, 3):
            v_x, v_m = model.world_velocity(context, x, m, torch.tensor([t], dtype=torch.float32))
            x, m = x + (s - t) * v_x, m + (s - t) * v_m
        context = model.action_context(cache, x, m)
        for t, s in reference_steps(1.0, 4):
            a = a + (s - t) * model.action_velocity(context, a, torch.tensor([t], dtype=torch.float32))

        np.testing.assert_allclose(out.actions[0], processor.unnormalize_actions(a[0].double(), initial), atol=2e-5)
        imagined = codec.decode(torch.cat([latents, x], dim=2))[:, :, -pipe.frames_per_chunk :]
        frames = processor.unpack_canvas(processor.pixels_to_canvas(imagined))
        maps = processor.unpack_canvas(processor.pixels_to_canvas(codec.decode_value_maps(m)))
        for camera, size in SIZES.items():
            assert out.frames[camera].shape == (1, 4 * F, *size, 3) and out.frames[camera].dtype == np.float32
            assert out.value_maps[camera].shape == (1, 4 * F, *size)
            np.testing.assert_allclose(out.frames[camera], frames[camera], atol=2e-5)
            np.testing.assert_allclose(out.value_maps[camera], maps[camera].mean(-1), atol=2e-5)
        assert out.actions.shape == (1, 8 * F, 16)
    assert np.abs(outputs[0].actions - outputs[1].actions).max() > 1e-2


def test_chunk_geometry():
    pipe = make_pipeline(chunk_latent_frames=2, actions_per_latent_frame=16)
    assert (pipe.frames_per_chunk, pipe.actions_per_chunk, pipe.actions_per_frame) == (8, 32, 4)


def test_text_features_are_zero_beyond_the_prompt(pipe):
    embeds = pipe.encode_prompt(["ring bell", "put the red block"])
    assert embeds.shape == (2, 8, 16)
    assert (embeds[0, 3:] == 0).all() and (embeds[1, 5:] == 0).all()
    assert (embeds[0, :3] != 0).all()


def test_qpos_actions(rng):
    pipe = make_pipeline("qpos")
    observation = make_observation(rng)
    del observation["endpose"]
    session = pipe.start("ring bell")
    out = pipe(observation, session=session, num_inference_steps=1, num_action_inference_steps=1)
    assert out.actions.shape == (1, 8, 14)
    pipe.append(session, [make_observation(rng) for _ in range(4)], out.actions)
    assert session.chunks == [1]


def test_output_types(pipe, rng):
    observation, session = make_observation(rng), pipe.start("ring bell")
    array = pipe(observation, session=session, generator=seeded(0))
    tensor = pipe(session=session, generator=seeded(0), output_type="pt")
    picture = pipe(session=session, generator=seeded(0), output_type="pil")
    latent = pipe(session=session, generator=seeded(0), output_type="latent")
    for camera, size in SIZES.items():
        assert tensor.frames[camera].shape == (1, 4, 3, *size)
        assert np.array_equal(tensor.frames[camera].permute(0, 1, 3, 4, 2), array.frames[camera])
        assert np.array_equal(tensor.value_maps[camera], array.value_maps[camera])
        image, value = picture.frames[camera][0][3], picture.value_maps[camera][0][3]
        assert isinstance(image, PIL.Image.Image) and (image.mode, value.mode) == ("RGB", "L")
        assert image.size == size[::-1]
        assert np.abs(np.asarray(image) / 255 - array.frames[camera][0, 3]).max() < 0.51 / 255
        assert np.abs(np.asarray(value) / 255 - array.value_maps[camera][0, 3]).max() < 0.51 / 255
    assert isinstance(tensor.actions, torch.Tensor) and np.array_equal(tensor.actions, array.actions)
    assert latent.frames.shape == latent.value_maps.shape == (1, 4, 1, 3, 2)
    assert np.array_equal(latent.actions, array.actions)
    assert not latent.frames.requires_grad and not latent.actions.requires_grad
    frames, value_maps, actions, lookahead = pipe(session=session, generator=seeded(0), return_dict=False)
    assert lookahead is None
    assert_same(AIMPipelineOutput(frames=frames, value_maps=value_maps, actions=actions), array)
    wrist = "'{}_camera': (1, 4, 16, 16"
    assert repr(array) == (
        f"AIMPipelineOutput(frames={{'head_camera': (1, 4, 32, 32, 3), {wrist.format('left')}, 3), "
        f"{wrist.format('right')}, 3)}}, value_maps={{'head_camera': (1, 4, 32, 32), {wrist.format('left')}), "
        f"{wrist.format('right')})}}, actions=(1, 8, 16), lookahead_actions=None)"
    )
    assert "'left_camera': 1 x 4 pictures" in repr(picture) and "frames=(1, 4, 1, 3, 2), value" in repr(latent)


def test_frames_are_decoded_only_when_asked_for(rng):
    """A session that decodes seldom catches up, and gives the frames of one that decodes always."""
    pipe = make_pipeline()
    first, happened = make_episode(pipe, rng, chunks=2)
    reference = roll_out(pipe, ["ring bell"], [(first, happened)], seeded(0))

    decoded = []
    pipe.vae.decoder.register_forward_hook(lambda *_: decoded.append(1))
    session, generator = pipe.start("ring bell"), seeded(0)
    out = pipe(first, session=session, generator=generator, output_type="latent")
    assert len(decoded) == 0 and out.frames is not None
    pipe.append(session, *happened[0])
    out = pipe(session=session, generator=generator, decode_frames=False)
    assert out.frames is None and len(decoded) == 1  # this chunk's value maps
    np.testing.assert_array_equal(out.actions, reference[1].actions)
    expected = reference[1].value_maps["head_camera"]  # decoded in one batch with the RGB
    np.testing.assert_allclose(out.value_maps["head_camera"], expected, rtol=0, atol=1e-5)
    pipe.append(session, *happened[1])
    out = pipe(session=session, generator=generator)
    assert len(decoded) == 1 + 3 + 1  # three real latent frames to catch up with, an imagined one with its value map
    assert_same(out, reference[2])


def test_progress_bar(rng, capfd):
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=False)
    pipe(make_observation(rng), session=pipe.start("bell"), num_inference_steps=3, num_action_inference_steps=4)
    assert "7/7" in capfd.readouterr().err


def test_half_precision(rng):
    pipe = make_pipeline().to(torch.bfloat16)
    assert (pipe.vae.dtype, pipe.text_encoder.dtype, pipe.model.dtype) == (torch.float32, *[torch.bfloat16] * 2)
    session = pipe.start("ring bell")
    out = pipe(make_observation(rng), session=session, num_inference_steps=2, num_action_inference_steps=2)
    assert out.frames["head_camera"].dtype == np.float32 and np.isfinite(out.actions).all()
    pipe.append(session, [make_observation(rng) for _ in range(4)], out.actions)
    latents = pipe(session=session, output_type="latent").value_maps
    assert latents.dtype == torch.float32 and not torch.equal(latents, latents.bfloat16().float())


@pytest.mark.parametrize("args", [(torch.float64,), ("cpu", torch.float64), ("cpu", "float64"), ()])
def test_only_the_user_casts_the_vae(args):
    pipe = make_pipeline()
    vae = pipe.vae.state_dict()
    assert pipe.to(*args, **({} if args else {"dtype": "float64"})) is pipe and pipe.dtype == torch.float64
    assert pipe.model.dtype == pipe.text_encoder.dtype == torch.float64
    assert all(torch.equal(vae[name], tensor) for name, tensor in pipe.vae.state_dict().items())
    pipe.vae.to(torch.float64)
    assert pipe.to(torch.float32).vae.dtype == torch.float64 and pipe.to("cpu").dtype == torch.float32
    for wrong in (("cpu", torch.int64), ("cpu", "rubbish")):
        with pytest.raises(ValueError, match="dtype is .*expected one of float32, bfloat16"):
            pipe.to(*wrong)
    with pytest.raises(ValueError, match="dtype is given twice"):
        pipe.to(torch.float64, dtype=torch.float32)
    with pytest.raises(ValueError, match="expected a device, a dtype, or a device and a dtype"):
        pipe.to("cpu", torch.bfloat16, torch.bfloat16)
    with pytest.raises(TypeError, match="torch_dtype"):
        pipe.to(torch_dtype=torch.bfloat16)
    assert (pipe.vae.dtype, pipe.dtype) == (torch.float64, torch.float32)


@torch.no_grad()
def test_a_call_is_its_public_steps(pipe, rng):
    """`__call__` equals the list of steps that it names, and a rollout of one's own may be made of them."""
    session = pipe.start(["ring bell", "lift pot"])
    pipe.append(session, [make_observation(rng), make_observation(rng)])
    out = pipe(session=session, generator=seeded(3))
    latents, value_latents, action_latents = pipe.prepare_latents(2, generator=seeded(3))
    latents, value_latents = pipe.denoise_world(session, latents, value_latents)
    action_latents = pipe.denoise_actions(session, latents, value_latents, action_latents)
    actions = pipe.decode_actions(session, action_latents).numpy()
    assert_same(AIMPipelineOutput(*pipe.decode_world(session, latents, value_latents), actions), out)
    # Decoded one by one, the pictures differ by the rounding of another batch size.
    for together, alone in (
        (out.frames, pipe.decode_frames(session, latents)),
        (out.value_maps, pipe.decode_value_maps(value_latents)),
    ):
        for name, pictures in alone.items():
            np.testing.assert_allclose(together[name], pictures, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"observation": None}, "observation is missing"),
        ({"session": None}, "session is None; start one"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_action_inference_steps": -1}, "num_action_inference_steps is -1"),
        ({"output_type": "jpg"}, "output_type is 'jpg'"),
        ({"sampling_config": {"stop_after": 1}}, "sampling_config is of type dict; expected SamplingConfig"),
        ({"sampling_config": {}}, "sampling_config is of type dict; expected SamplingConfig"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 rows"),
        ({"session": "ring bell"}, "session is 'ring bell'; start one"),
        ({"session": [{"observation": {}}] * 99}, "^session is .{41}; start one"),
        *(({"num_inference_steps": n}, f"num_inference_steps is {n!r}; expected a whole number") for n in ODD),
        *(({"num_action_inference_steps": n}, f"num_action_inference_steps is {n!r}") for n in ODD),
        ({"num_action_inference_steps": 10**30}, "num_action_inference_steps is 1000.*; expected at most 1000"),
        *(({"stop_after": n}, f"stop_after is {n!r}") for n in ODD),
        *(
            ({"guidance_scale": n}, f"guidance_scale is {n!r}; expected")
            for n in (True, "2", np.nan, np.inf, -1, None)
        ),
        *(
            ({"action_noise_scale": n}, f"action_noise_scale is {n!r}; expected 0 to 1")
            for n in (True, "1", np.nan, 2)
        ),
        ({"output_type": ["np"]}, "output_type is"),
        ({"output_type": np.zeros(2)}, "output_type is array"),
        ({"generator": 5}, "generator is 5; expected a torch.Generator"),
        ({"generator": (torch.Generator(),)}, "generator is .*expected a torch.Generator"),
        ({"generator": [5]}, "generator is 5"),
        ({"value_maps": [1]}, "value_maps are list"),
        ({"callback_on_step_end": 5}, "callback_on_step_end is 5; expected a function"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, r"\['x'\]"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, "callback_on_step_end_tensor_inputs are 'latents'"),
        ({"callback_on_step_end_tensor_inputs": None}, "callback_on_step_end_tensor_inputs are None"),
        ({"observation": 5}, "observations hold int; expected dicts"),
        ({"observation": [[5]]}, "observation is int without"),
        ({"observation": {"observation": {"head_camera": 1}}}, "observation has no camera head_camera"),
        ({"value_maps": {"head_camera": np.zeros((1, 4, *HEAD))}}, "cameras are"),
        ({"value_maps": {c: np.zeros((1, 3, *s)) for c, s in SIZES.items()}}, r"leading shape \(1, 3\); .*\(1, 4\)"),
        ({"value_maps": {c: np.full((1, 4, *s), np.nan) for c, s in SIZES.items()}}, "value map spans nan"),
    ],
)
def test_wrong_calls_are_refused(pipe, rng, arguments, match):
    session = pipe.start("ring bell")
    with pytest.raises(ValueError, match=match):
        pipe(**({"observation": make_observation(rng), "session": session} | arguments))
    assert session.waiting == [0]


@pytest.mark.parametrize("name", ["vae", "text_encoder", "processor", "model", "scheduler", "action_scheduler"])
def test_missing_components_are_refused(pipe, name):
    for wrong, told in ((None, "None"), ("x", "str")):
        with pytest.raises(ValueError, match=f"^{name} is {told}; expected a "):
            AIMPipeline(**(pipe.components | {name: wrong}))
        with pytest.raises(ValueError, match=f"^{name} is {told}; expected a "):
            AIMPipeline.from_pretrained("nowhere", **{name: wrong})


def test_schedulers_of_other_steps_are_refused(pipe):
    """Others take other arguments, or have another convention of time and noise."""
    for name in ("scheduler", "action_scheduler"):
        with pytest.raises(ValueError, match=f"^{name} is DDIMScheduler; expected a FlowMatchEulerDiscreteScheduler"):
            AIMPipeline(**(pipe.components | {name: DDIMScheduler()}))
        with pytest.raises(ValueError, match=f"^{name} is DDIMScheduler; expected a FlowMatchEulerDiscreteScheduler"):
            setattr(pipe, name, DDIMScheduler())
        assert isinstance(getattr(pipe, name), FlowMatchEulerDiscreteScheduler)


def test_what_is_no_sampling_config_is_refused(pipe, tmp_path):
    known = "expected some of num_inference_steps, num_action_inference_steps, stop_after, guidance_scale"
    for wrong, told in (
        ({"steps": 5}, rf"sampling_config has \['steps'\]; {known}"),
        (5, "is of type int; expected Map"),
    ):
        with pytest.raises(ValueError, match=told):
            AIMPipeline(**pipe.components, sampling_config=wrong)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["sampling_config"]["of_a_newer_version"] = 1
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"sampling_config has \['of_a_newer_version'\]; {known}"):
        AIMPipeline.from_pretrained(tmp_path)
    before = pipe.sampling_config
    for wrong in ({"stop_after": 1}, None):
        with pytest.raises(ValueError, match="sampling_config is of type .*; expected SamplingConfig"):
            pipe.sampling_config = wrong
    assert pipe.sampling_config == before


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"in_channels": 8, "out_channels": 8}, "in_channels is 8 and vae.config.z_dim 4"),
        ({"text_dim": 32}, "text_dim is 32"),
        ({"action_dim": 14}, "action_dim is 14"),
        ({"actions_per_latent_frame": 6}, "multiple of the 4"),
        ({"patch_size": (1, 2, 2)}, "divisible by"),
    ],
)
def test_components_that_do_not_fit_are_refused(config, match):
    with pytest.raises(ValueError, match=match):
        make_pipeline(**config)

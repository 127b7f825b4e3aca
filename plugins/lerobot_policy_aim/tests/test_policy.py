"""A policy is its pipeline behind LeRobot's interface: the same tensors, and the same actions."""

import shutil
from pathlib import Path

import pytest
import torch
from fixtures_policy import TASK, make_batch, make_steps
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot_policy_aim import AIMPolicy, AIMPolicyConfig, make_aim_pre_post_processors

from aim_hf import AIMPipeline, SamplingConfig
from aim_hf.rollout.policies import AIMPolicy as EvaluatedPolicy
from aim_hf.rollout.rows import ROWS
from tests.fixtures_pipeline import make_pipeline


def drive(policy: AIMPolicy, steps: list[list[dict]], seed: int = 0) -> torch.Tensor:
    """Actions (B, steps, action_dim) of one rollout through LeRobot's processors."""
    preprocess, postprocess = make_aim_pre_post_processors(policy.config)
    torch.manual_seed(seed)
    policy.reset()
    return torch.stack([postprocess(policy.select_action(preprocess(make_batch(step)))) for step in steps], dim=1)


def test_a_pipeline_becomes_a_policy_and_back(pipe: AIMPipeline, policy: AIMPolicy, folder: Path, tmp_path: Path):
    policy.to_pipeline().save_pretrained(tmp_path)
    back = AIMPipeline.from_pretrained(tmp_path)
    for name in ("model", "vae", "text_encoder"):
        before, after = getattr(pipe, name).state_dict(), getattr(back, name).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert back.processor.to_dict() == pipe.processor.to_dict()
    assert back.sampling_config == pipe.sampling_config
    assert len(list(folder.rglob("model*.safetensors"))) == 2  # the model, and the text encoder


def test_a_policy_acts_as_its_pipeline_does(pipe: AIMPipeline, policy: AIMPolicy):
    frame, chunk = pipe.actions_per_frame, pipe.actions_per_chunk
    steps = make_steps(10 * frame, rows=2)
    actions = drive(policy, steps)

    def poses(step: int) -> list[dict]:  # float32, as LeRobot gives them
        state = make_batch(steps[step])["observation.state"].double().numpy()
        endpose = [
            {"left_endpose": s[:7], "left_gripper": s[7], "right_endpose": s[8:15], "right_gripper": s[15]}
            for s in state
        ]
        return [observation | {"endpose": pose} for observation, pose in zip(steps[step], endpose)]

    torch.manual_seed(0)
    seeds = torch.randint(2**62, (2,)).tolist()
    generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    session = pipe.start([TASK] * 2)
    pipe.append(session, poses(0))
    out = None
    for start in range(0, len(steps), chunk):
        if out is not None:
            seen = [poses(step) for step in range(start - chunk + frame, start + 1, frame)]
            pipe.append(session, [list(row) for row in zip(*seen)], out.actions)
        out = pipe(session=session, generator=generator)
        expected = torch.from_numpy(out.actions)[:, : len(steps) - start]
        assert torch.equal(actions[:, start : start + chunk], expected)


def test_a_first_seed_gives_the_noise_of_our_evaluator(pipe: AIMPipeline, folder: Path):
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--first_seed=5"])
    policy, evaluated = AIMPolicy.from_pretrained(folder, config=config), EvaluatedPolicy(pipe, {"policy": "same"})
    for first in (5, 5 + ROWS):
        steps = make_steps(1, rows=ROWS)
        evaluated.start([TASK] * ROWS, list(range(first, first + ROWS)))
        expected = torch.from_numpy(evaluated.predict([[seen] for seen in steps[0]]).actions[:, :1])
        torch.testing.assert_close(drive(policy, steps, seed=first).double(), expected.double(), atol=1e-5, rtol=0)
    unseeded = drive(AIMPolicy.from_pretrained(folder), steps)
    assert (unseeded - expected).abs().max() > 1e-3


def test_rows_do_not_influence_each_other(policy: AIMPolicy):
    steps, others = make_steps(24, rows=3), make_steps(24, rows=3, seed=1)
    # Row 1 ends after ten steps: LeRobot repeats its last picture, or shows another episode.
    changed = [
        [step[0], other[1] if index > 10 else step[1], step[2]]
        for index, (step, other) in enumerate(zip(steps, others))
    ]
    actions, after = drive(policy, steps), drive(policy, changed)
    assert torch.equal(actions[[0, 2]], after[[0, 2]])
    assert not torch.equal(actions[1], after[1])


@pytest.mark.parametrize("n_action_steps", [2, 6])
def test_a_part_of_a_chunk_is_executed(pipe: AIMPipeline, folder: Path, n_action_steps: int):
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=[f"--n_action_steps={n_action_steps}"])
    policy = AIMPolicy.from_pretrained(folder, config=config)
    steps = make_steps(13, rows=1)
    actions = drive(policy, steps)
    assert actions.shape == (1, 13, pipe.processor.action_dim)
    # The second chunk sees what happened since the first.
    assert not torch.equal(actions, drive(policy, steps[:2] + make_steps(11, rows=1, seed=1)))


def test_a_chunk_continues_the_last_one(policy: AIMPolicy):
    batch = make_batch(make_steps(1, rows=1)[0])
    chunk = policy.predict_action_chunk(batch)
    assert chunk.shape == (1, policy.config.chunk_size, chunk.shape[-1])
    left = torch.nn.functional.pad(chunk[0, 3:], (0, 0, 0, 3))  # as LeRobot's engine pads it
    following = policy.predict_action_chunk(batch, inference_delay=4, prev_chunk_left_over=left, execution_horizon=8)
    assert torch.equal(following[0, :4], chunk[0, 3:7])
    assert not torch.equal(following[0, 4:], chunk[0, 4:])
    assert policy.supports_rtc()


def test_an_instruction_for_each_row(policy: AIMPolicy):
    def chunk(rows: int, task: str | list[str]) -> torch.Tensor:
        torch.manual_seed(0)
        policy.reset()
        return policy.predict_action_chunk(make_batch(make_steps(1, rows=rows)[0]) | {"task": task})

    assert torch.equal(chunk(1, "press the bell"), chunk(1, ["press the bell"]))
    for task, count in (("press the bell", 1), (["press"] * 3, 3)):
        with pytest.raises(ValueError, match=f"task holds {count} instructions; expected a list of 2, one for each"):
            chunk(2, task)


def test_what_is_taken_over_is_limited(policy: AIMPolicy):
    batch = make_batch(make_steps(1, rows=1)[0])

    def chunk(**arguments) -> torch.Tensor:
        torch.manual_seed(0)
        return policy.predict_action_chunk(batch, **arguments)

    free = chunk()
    left = torch.flip(free, dims=(1,))
    for horizon, taken in ((3, 3), (4, 4), (9, 4), (None, 4)):
        following = chunk(inference_delay=4, prev_chunk_left_over=left, execution_horizon=horizon)
        assert torch.equal(following[:, :taken], left[:, :taken])
        assert not torch.equal(following[:, taken], left[:, taken])
    for nothing in ({"prev_chunk_left_over": left[0, :0]}, {"prev_chunk_left_over": left, "execution_horizon": 0}):
        assert torch.equal(chunk(inference_delay=4, **nothing), free)


def test_bad_arguments_of_real_time_chunking_are_named(policy: AIMPolicy):
    batch = make_batch(make_steps(1, rows=2)[0])
    left = policy.predict_action_chunk(batch)
    for bad, told in (
        ({"inference_delay": -1}, "inference_delay is -1; expected a whole number, at least 0"),
        ({"execution_horizon": -1}, "execution_horizon is -1; expected a whole number, at least 0"),
        ({"prev_chunk_left_over": left[0]}, r"committed_actions have shape \(1, 4, 1[46]\); expected \(2, d, 1[46]\)"),
    ):
        with pytest.raises(ValueError, match=told):
            policy.predict_action_chunk(batch, **({"inference_delay": 4, "prev_chunk_left_over": left} | bad))


def test_predictions_refer_to_the_pose_at_the_begin_of_the_episode(policy: AIMPolicy):
    """In `ee`, as in training. Moving the arms without changing the pictures changes no command."""

    def chunk(batch: dict) -> torch.Tensor:
        torch.manual_seed(0)
        return policy.predict_action_chunk(batch)

    first = make_batch(make_steps(1, rows=2)[0])
    later = first | {"observation.state": first["observation.state"].clone()}
    later["observation.state"][:, [0, 1, 2, 8, 9, 10]] += 0.25
    begun = chunk(first)
    assert torch.equal(chunk(later), begun)
    torch.manual_seed(0)
    assert torch.equal(policy.select_action(later), begun[:, 0])  # the same episodes
    policy.reset()
    moved = chunk(later) - begun
    expected = 0.25 if policy.pipeline.processor.action_space == "ee" else 0.0
    torch.testing.assert_close(moved[..., :3], torch.full_like(moved[..., :3], expected))
    if expected:
        with pytest.raises(ValueError, match="the batch has 1 rows; expected 2. Call reset"):
            chunk(make_batch(make_steps(1, rows=1)[0]))


def test_sampling_fields_reach_the_pipeline(folder: Path):
    config = PreTrainedConfig.from_pretrained(
        folder, cli_overrides=["--num_inference_steps=1", "--action_noise_scale=0.5"]
    )
    policy = AIMPolicy.from_pretrained(folder, config=config)
    assert policy.pipeline.sampling_config.num_inference_steps == 1
    assert policy.pipeline.sampling_config.action_noise_scale == 0.5


def test_stop_after_is_compared_with_the_steps_of_the_base(tmp_path: Path):
    pipe = make_pipeline("qpos")
    pipe.sampling_config = SamplingConfig(num_inference_steps=20)
    AIMPolicy.from_pipeline(pipe, stop_after=8).save_pretrained(tmp_path)
    assert AIMPolicy.from_pretrained(tmp_path).pipeline.sampling_config == SamplingConfig(20, stop_after=8)
    with pytest.raises(ValueError, match="stop_after is 21; expected 1 to num_inference_steps=20"):
        AIMPolicy.from_pipeline(pipe, stop_after=21)


def test_lerobot_finds_all_parts(folder: Path):
    assert get_policy_class("aim") is AIMPolicy
    config = PreTrainedConfig.from_pretrained(folder)
    assert isinstance(config, AIMPolicyConfig)
    preprocess, _ = make_pre_post_processors(config)
    preprocess.save_pretrained(folder)


def test_features_may_have_other_names(pipe: AIMPipeline, policy: AIMPolicy, tmp_path: Path):
    names = {"head_camera": "observation.images.top", "left_camera": "observation.image"}
    AIMPolicy.from_pipeline(pipe, names).save_pretrained(tmp_path)
    renamed, batch = AIMPolicy.from_pretrained(tmp_path), make_batch(make_steps(1, rows=1)[0])
    others = {names.get(key.removeprefix("observation.images."), key): value for key, value in batch.items()}
    torch.manual_seed(0)
    expected = policy.select_action(batch)
    torch.manual_seed(0)
    assert torch.equal(renamed.select_action(others), expected)


def test_frozen_parts_follow_the_model_but_keep_their_dtype(policy: AIMPolicy):
    policy.to(torch.bfloat16)
    assert policy.model.dtype == torch.bfloat16 and policy.pipeline.vae.dtype == torch.float32
    policy.to("meta")
    assert policy.pipeline.vae.device.type == policy.pipeline.text_encoder.device.type == "meta"
    assert all(name.startswith("model.") for name in policy.state_dict())


def test_the_files_that_lerobot_pushes_are_enough(folder: Path, tmp_path: Path):
    for pattern in ("*.safetensors", "*.json", "*.yaml", "*.md"):  # of PreTrainedPolicy.push_model_to_hub
        for file in folder.rglob(pattern):
            (tmp_path / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / file.relative_to(folder))
    AIMPolicy.from_pretrained(tmp_path)

"""Actions relative to the state, by LeRobot's `use_relative_actions`: targets, statistics, rollouts and refusals."""

import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures_dataset import LENGTHS, REPO_ID, make_dataset
from fixtures_policy import TASK, make_batch, make_steps
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy, make_pre_post_processors
from lerobot.policies.rtc import reanchor_relative_rtc_prefix
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.processor import NormalizerProcessorStep, RelativeActionsProcessorStep
from lerobot.rollout.inference.rtc import RTCInferenceEngine
from lerobot_policy_aim import AIMPolicy, AIMPolicyConfig, make_aim_pre_post_processors
from lerobot_policy_aim.dataset import check_finite, read_numbers
from torch.utils.data import default_collate

from aim_hf import AIMForWorldAction
from tests.fixtures_pipeline import HEAD, WRIST, make_pipeline

JOINTS, CHUNK, HORIZON, EVERY = 14, 8, 16, 2
MASK = torch.tensor([index not in (6, 13) for index in range(JOINTS)])  # grippers stay absolute


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "base"
    make_pipeline("qpos", action_lookahead_frames=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("datasets") / "dataset", "qpos")


@pytest.fixture(scope="module")
def folder(base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new relative policy, saved as `lerobot-train` saves it."""
    folder, policy = tmp_path_factory.mktemp("policies") / "relative", open_policy(base, dataset)
    policy.save_pretrained(folder)
    for processor in make_aim_pre_post_processors(policy.config):
        processor.save_pretrained(folder)
    return folder


def open_policy(base: Path, dataset: Path, **fields) -> AIMPolicy:
    fields = {"use_relative_actions": True, "window_chunks": 2} | fields
    config = AIMPolicyConfig(base_model_id=str(base), device="cpu", **fields)
    return make_policy(config, ds_meta=LeRobotDatasetMetadata(REPO_ID, root=dataset))


def with_states(steps: list[list[dict]], states: torch.Tensor) -> list[dict]:
    """Batches of observations with states, (steps, rows, JOINTS)."""
    return [make_batch(step) | {"observation.state": state} for step, state in zip(steps, states, strict=True)]


def drive(policy: AIMPolicy, batches: list[dict], processors: tuple) -> torch.Tensor:
    """Absolute actions (B, steps, JOINTS) of a rollout through LeRobot's processors."""
    preprocess, postprocess = processors
    torch.manual_seed(0)
    policy.reset()
    return torch.stack([postprocess(policy.select_action(preprocess(batch))) for batch in batches], dim=1)


def test_targets_and_history_are_taken_from_the_states_of_their_frames(base, dataset, monkeypatch):
    policy, seen = open_policy(base, dataset), {}
    metadata, objective = LeRobotDatasetMetadata(REPO_ID, root=dataset), policy.objective
    timestamps = resolve_delta_timestamps(policy.config, metadata)
    windows = LeRobotDataset(REPO_ID, root=dataset, delta_timestamps=timestamps)
    preprocess, _ = make_aim_pre_post_processors(policy.config, metadata.stats)
    starts = [3, LENGTHS[0] + 5]
    batch = preprocess(default_collate([windows[start] for start in starts]))
    monkeypatch.setattr(objective.__class__, "__call__", recorded(objective.__class__.__call__, seen))
    loss, _ = policy.forward(batch)
    assert loss.isfinite()

    numbers = {name: torch.tensor(values) for name, values in read_numbers(metadata).items()}
    state, action, expert = (numbers[name] for name in ("observation.state", "action", "expert_action"))
    scale = policy.pipeline.processor.scale_actions
    for row, start in enumerate(starts):
        of_lerobot = action[start : start + 24] - state[start] * MASK
        torch.testing.assert_close(batch["action"][row], of_lerobot)
        predictions = [expert[begin : begin + HORIZON] - state[begin] * MASK for begin in (start, start + CHUNK)]
        torch.testing.assert_close(seen["actions"][row], scale(torch.cat(predictions)), atol=1e-5, rtol=1e-5)
        pictures = start + torch.arange(2 * CHUNK) // EVERY * EVERY
        history = action[start : start + 2 * CHUNK] - state[pictures] * MASK
        torch.testing.assert_close(seen["executed_actions"][row], scale(history), atol=1e-5, rtol=1e-5)


def recorded(call, seen: dict):
    """`call`, whose keyword arguments are kept in `seen`."""
    return lambda self, model, **arguments: seen.update(arguments) or call(self, model, **arguments)


def test_statistics_are_those_of_relative_actions(base, dataset):
    numbers = read_numbers(LeRobotDatasetMetadata(REPO_ID, root=dataset))
    episodes, of_windows = numbers["episode_index"][:, 0], []
    for frame, state in enumerate(numbers["observation.state"]):
        end = min(frame + HORIZON, np.searchsorted(episodes, episodes[frame], side="right"))
        of_windows.append(numbers["expert_action"][frame:end] - state * MASK.numpy())
    expected = np.concatenate(of_windows)
    found = open_policy(base, dataset).pipeline.processor.action_statistics
    for name, values in (("min", expected.min(axis=0)), ("max", expected.max(axis=0))):
        np.testing.assert_allclose(found[name], values, atol=1e-6)
    for name, share in (("q01", 0.01), ("q99", 0.99)):
        np.testing.assert_allclose(found[name], np.quantile(expected, share, axis=0), atol=1e-6)
    absolute = open_policy(base, dataset, use_relative_actions=False).pipeline.processor.action_statistics
    assert np.abs(np.subtract(absolute["max"], found["max"]))[MASK.numpy()].min() > 1e-3
    np.testing.assert_allclose(np.array(found["q99"])[~MASK], np.array(absolute["q99"])[~MASK], atol=0.05)


@pytest.mark.parametrize("n_action_steps", [8, 4])
def test_a_rollout_adds_the_state_that_its_chunk_began_at(folder, n_action_steps, monkeypatch):
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=[f"--n_action_steps={n_action_steps}"])
    policy = AIMPolicy.from_pretrained(folder, config=config)
    chunks, executed = [], []
    sample, append = policy._sample, policy.pipeline.append
    monkeypatch.setattr(policy, "_sample", lambda *given: chunks.append(sample(*given)) or chunks[-1])
    monkeypatch.setattr(policy.pipeline, "append", lambda *given: executed.extend(given[2:]) or append(*given))
    steps, states = make_steps(17, rows=2), torch.randn(17, 2, JOINTS, generator=torch.Generator().manual_seed(3))
    processors = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    actions = drive(policy, with_states(steps, states), processors)
    begins = range(0, 17, n_action_steps)
    expected = [
        chunk[:, :n_action_steps] + (states[begin] * MASK)[:, None]
        for begin, chunk in zip(begins, chunks, strict=True)
    ]
    torch.testing.assert_close(actions, torch.cat(expected, dim=1)[:, :17], atol=1e-5, rtol=1e-5)
    shown = torch.cat(executed, dim=1)  # the history, each action relative to the state at the picture before it
    at_pictures = states[torch.arange(16) // EVERY * EVERY] * MASK
    torch.testing.assert_close(shown, actions[:, :16] - at_pictures.movedim(0, 1), atol=1e-5, rtol=1e-5)


def test_a_robot_elsewhere_does_the_same_elsewhere(folder):
    policy = AIMPolicy.from_pretrained(folder)
    processors, steps = make_aim_pre_post_processors(policy.config), make_steps(20, rows=2)
    path = torch.randn(20, 2, JOINTS, generator=torch.Generator().manual_seed(3))
    offset = torch.linspace(-1, 1, JOINTS)
    here, there = (drive(policy, with_states(steps, path + by), processors) for by in (0, offset * MASK))
    torch.testing.assert_close(there, here + offset * MASK, atol=1e-3, rtol=0)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_state_that_is_nan_reaches_no_robot(folder, step):
    """At the first picture, between two, and at the second. The same step may follow once the sensor is back."""
    policy, batches = AIMPolicy.from_pretrained(folder), with_states(make_steps(3, rows=2), torch.zeros(3, 2, JOINTS))
    for batch in batches[:step]:
        policy.select_action(batch)
    state = torch.zeros(2, JOINTS)
    state[1, 4] = torch.nan
    for act in (policy.select_action, policy.predict_action_chunk):
        with pytest.raises(ValueError, match=r"observation.state\[1, 4\] is nan; expected finite numbers"):
            act(batches[step] | {"observation.state": state})
    assert policy.select_action(batches[step]).isfinite().all()


def test_the_rest_of_a_chunk_is_continued_from_another_state(folder):
    policy = AIMPolicy.from_pretrained(folder)
    preprocess, postprocess = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    relative = next(step for step in preprocess.steps if isinstance(step, RelativeActionsProcessorStep))
    normalizer = next(step for step in preprocess.steps if isinstance(step, NormalizerProcessorStep))
    first, second = with_states(make_steps(2, rows=1), torch.randn(2, 1, JOINTS))
    chunk = postprocess(policy.predict_action_chunk(preprocess(first)))[0]
    second["observation.state"] = chunk[
        4:5
    ].clone()  # action 4 is to rest there: relative, it is zero but for grippers
    second["observation.state"][:, ~MASK] = chunk[4, ~MASK] = 0
    batch = preprocess(second)
    # As LeRobot's engine does, whose steps these are.
    left = reanchor_relative_rtc_prefix(chunk[3:], relative.get_cached_state(), relative, normalizer, "cpu")
    assert not left[1].any()
    left = torch.nn.functional.pad(left, (0, 0, 0, 5))
    following = policy.predict_action_chunk(batch, inference_delay=4, prev_chunk_left_over=left, execution_horizon=8)
    torch.testing.assert_close(postprocess(following)[0, :4], chunk[3:7], atol=1e-5, rtol=1e-5)


def test_lerobots_engine_continues_what_a_moving_robot_is_executing(folder, monkeypatch):
    policy = AIMPolicy.from_pretrained(folder)
    preprocess, postprocess = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    calls, chunks, predict = [], [], policy.predict_action_chunk
    monkeypatch.setattr(
        policy, "predict_action_chunk", lambda batch, **given: calls.append(given) or predict(batch, **given)
    )
    joints, sizes = [f"joint_{index}.pos" for index in range(JOINTS)], {"head_camera": HEAD}
    sizes |= dict.fromkeys(("left_camera", "right_camera"), WRIST)
    features = {f"observation.images.{name}": {"dtype": "image", "shape": (*size, 3)} for name, size in sizes.items()}
    features["observation.state"] = {"dtype": "float32", "shape": (JOINTS,), "names": joints}
    engine = RTCInferenceEngine(
        policy,
        preprocess,
        lambda actions: chunks.append(postprocess(actions)) or chunks[-1],
        SimpleNamespace(robot_type="blocks", action_features=joints),
        RTCConfig(execution_horizon=8),
        features,
        TASK,
        fps=10,
        device="cpu",
        rtc_queue_threshold=6,
    )
    pictures, rng = make_steps(1, rows=1)[0][0]["observation"], np.random.default_rng(0)
    engine.start()
    engine.resume()

    def continued() -> int:
        """Chunks that begin with actions of the last one, where the robot is to be."""
        found = 0
        for given, before, after in zip(calls[1:], chunks, chunks[1:]):
            left = given["prev_chunk_left_over"]
            count = 0 if left is None else min(given["inference_delay"], len(left.any(dim=-1).nonzero()))
            if count:
                gaps = [(before[0, at : at + count] - after[0, :count]).abs().max() for at in range(CHUNK - count + 1)]
                assert min(gaps) < 1e-5
                found += 1
        return found

    # A machine that is busy predicts late, when nothing is left of the chunk: it gets more time.
    taken, deadline = 0, time.monotonic() + 60
    try:
        while (taken < 24 or not continued()) and time.monotonic() < deadline:
            seen = {name: pictures[name]["rgb"] for name in sizes}
            engine.notify_observation(seen | dict(zip(joints, rng.normal(size=JOINTS))))
            taken += engine.get_action(None) is not None
            time.sleep(0.1)
    finally:
        engine.stop()
    assert not engine.failed and taken >= 24 and continued()


def test_another_frame_of_reference_than_the_checkpoints_is_refused(base, dataset, folder, tmp_path, monkeypatch):
    absolute = tmp_path / "absolute"
    open_policy(base, dataset, use_relative_actions=False).save_pretrained(absolute)
    monkeypatch.setattr(AIMForWorldAction, "__init__", lambda *_: pytest.fail("a model was made"))
    told = r"actions are {}, and here they would be {}; leave --policy.use_relative_actions .*--policy.type=aim"
    for source, option, there, here in (
        (absolute, "--use_relative_actions=true", "absolute", "relative in 12 numbers"),
        (folder, "--use_relative_actions=false", "relative in 12 numbers", "absolute"),
        (folder, "--relative_exclude_joints=[]", "relative in 12 numbers", "relative in 14 numbers"),
    ):
        config = PreTrainedConfig.from_pretrained(source, cli_overrides=[option])
        config.pretrained_path = source
        with pytest.raises(ValueError, match=told.format(there, here)):
            make_policy(config, ds_meta=LeRobotDatasetMetadata(REPO_ID, root=dataset))


def test_relative_actions_need_states_and_joints(base, dataset, tmp_path, monkeypatch):
    metadata = LeRobotDatasetMetadata(REPO_ID, root=dataset)
    pipe = make_pipeline("ee", action_lookahead_frames=1)
    pipe.save_pretrained(tmp_path / "ee")
    poses = make_dataset(tmp_path / "poses", "ee")
    with pytest.raises(ValueError, match="this pipeline acts absolutely; train a policy of its own"):
        AIMPolicy.from_pipeline(pipe, use_relative_actions=True)
    monkeypatch.setattr(AIMForWorldAction, "__init__", lambda *_: pytest.fail("a model was made"))
    with pytest.raises(ValueError, match="'ee' are relative to the episode's first pose already; leave the option"):
        open_policy(tmp_path / "ee", poses)
    del metadata.features["observation.state"]
    config = AIMPolicyConfig(base_model_id=str(base), device="cpu", use_relative_actions=True)
    with pytest.raises(ValueError, match="observation.state of you/blocks has no numbers, and action 14; .*Leave use"):
        make_policy(config, ds_meta=metadata)


def test_a_batch_without_a_state_of_its_actions_width_is_refused(folder):
    batch = make_batch(make_steps(1, rows=1)[0])
    del batch["observation.state"]
    policy = AIMPolicy.from_pretrained(folder)
    with pytest.raises(ValueError, match="no observation.state; relative actions are taken from it"):
        policy.select_action(batch)
    batch["observation.state"] = torch.zeros(1, JOINTS + 1)  # LeRobot would take the first numbers
    with pytest.raises(
        ValueError, match=r"has shape \(1, 15\); expected \(1, 14\): relative actions are taken from it"
    ):
        policy.select_action(batch)


def test_a_relative_policy_becomes_no_pipeline(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lerobot_policy_aim", str(folder), str(tmp_path / "pipeline")])
    with pytest.raises(SystemExit):
        runpy.run_module("lerobot_policy_aim", run_name="__main__")
    assert "acts relative to observation.state, and a pipeline absolutely" in capsys.readouterr().err
    assert not (tmp_path / "pipeline").exists()
    with pytest.raises(ValueError, match="train a policy without use_relative_actions"):
        AIMPolicy.from_pretrained(folder).to_pipeline()


def test_names_in_groups_are_the_numbers_names(base, dataset):
    metadata = LeRobotDatasetMetadata(REPO_ID, root=dataset)
    names = metadata.features["action"]["names"]
    placed = {name: place for place, name in reversed([*enumerate(names)])}  # as LeRobot's gamepad has them
    for spelled in ({"motors": names}, placed):
        metadata.features["action"]["names"] = spelled
        config = AIMPolicyConfig(base_model_id=str(base), device="cpu", use_relative_actions=True)
        assert make_policy(config, ds_meta=metadata).config.relative_mask == MASK.tolist()


def test_numbers_without_names_are_all_relative_in_lerobots_engine_too(base, dataset):
    metadata = LeRobotDatasetMetadata(REPO_ID, root=dataset)
    joints, metadata.features["action"]["names"] = metadata.features["action"]["names"], None
    config = AIMPolicyConfig(base_model_id=str(base), device="cpu", use_relative_actions=True)
    policy = make_policy(config, ds_meta=metadata)
    preprocess, postprocess = make_aim_pre_post_processors(policy.config)
    robot = SimpleNamespace(robot_type="blocks", action_features=[f"{name}.pos" for name in joints])
    RTCInferenceEngine(policy, preprocess, postprocess, robot, RTCConfig(), {}, TASK, fps=10, device="cpu")
    (relative,) = (step for step in preprocess.steps if isinstance(step, RelativeActionsProcessorStep))
    assert relative.action_names == robot.action_features  # as the engine gives them
    assert relative._build_mask(JOINTS) == policy.config.relative_mask == [True] * JOINTS


def test_numbers_that_are_not_finite_are_named(dataset):
    metadata = LeRobotDatasetMetadata(REPO_ID, root=dataset)
    numbers = {name: values.copy() for name, values in read_numbers(metadata).items()}
    numbers["observation.state"][LENGTHS[0] + 1, 2] = np.inf
    check_finite(metadata, numbers, with_states=False)
    with pytest.raises(
        ValueError, match="observation.state of you/blocks is NaN or infinite in 1 frames, first in ep"
    ):
        check_finite(metadata, numbers, with_states=True)
    numbers["action"][LENGTHS[0] + 1, 2] = np.nan
    with pytest.raises(ValueError, match="action of you/blocks is NaN .* episode 1; repair them, or delete"):
        check_finite(metadata, numbers, with_states=False)

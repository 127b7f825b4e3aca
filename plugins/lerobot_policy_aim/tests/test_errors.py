"""Bad input is refused in one line, before anything is computed."""

import importlib
import shutil
from importlib import metadata
from pathlib import Path

import lerobot_policy_aim
import pytest
from fixtures_policy import make_batch, make_steps
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot_policy_aim import AIMPolicy, AIMPolicyConfig

from aim_hf import AIMForWorldAction
from tests.fixtures_pipeline import make_pipeline

LONG = ["--chunk_size=100", "--n_action_steps=100"]  # as ACT has them


@pytest.fixture
def config(folder: Path) -> AIMPolicyConfig:
    return PreTrainedConfig.from_pretrained(folder)


@pytest.fixture
def no_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, no model may be made."""
    monkeypatch.setattr(AIMForWorldAction, "__init__", lambda *_: pytest.fail("a model was made"))


def picture(size: tuple[int, int]) -> PolicyFeature:
    return PolicyFeature(FeatureType.VISUAL, (3, *size))


def test_unknown_cameras_are_named(folder, config, no_model):
    config.input_features["observation.images.top"] = picture((32, 32))
    with pytest.raises(
        ValueError, match=r"no observation.images.top as top; AIM's cameras are head_camera, .*--policy"
    ):
        AIMPolicy.from_pretrained(folder, config=config)
    config.cameras = {"head_camera": "observation.images.front"}
    with pytest.raises(ValueError, match="no observation.images.front as head_camera"):
        AIMPolicy.from_pretrained(folder, config=config)


def test_cameras_that_a_policy_needs_are_named(folder, config):
    config.cameras = {"head_camera": "observation.images.head_camera"}
    with pytest.raises(ValueError, match="this policy looks at left_camera, right_camera, too; name the features"):
        AIMPolicy.from_pretrained(folder, config=config)


def test_another_action_width_is_refused(folder, config, no_model):
    config.output_features["action"] = PolicyFeature(FeatureType.ACTION, (7,))
    with pytest.raises(
        ValueError, match="actions have 7 numbers here, and 1[46] in this policy; give an .*or train another"
    ):
        AIMPolicy.from_pretrained(folder, config=config)


def test_missing_pictures_and_other_rows_are_named(policy):
    batch = make_batch(make_steps(1, rows=2)[0])
    with pytest.raises(
        ValueError, match="no observation.images.left_camera, .*its pictures are observation.images.head"
    ):
        policy.select_action({name: value for name, value in batch.items() if "left" not in name})
    policy.select_action(batch)
    policy.select_action(batch)
    for wrong in (lambda x: (255 * x).byte(), lambda x: 255 * x, lambda x: 4 * x - 2, lambda x: x * float("nan")):
        others = batch | {"observation.images.head_camera": wrong(batch["observation.images.head_camera"])}
        with pytest.raises(
            ValueError, match="images.head_camera is torch.* expected floating-point numbers from 0 to"
        ):
            policy.select_action(others)
    for _ in range(2):  # at a picture, and between two
        with pytest.raises(ValueError, match="has 3 rows; expected 2. Call reset"):
            policy.select_action(make_batch(make_steps(1, rows=3)[0]))
        policy.select_action(batch)


def test_states_of_another_width_are_named(policy):
    batch = make_batch(make_steps(1, rows=1)[0])
    batch["observation.state"] = batch["observation.state"][:, :14]  # of a robot that is driven by its joints
    if policy.pipeline.processor.action_space == "qpos":
        policy.select_action(batch)
        return
    with pytest.raises(
        ValueError, match=r"observation.state has shape \(1, 14\); expected \(1, 16\): action space 'ee'"
    ):
        policy.select_action(batch)


def test_a_new_policy_needs_a_base_and_a_dataset():
    features = {"observation.images.head_camera": picture((32, 32))}
    action = {"action": PolicyFeature(FeatureType.ACTION, (14,))}
    config = AIMPolicyConfig(input_features=features, output_features=action, device="cpu")
    with pytest.raises(ValueError, match="a new policy needs a base and a dataset; give --policy.base_model_id"):
        AIMPolicy(config)
    with pytest.raises(ValueError, match="a new policy needs a base and a dataset; give --policy.base_model_id"):
        assert config.action_delta_indices  # LeRobot asks for it first


def test_a_policy_is_no_base(folder):
    with pytest.raises(ValueError, match="base_model_id is .*; expected an AIM pipeline, .*--policy.path"):
        AIMPolicyConfig(base_model_id=str(folder), device="cpu")


def test_the_model_determines_the_length_of_a_chunk(folder, tmp_path):
    with pytest.raises(ValueError, match="chunk_size is 100; expected 8, as the model has it. Leave the option out"):
        AIMPolicy.from_pretrained(folder, config=PreTrainedConfig.from_pretrained(folder, cli_overrides=LONG))
    make_pipeline("qpos").save_pretrained(tmp_path / "base")
    new = {"base_model_id": str(tmp_path / "base"), "device": "cpu"}
    assert AIMPolicyConfig(**new, chunk_size=8).actions_per_frame == 2
    with pytest.raises(ValueError, match="chunk_size is 100; expected 8"):
        AIMPolicyConfig(**new, chunk_size=100)
    with pytest.raises(ValueError, match="a new policy needs a base"):
        AIMPolicyConfig(device="cpu", chunk_size=100)


def test_what_sharded_processes_cannot_train_is_refused(folder, config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    AIMPolicy.from_pretrained(folder, config=config)
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match="fsdp_version is 2; expected 1, with which lerobot-train works"):
        AIMPolicy.from_pretrained(folder, config=config)


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"n_action_steps": 3}, "n_action_steps is 3; expected a multiple of 2"),
        ({"n_action_steps": 10}, "n_action_steps is 10; expected a multiple of 2, .* of at most 8"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"window_chunks": 0}, "window_chunks is 0"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected one of float32, bfloat16"),
        ({"committed_max": 0}, "committed_max is 0; expected a whole number, at least 1"),
        ({"prompt_dropout": -0.1}, "prompt_dropout is -0.1; expected 0 to 1"),
        ({"history_noise_max": float("nan")}, "history_noise_max is nan; expected 0 to 1"),
        ({"imagined_value_probability": 1.5}, "imagined_value_probability is 1.5; expected 0 to 1"),
        ({"value_foreground_weight": -3.0}, "value_foreground_weight is -3.0; expected a finite number, at least 0"),
        ({"first_seed": -5}, "first_seed is -5"),
        ({"first_seed": 2**64}, f"first_seed is {2**64}; expected a whole number, 0 to {2**63 - 1}"),
        ({"latents_dir": ""}, "latents_dir is ''; expected a path. Give '.' for the current folder"),
        ({"normalization_mapping": {"ACTION": "MEAN_STD"}}, "expected IDENTITY"),
    ],
)
def test_values_out_of_range_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        AIMPolicyConfig(chunk_size=8, actions_per_frame=2, device="cpu", **fields)


def test_a_damaged_policy_is_refused(tmp_path):
    AIMPolicy.from_pipeline(make_pipeline("qpos")).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(OSError, match="model.safetensors can't be read"):
        AIMPolicy.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "text, told",
    [
        ('{"type": "aim", "chunk', "Unterminated string"),
        ('{"type": "aim", "colour": 1}', "`colour` are not valid"),
        ('{"type": "aim", "dtype": "int8"}', "dtype is 'int8'; expected one of float32, bfloat16"),
        (None, "is missing"),
    ],
)
def test_a_damaged_configuration_is_named_with_the_reason(tmp_path, text, told):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(OSError, match=f"config.json .*{told}.*; save or download the checkpoint again"):
        AIMPolicy.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "file, text, told",
    [
        ("model/config.json", "{}", "it doesn't name its class"),
        ("processor/tokenizer.json", '{"version": ', "Expecting value"),
    ],
)
def test_a_damaged_part_is_named_before_a_model_is_made(folder, tmp_path, no_model, file, text, told):
    policy = shutil.copytree(folder, tmp_path / "policy")
    (policy / "pipeline" / file).write_text(text)
    with pytest.raises(OSError, match=f"{file} can't be read .{told}.*; save or download the checkpoint again"):
        AIMPolicy.from_pretrained(policy)


def test_an_old_lerobot_is_refused(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda _: "0.4.4")
    with pytest.raises(ImportError, match="lerobot is 0.4.4; lerobot_policy_aim needs at least 0.6.1: pip install"):
        importlib.reload(lerobot_policy_aim)

"""The whole processor: fields, observations, words, saving, and what is refused."""

import json
import logging

import numpy as np
import pytest
import torch

from aim_hf.model.canvas import t_pose_canvas
from aim_hf.model.processing_aim import AIMProcessor

from ..fixtures_pipeline import (
    CANVAS,
    HEAD,
    WRIST,
    make_observation,
    make_pose,
    make_processor,
    make_tokenizer,
    make_views,
)


def test_observations_in_robotwins_layout(rng):
    processor, observation = make_processor(), make_observation(rng)
    views = processor.observation_views(observation)
    assert list(views) == ["head_camera", "left_camera", "right_camera"]
    pose = processor.initial_pose(observation)
    assert pose.shape == (16,) and pose.dtype == torch.float64
    assert np.array_equal(pose[8:15], observation["endpose"]["right_endpose"])
    assert pose[7] == observation["endpose"]["left_gripper"]
    del observation["observation"]["head_camera"], observation["endpose"]["left_gripper"]
    with pytest.raises(ValueError, match="no camera head_camera"):
        processor.observation_views(observation)
    with pytest.raises(ValueError, match="no left_gripper"):
        processor.initial_pose(observation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"left_endpose": np.ones(6), "left_gripper": np.ones(2)},
            r"'left_endpose'\] has shape \(6,\); expected \(7,\)",
        ),
        ({"right_gripper": np.ones(0)}, r"'right_gripper'\] has shape \(0,\); expected \(1,\)"),
        ({"left_endpose": "abc"}, r"'left_endpose'\] is str of dtype <U3; expected an array of numbers"),
        ({"left_endpose": [[1.0], [2.0, 3.0]]}, r"'left_endpose'\] is no array .*; expected an array of numbers"),
    ],
)
def test_each_part_of_a_pose_has_its_size(rng, change, message):
    observation = make_observation(rng)
    with pytest.raises(ValueError, match=message):
        make_processor().initial_pose({"endpose": observation["endpose"] | change})
    for wrong in (None, np.zeros(16), [0.0] * 16):
        with pytest.raises(ValueError, match="has no left_endpose"):
            make_processor().initial_pose({"endpose": wrong})


ONE = {"head": {"size": [8, 8], "slot": [0, 0, 8, 8]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": {}}, "cameras are none"),
        ({"cameras": [1]}, "cameras is of type list; expected Mapping"),
        ({"cameras": {"head": None}}, "camera head is of type NoneType; expected Mapping"),
        ({"cameras": {"head": {"size": [8, 8]}}}, "camera head has no slot"),
        ({"cameras": {"head": {"size": [0, 8], "slot": [0, 0, 8, 8]}}}, r"size of head is \[0, 8\]; expected 2 whole"),
        ({"cameras": {"head": {"size": [8, 8], "slot": [0, 0, 8]}}}, r"slot of head is \[0, 0, 8\]; expected 4 whole"),
        ({"canvas_size": [16.9, 16]}, r"canvas_size is \[16.9, 16\]; expected 2 whole numbers, each at least 1"),
        ({"canvas_size": 16}, "canvas_size is 16"),
        ({"action_space": "qpos", "action_dim": 0}, "action_dim is 0"),
        ({"action_space": "qpos", "action_dim": "x"}, "action_dim is 'x'"),
        ({"max_text_length": -1}, "max_text_length is -1"),
        ({"minimum_half_range": np.inf}, "minimum_half_range is inf"),
    ],
)
def test_fields_of_a_processor_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        AIMProcessor(make_tokenizer(), **{"canvas_size": [16, 16], "cameras": ONE} | changes)
    with pytest.raises(ValueError, match="tokenizer is of type str; expected PreTrainedTokenizerBase"):
        AIMProcessor("t5", [16, 16], ONE)


@pytest.mark.parametrize("content", [None, "", "{}", '{"version": '], ids=["missing", "empty", "no fields", "cut"])
def test_a_damaged_tokenizer_is_named(content, tmp_path):
    make_processor().save_pretrained(tmp_path / "processor")
    file = tmp_path / "processor" / "tokenizer.json"
    file.unlink() if content is None else file.write_text(content)
    for source, options in ((tmp_path / "processor", {}), (tmp_path, {"subfolder": "processor"})):
        with pytest.raises(OSError, match=rf"tokenizer in {tmp_path}/processor/? can't be read .*checkpoint again"):
            AIMProcessor.from_pretrained(source, **options)


def test_pictures_and_words_that_are_none_are_named():
    processor = AIMProcessor(make_tokenizer(), [16, 16], ONE)
    with pytest.raises(ValueError, match="picture of head is no array"):
        processor.pack_canvas({"head": [[1, 2], [3]]})
    with pytest.raises(ValueError, match="picture of head is no array"):
        processor.pack_canvas({"head": torch.zeros(16, 16, 3, dtype=torch.uint8, device="meta")})  # as on a GPU
    for nothing in (None, "x"):
        with pytest.raises(ValueError, match="value map is (NoneType|str) of dtype .*; expected an array of numbers"):
            processor.value_to_rgb(nothing)
    with pytest.raises(ValueError, match="expected Unicode text without lone surrogates"):
        processor.tokenize("press \ud800")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"action_space": "joint"}, "action_space is 'joint'"),
        ({"action_space": "ee", "action_dim": 14, "action_statistics": None}, "'ee' have 16"),
        ({"minimum_half_range": 0.0}, "minimum_half_range is 0.0"),
        ({"minimum_half_range": "0.01"}, "minimum_half_range is '0.01'; expected a number above 0"),
    ],
)
def test_wrong_fields_are_refused(fields, match):
    arguments = dict(canvas_size=CANVAS, cameras=t_pose_canvas(CANVAS, HEAD, WRIST)) | fields
    with pytest.raises(ValueError, match=match):
        AIMProcessor(make_tokenizer(), **arguments)


def test_tokens_are_padded_at_the_end():
    tokens = make_processor().tokenize(["put the red block", "bell"])
    assert tokens.input_ids.shape == (2, 8)
    assert tokens.attention_mask.tolist() == [[1] * 5 + [0] * 3, [1] * 2 + [0] * 6]
    assert tokens.input_ids[1, :3].tolist() == [11, 1, 0]
    left = make_processor()
    left.tokenizer.padding_side = "left"
    padded = left.tokenize(["put the red block", "bell"])
    assert all(torch.equal(padded[name], tensor) for name, tensor in tokens.items())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "instruction 0 is ''"),
        (["bell", "  "], "instruction 1"),
        ([None], "expected words"),
        (
            {"observation": {"head_camera": {"rgb": np.zeros((64, 96, 3), np.uint8)}}},
            "instruction is {'observation': .*words",
        ),
        (
            "put the red block on the blue one",
            "^instructions have at most 8 tokens .about 29 characters.; this one has 9: ",
        ),
    ],
)
def test_wrong_instructions_are_refused_in_one_line(text, match, caplog):
    """And the tokenizer adds none of its own."""
    logging.getLogger("transformers").propagate = True
    with pytest.raises(ValueError, match=match) as refused:
        make_processor().tokenize(text)
    assert len(str(refused.value)) < 200 and not caplog.records


def test_call_gives_what_the_network_eats(rng):
    processor, views = make_processor(), make_views(rng)
    actions = np.stack([[make_pose(rng) for _ in range(4)] for _ in range(2)])
    initial = np.stack([make_pose(rng) for _ in range(2)])
    batch = processor(text=["bell", "pot"], images=views, actions=actions, initial_pose=initial)
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values", "actions"}
    assert batch.pixel_values.shape == (2, 3, 3, *CANVAS)
    assert torch.equal(batch.actions, processor.normalize_actions(actions, initial))
    with pytest.raises(ValueError, match="^pictures are ndarray; expected a dict, camera -> uint8"):
        processor(text="bell", images=views["head_camera"])


def test_numbers_of_numpy_are_saved(tmp_path):
    processor = make_processor(minimum_half_range=np.float32(0.5), fps=np.float32(25), max_text_length=np.int64(8))
    processor.save_pretrained(tmp_path)
    loaded = AIMProcessor.from_pretrained(tmp_path)
    assert (loaded.minimum_half_range, loaded.fps, loaded.max_text_length) == (0.5, 25, 8)


def test_saving_and_loading_is_bit_equal(tmp_path, rng):
    statistics = {"q01": rng.normal(size=16).tolist(), "q99": (5 + rng.random(16)).tolist()}
    statistics |= {"min": (-5 - rng.random(16)).tolist(), "max": (9 + rng.random(16)).tolist()}
    processor = make_processor(action_statistics=statistics, minimum_half_range=0.1 + 0.2)
    processor.save_pretrained(tmp_path)
    loaded = AIMProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.action_statistics == statistics
    assert list(loaded.cameras) == list(processor.cameras)
    assert loaded.tokenize("put the bell").input_ids.tolist() == processor.tokenize("put the bell").input_ids.tolist()
    pose, actions = make_pose(rng), np.stack([make_pose(rng) for _ in range(4)])
    assert torch.equal(loaded.normalize_actions(actions, pose), processor.normalize_actions(actions, pose))


def test_the_control_rate_is_kept_and_old_processors_do_not_know_theirs(tmp_path):
    processor = make_processor(fps=12.5)
    processor.save_pretrained(tmp_path)
    assert AIMProcessor.from_pretrained(tmp_path).fps == 12.5
    file = tmp_path / "processor_config.json"
    fields = json.loads(file.read_text())
    assert fields.pop("fps") == 12.5
    file.write_text(json.dumps(fields))
    assert AIMProcessor.from_pretrained(tmp_path).fps is None
    for wrong in (0, -1, np.nan, "12.5", True):
        with pytest.raises(ValueError, match=f"fps is {wrong!r}; expected a finite number"):
            processor.fps = wrong


def test_a_folder_without_a_configuration_is_no_processor(tmp_path):
    make_processor().save_pretrained(tmp_path / "processor")
    assert AIMProcessor.from_pretrained(tmp_path, subfolder="processor").cameras
    with pytest.raises(OSError, match=r'has no processor_config.json; .* or subfolder="processor"'):
        AIMProcessor.from_pretrained(tmp_path)
    (tmp_path / "processor" / "processor_config.json").unlink()
    with pytest.raises(OSError, match="processor has no processor_config.json; expected the processor of a pipeline"):
        AIMProcessor.from_pretrained(tmp_path / "processor")


@pytest.mark.parametrize("damage", ["lacks a field", "unknown field"])
def test_damaged_configurations_are_refused(tmp_path, damage):
    make_processor().save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    fields = json.loads(file.read_text())
    if damage == "lacks a field":
        del fields["action_statistics"]
        file.write_text(json.dumps(fields))
    else:
        file.write_text(json.dumps(fields | {"canvas": [48, 32]}))
    with pytest.raises(ValueError, match="processor_config.json lacks"):
        AIMProcessor.from_pretrained(tmp_path)

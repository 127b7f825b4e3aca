"""Episodes that lack views or value maps, and other robots' actions: from LeRobot's files to a training step."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from aim_hf import AIMForWorldAction, AIMPipeline, AIMProcessor
from aim_hf.commands import run
from aim_hf.data.latent_windows import LatentWindows
from aim_hf.data.latents import (
    described,
    encode_episode,
    fit_processor,
    made_from,
    missing,
    plan_shards,
    row_digests,
    write_index,
)
from aim_hf.data.lerobot.importer import imported_row
from aim_hf.data.lerobot.robot import Columns, Robot
from aim_hf.data.lerobot.source import LeRobotSource
from aim_hf.data.shards import ShardWriter, load_episodes
from aim_hf.pipeline.codec import VideoCodec
from aim_hf.tiny.vae import canvas_episodes
from aim_hf.training.arguments import AIMTrainingArguments
from aim_hf.training.flow_matching import FlowMatchingLoss, weigh_values
from aim_hf.training.samples import SampleCallback, sample_first_chunk
from aim_hf.training.trainer import AIMTrainer

from ..data.test_episodes import full_disk
from ..fixtures_pipeline import HEAD, WRIST, make_pipeline
from .test_stage1 import make_episode

ROOT = Path(__file__).parents[2]

FIXTURE = ROOT / "tests" / "data" / "fixtures" / "lerobot_v3"


def write_episodes(folder: Path, rows: list[dict]) -> None:
    writer = ShardWriter(folder, "easy", "click_bell", 0)
    for row in rows:
        writer.add(row)
    writer.finish({"simulator": {}})


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def episodes():
    """A whole episode, one without the left camera, one whose right camera isn't calibrated, one without maps."""
    whole, blind, uncalibrated, unlabeled = (make_episode(seed) for seed in range(4))
    for part in (blind.rgb, blind.intrinsics, blind.extrinsics):
        del part["left_camera"]
    for part in (uncalibrated.intrinsics, uncalibrated.extrinsics):
        del part["right_camera"]
    unlabeled.events = None
    return [whole, blind, uncalibrated, unlabeled]


@pytest.fixture(scope="module")
def latents(pipe, episodes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("incomplete")
    write_episodes(folder / "episodes", [episode.to_row() for episode in episodes])
    dataset = load_episodes(folder / "episodes")
    processor, codec = fit_processor(pipe.processor, dataset), VideoCodec(pipe.vae)
    assert processor.cameras == pipe.processor.cameras and processor.action_dim == 16
    lacks = missing(dataset, processor)
    assert lacks == [
        {},
        {"missing_views": ["left_camera"], "missing_maps": ["left_camera"]},
        {"missing_maps": ["right_camera"]},
        {"missing_maps": ["head_camera", "left_camera", "right_camera"]},
    ]
    settings = made_from(pipe.model.config, processor, codec, "text encoder", 16, fps=12.5, shard_size=4)
    (shard,) = plan_shards(folder, described(dataset, processor), settings)
    shard.write(
        encode_episode(episode, codec, processor, 8, 1) | {"prompt_embeds": torch.zeros(2, 16).half()}
        for episode in episodes
    )
    write_index(folder, [shard], processor, torch.ones(1, 16).half())
    return folder


def test_a_disk_that_is_full_at_the_processor_is_told(latents, pipe, tmp_path):
    """Its tokenizer raises a plain `Exception` for it, which was a traceback after hours of encoding."""
    dataset = load_episodes(latents / "episodes")
    settings = json.loads((latents / "index.json").read_text())["made_from"]
    (tmp_path / "shard-00000.safetensors").symlink_to(latents / "shard-00000.safetensors")
    shards = plan_shards(tmp_path, described(dataset, pipe.processor), settings)
    processor = fit_processor(pipe.processor, dataset)
    with full_disk(), pytest.raises(OSError, match=f"{tmp_path}/processor could not be written .File too large"):
        write_index(tmp_path, shards, processor, torch.ones(1, 16).half())
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.safetensors"]


def windows_of(latents, pipe) -> LatentWindows:
    return LatentWindows(latents, pipe.model.config, window_chunks=2, first_only=True)


def test_what_is_missing_is_told_of_the_rows_in_a_datasets_order(latents, pipe):
    """A dataset that was shuffled or filtered lists rows of a table that stays as it was."""
    dataset = load_episodes(latents / "episodes")
    whole, blind, _, unlabeled = missing(dataset, pipe.processor)
    assert missing(dataset.select([3, 1, 0]), pipe.processor) == [unlabeled, blind, whole]


def test_what_is_missing_has_no_weight(latents, pipe):
    """The canvas has 3 x 2 cells: two rows of the head camera, and one cell for each wrist."""
    items = [windows_of(latents, pipe)[index] for index in range(4)]
    left_out = torch.tensor([[1.0, 1], [1, 1], [0, 1]]).expand(2, 3, 2)
    right_out = torch.tensor([[1.0, 1], [1, 1], [1, 0]]).expand(2, 3, 2)
    for item, rgb, value in zip(
        items, (1, left_out, 1, 1), (torch.ones(2, 3, 2), left_out, right_out, torch.zeros(2, 3, 2)), strict=True
    ):
        assert torch.equal(item["rgb_weights"], torch.ones(2, 3, 2) * rgb)
        assert torch.equal(item["value_mask"], value)
        assert (item["value_cells"][value == 0] == 0).all(), "a black map"


def test_complete_episodes_carry_no_masks(latents, pipe, tmp_path):
    for file in latents.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "index.json").unlink()
    index = json.loads((latents / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | {"episodes": index["episodes"][:1]}))
    assert not {"rgb_weights", "value_mask"} & set(windows_of(tmp_path, pipe)[0])


def test_a_row_is_known_by_all_that_it_holds(episodes, tmp_path):
    """Wherever it lies; and not after anything in it was changed."""
    rows = [episode.to_row() for episode in episodes]
    write_episodes(tmp_path / "all", rows)
    digests = list(row_digests(load_episodes(tmp_path / "all")))
    assert len(set(digests)) == 4
    write_episodes(tmp_path / "some", [rows[1], rows[3]])
    assert list(row_digests(load_episodes(tmp_path / "some"))) == digests[1::2]
    video = bytearray(rows[0]["rgb_head_camera"]["bytes"])
    video[-1] ^= 1
    state = rows[0]["state"].copy()
    state[-1, -1] += 1e-6
    for name, value in (
        ("rgb_head_camera", {"bytes": bytes(video), "path": None}),
        ("state", state),
        ("action", rows[0]["action"][:, ::-1]),
        ("instruction", "ring the bells"),
        ("events", None),
    ):
        write_episodes(tmp_path / name, [rows[0] | {name: value}])
        assert list(row_digests(load_episodes(tmp_path / name))) != digests[:1], name


def losses(latents, pipe, tmp_path, change) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a batch of all episodes after `change`, and its gradient in a layer of the video stream."""
    windows = windows_of(latents, pipe)
    batch = torch.utils.data.default_collate([windows[index] for index in range(4)])
    change(batch)
    torch.manual_seed(0)
    model = AIMForWorldAction(pipe.model.config)
    model.load_state_dict(pipe.model.state_dict())
    args = AIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", sample_steps=0)
    trainer = AIMTrainer(model=model, args=args, train_dataset=windows)
    torch.manual_seed(1)
    loss = trainer.compute_loss(model.train(), batch)
    loss.backward()
    return loss.detach(), model.blocks[0].attn1.to_q.weight.grad.clone()


def test_maps_that_nobody_knows_leave_no_trace(latents, pipe, tmp_path):
    """Neither loss nor gradient depends on them: not through the loss of the maps, nor through the action head."""
    expected = losses(latents, pipe, tmp_path, lambda batch: None)
    assert torch.isfinite(expected[0])

    def change_unknown(batch):
        unknown = (batch["value_mask"] == 0)[:, None].expand_as(batch["value_latents"])
        batch["value_latents"][unknown] += 7

    for got, want in zip(losses(latents, pipe, tmp_path, change_unknown), expected):
        assert torch.equal(got, want)

    def change_known(batch):
        batch["value_latents"][0] += 7

    assert not torch.equal(losses(latents, pipe, tmp_path, change_known)[0], expected[0])


def test_the_loss_of_a_view_that_is_missing_is_not_counted(latents, pipe):
    windows = windows_of(latents, pipe)
    item = {name: tensor[None] for name, tensor in windows[1].items()}
    item.pop("value_mask")
    item = weigh_values(item, foreground_weight=10.0)
    noise = [torch.randn(1, 1, 4, 2, 3, 2) for _ in range(2)] + [torch.randn(1, 1, 16, 16)]
    with torch.no_grad():
        out = FlowMatchingLoss(pipe.model.config)(pipe.model, **item, noise=tuple(noise))
    error = (out.rgb_velocity - (noise[0] - item["latents"][:, None, :, 1:])).square().mean(dim=2)
    seen = item["rgb_weights"][:, None].expand_as(error) > 0
    torch.testing.assert_close(out.rgb_loss, error[seen].mean())
    assert not torch.isclose(out.rgb_loss, error.mean())


def test_samples_from_the_true_map_are_measured_where_there_is_one(latents, pipe, tmp_path):
    args = AIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = AIMTrainer(model=copy.deepcopy(pipe.model), args=args, train_dataset=windows_of(latents, pipe))
    trainer.begin()
    held_out = LatentWindows(latents, pipe.model.config, window_chunks=1, first_only=True)
    callback = SampleCallback(trainer, held_out, VideoCodec(pipe.vae), tmp_path)
    metrics = callback.sample(1)
    batch = callback.batch
    sampled = sample_first_chunk(trainer.model, batch, args.sampling_config, torch.Generator().manual_seed(0))
    horizon = pipe.model.config.action_horizon
    for name, kind, rows in (("", "actions", 4), ("_true_map", "actions_from_true_map", 3)):
        error = (sampled[kind] - batch["actions"][:, :horizon])[:rows].abs().mean().item()
        assert metrics[f"sample_action_error{name}"] == pytest.approx(error, rel=1e-4), name
    callback.folder = tmp_path / "step-0000001.png"  # the picture, which is no folder
    with pytest.raises(OSError, match="step-0000002.png could not be written .*Make room"):
        callback.sample(2)


def test_the_vae_sees_black_where_something_is_missing(pipe, episodes):
    rows = [episode.to_row() for episode in episodes]
    _, blind, _, unlabeled = canvas_episodes(rows, pipe.processor)
    assert blind.rgb[:, 32:, :16].max() == 0 and blind.rgb[:, 32:, 16:].max() > 100
    assert unlabeled.value.max() == 0 and unlabeled.rgb.shape[1:] == (48, 32, 3)


def test_a_processor_is_fitted_to_the_robot(pipe, tmp_path):
    """One camera, seven joints: the other slots stay empty, and the robot needs no camera for them."""
    robot = Robot({"head_camera": "observation.images.top"}, "qpos")
    write_episodes(tmp_path, [imported_row(LeRobotSource(FIXTURE), robot, 0, "train")])
    processor = fit_processor(pipe.processor, load_episodes(tmp_path))
    assert processor.cameras == {"head_camera": {"size": [64, 96], "slot": [0, 0, *HEAD]}}
    assert (processor.action_space, processor.action_dim) == ("qpos", 7)
    canvas = processor.pack_canvas({"head_camera": np.full((64, 96, 3), 200, np.uint8)})
    assert (canvas[: HEAD[0]] == 200).all() and (canvas[HEAD[0] :] == 0).all() and canvas.shape[0] == 48
    assert pipe.processor.cameras["left_camera"]["size"] == list(WRIST), "the other processor is as it was"


def test_from_lerobot_files_to_a_fine_tuned_policy(pipe, tmp_path, monkeypatch):
    """One arm with seven joints and one camera, on a model that was trained on two arms with sixteen numbers."""
    robot = Robot({"head_camera": "observation.images.top"}, "qpos", action=[Columns("action", 0, 7)])
    source = LeRobotSource(FIXTURE)
    write_episodes(
        tmp_path / "episodes", [imported_row(source, robot, index, "train") for index in range(source.num_episodes)]
    )
    pipe.save_pretrained(tmp_path / "policy")
    data = {"dataset": tmp_path / "episodes", "policy": tmp_path / "policy", "output_dir": tmp_path / "latents"}
    run(["encode-latents", *(part for name, value in data.items() for part in (f"--{name}", str(value)))])
    training = {
        "latents": tmp_path / "latents",
        "policy": tmp_path / "policy",
        "output_dir": tmp_path / "run",
        "window_chunks": 2,
        "held_out": 1,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "sample_steps": 2,
        "report_to": "none",
    }
    run(["train", "--use_cpu", *(part for name, value in training.items() for part in (f"--{name}", str(value)))])
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    logs = [log for log in record["log_history"] if "loss" in log]
    assert len(logs) == 2 and all(np.isfinite(log["loss"]) and log["value_loss"] == 0 for log in logs)
    assert "sample_action_error" in logs[1] and "sample_peak_error" not in logs[1]
    trained = AIMPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert trained.model.config.action_dim == 7 and trained.processor.action_space == "qpos"
    assert isinstance(trained.processor, AIMProcessor) and len(trained.processor.action_statistics["q01"]) == 7
    kept = trained.model.blocks[0].attn1.to_q.weight - pipe.model.blocks[0].attn1.to_q.weight
    assert kept.abs().max() < 1e-2, "it began with the weights of the other model"

"""Latents and the stage 1 trainer, on real small components."""

import copy
import json
import resource
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from aim_hf import AIMConfig, AIMForWorldAction
from aim_hf.data.episodes import Episode
from aim_hf.data.latent_windows import LatentWindows, held_out_count
from aim_hf.data.latents import (
    begin_encoding,
    encode_episode,
    made_from,
    plan_shards,
    write_index,
)
from aim_hf.model.checkpoint import fingerprint
from aim_hf.pipeline.codec import VideoCodec
from aim_hf.pipeline.sampling import denoise_world, new_schedulers
from aim_hf.pipeline.sampling_config import SamplingConfig
from aim_hf.training.arguments import AIMTrainingArguments
from aim_hf.training.checkpoints import last_checkpoint
from aim_hf.training.flow_matching import FlowMatchingLoss, weigh_values
from aim_hf.training.lora import with_lora
from aim_hf.training.trainer import EMA_FILE, AIMTrainer
from aim_hf.utils.files import UnreadableFile, written_folder
from aim_hf.utils.versions import ACTIVATION_CHECKPOINTING
from aim_hf.value_maps.render import Event

from ..fixtures_pipeline import HEAD, WRIST, make_pipeline, make_pose
from .fixtures_worker import has_no_diffusers

SIZES = {"head_camera": HEAD, "left_camera": WRIST, "right_camera": WRIST}


def make_episode(seed: int, steps: int = 19) -> Episode:
    rng = np.random.default_rng(seed)
    frames = steps + 1
    poses = np.stack([make_pose(rng) for _ in range(frames)]).astype(np.float32)
    camera = np.array([[30.0, 0, 16], [0, 30, 16], [0, 0, 1]], dtype=np.float32)
    extrinsics = np.concatenate([np.eye(3), np.zeros((3, 1))], axis=1).astype(np.float32)
    pose = np.tile(np.array([0, 0, 0.6, 1, 0, 0, 0], dtype=np.float32), (frames, 1))
    event = Event("press", "left", steps - 3, "bell", np.zeros((1, 3), np.float32), pose)
    return Episode(
        suite="tabletop",
        task="click_bell",
        split="easy",
        seed=seed,
        instruction="ring the bell",
        success=True,
        fps=12.5,
        action_space="ee",
        rgb={name: rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8) for name, size in SIZES.items()},
        intrinsics={name: np.tile(camera, (frames, 1, 1)) for name in SIZES},
        extrinsics={name: np.tile(extrinsics, (frames, 1, 1)) for name in SIZES},
        state=poses,
        action=poses[1:] * np.float32(1),
        expert_action=np.stack([make_pose(rng) for _ in range(steps)]).astype(np.float32),
        events=[event],
    )


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def write_latents(folder: Path, pipe, episodes: list[Episode]) -> Path:
    codec, config, processor = VideoCodec(pipe.vae), pipe.model.config, pipe.processor
    entries = [{"task": e.task, "instruction": e.instruction, "seed": e.seed, "row": str(e.seed)} for e in episodes]
    with tempfile.TemporaryDirectory() as temporary:
        pipe.text_encoder.save_pretrained(temporary)
        text_encoder = fingerprint(Path(temporary))
    settings = made_from(config, processor, codec, text_encoder, text_dim=16, fps=12.5, shard_size=4)
    shards = plan_shards(folder, entries, settings)

    def encoded(episode):
        tensors = encode_episode(
            episode, codec, processor, config.actions_per_latent_frame, config.chunk_latent_frames
        )
        return tensors | {"prompt_embeds": pipe.encode_prompt(episode.instruction)[0, :4].half()}

    begin_encoding(folder, shards)
    for index, shard in enumerate(shards):
        assert shard.unfinished() == "not there yet"
        shard.write(encoded(episode) for episode in episodes[4 * index : 4 * index + 4])
        assert shard.unfinished() is None
    changed_rows = [{**entry, "row": "another"} for entry in entries]
    for other in (plan_shards(folder, entries, settings | {"fps": 1}), plan_shards(folder, changed_rows, settings)):
        assert other[0].unfinished() == "made from other episodes"
    write_index(folder, shards, processor, torch.ones(1, 16).half())
    return folder


@pytest.fixture(scope="module")
def latents(pipe, tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("latents"), pipe, [make_episode(seed) for seed in range(6)])


@pytest.fixture(scope="module")
def mixed(pipe, tmp_path_factory):
    """Latents of episodes of 4, 2 and 3 chunks; each ends with one of standing still."""
    episodes = [make_episode(seed, steps) for seed, steps in enumerate((19, 7, 16))]
    return write_latents(tmp_path_factory.mktemp("mixed"), pipe, episodes)


def test_an_episode_is_encoded_as_a_rollout_would(pipe):
    """Frames, value maps and actions of a chunk are those that a session appends and predicts."""
    episode, codec, processor = make_episode(0), VideoCodec(pipe.vae), pipe.processor
    tensors = encode_episode(episode, codec, processor, 8, 1)
    assert tensors["latents"].shape[1] == 1 + 4 and tensors["value_latents"].shape[1] == 4
    state, picked = codec.encoder_state(), []
    for frames in ([0], [2, 4, 6, 8], [10, 12, 14, 16], [18, 19, 19, 19], [19] * 4):
        canvas = processor.pack_canvas({name: rgb[frames] for name, rgb in episode.rgb.items()})
        picked.append(codec.encode(processor.canvas_to_pixels(canvas[None]), state)[0])
    torch.testing.assert_close(tensors["latents"].float(), torch.cat(picked, 1), rtol=2e-3, atol=2e-3)
    # The map shows the press up to the frame where it happens, then nothing.
    cells = tensors["value_cells"].amax(dim=(1, 2))
    assert cells[1] > 0.8 and cells[2] == 0
    last = processor.relative_actions(torch.tensor(episode.action[-1:]), torch.tensor(episode.state[0]))
    torch.testing.assert_close(tensors["executed_actions"][-13:], last.expand(13, -1).float(), rtol=0, atol=1e-5)


def test_windows_are_slices_of_the_episode(pipe, latents):
    windows = LatentWindows(latents, pipe.model.config, window_chunks=2)
    assert len(windows) == 6 * 3
    first, second = windows[0], windows[1]
    assert first["latents"].shape == (4, 3, 3, 2) and first["actions"].shape == (16, 16)
    torch.testing.assert_close(first["latents"][:, 1:], second["latents"][:, :-1])
    torch.testing.assert_close(first["actions"][8:], second["actions"][:8])
    assert (first["prompt_embeds"][4:] == 0).all() and first["prompt_embeds"].shape[0] == 8
    low, high = (np.quantile(torch.cat([windows[i]["actions"] for i in (0, 1)]), q) for q in (0.02, 0.98))
    assert -1.5 < low < -0.3 and 0.3 < high < 1.5
    assert windows.summary() == "training on 6 of 6 episodes (0 held out)"


def changed(config: AIMConfig, **fields) -> AIMConfig:
    return AIMConfig(**{**config.to_diff_dict(), **fields})


def test_windows_look_ahead(pipe, latents):
    """Actions go on for the lookahead; beyond the episode's end the robot stands still."""
    ahead = changed(pipe.model.config, action_lookahead_frames=1)
    windows, plain = (LatentWindows(latents, config, window_chunks=2) for config in (ahead, pipe.model.config))
    assert len(windows) == len(plain)
    for item in range(3):
        longer, shorter = windows[item], plain[item]
        assert longer["actions"].shape == (24, 16)
        assert torch.equal(longer["actions"][:16], shorter["actions"])
        assert torch.equal(longer["executed_actions"], shorter["executed_actions"])
    assert torch.equal(windows[0]["actions"][16:], plain[1]["actions"][8:])
    assert torch.equal(windows[2]["actions"][16:], plain[2]["actions"][-1:].expand(8, -1))


def test_held_out_episodes_are_not_trained_on(pipe, latents):
    config = pipe.model.config
    train = LatentWindows(latents, config, window_chunks=2, held_out=2)
    rest = LatentWindows(latents, config, window_chunks=2, held_out=2, only_held_out=True)
    seeds = [{entry["seed"] for entry in part.entries} for part in (train, rest)]
    assert len(seeds[0]) == 4 and len(seeds[1]) == 2 and not seeds[0] & seeds[1]
    assert train.summary() == "training on 4 of 6 episodes (2 held out)"
    assert len(LatentWindows(latents, config, 2, held_out=0, only_held_out=True)) == 0
    assert len(LatentWindows(latents, config, 2, held_out=5)) == 3
    for count, expected in (
        (6, "0 to 5, for there are 6 episodes"),
        *((count, "a whole number, at least 0") for count in (-1, 1.5, 2.0, True, "2")),
    ):
        with pytest.raises(ValueError, match=f"held_out is {count!r}; expected {expected}"):
            LatentWindows(latents, config, 2, held_out=count)


def test_windows_of_tasks_that_have_few_are_repeated(pipe, latents, tmp_path):
    """With a fifth of the windows of the largest task, a task has each of them twice."""
    folder = shutil.copytree(latents, tmp_path / "latents")
    index = json.loads((folder / "index.json").read_text())
    index["episodes"][-1]["task"] = "another"
    (folder / "index.json").write_text(json.dumps(index))
    plain, balanced = (LatentWindows(folder, pipe.model.config, 2, balance_tasks=on) for on in (False, True))
    windows = [Counter(places) for places in (plain._places, balanced._places)]
    assert windows[0].keys() == windows[1].keys() and set(windows[0].values()) == {1}
    assert all(times == 1 + (place[0] == 5) for place, times in windows[1].items())
    few = sum(place[0] == 5 for place in windows[0])
    assert 2.25 <= len(plain) / few - 1 < 6.25 and len(balanced) == len(plain) + few


def test_the_share_held_out_is_bounded():
    assert [held_out_count(count, None) for count in (1, 2, 19, 50, 960, 30_000)] == [0, 1, 1, 2, 48, 48]
    assert held_out_count(1, 0) == 0


def test_short_episodes_count_as_far_as_they_go(pipe, mixed):
    """Windows of three chunks from episodes of four, three and two: padding beyond the end of the last one affects
    neither loss nor gradient, which are those of its own two chunks."""
    windows = LatentWindows(mixed, pipe.model.config, window_chunks=3)
    assert len(windows) == 2 + 1 + 1
    assert windows.summary() == (
        "training on 3 of 3 episodes (0 held out); 1 are shorter than 3 chunks; their padding is masked"
    )
    whole, short = windows[0], windows[2]
    assert {name: tensor.shape for name, tensor in whole.items()} == {name: t.shape for name, t in short.items()}
    for name in ("rgb_weights", "value_mask", "action_mask"):
        assert whole[name].all()
        assert short[name][: len(short[name]) * 2 // 3].all() and not short[name][len(short[name]) * 2 // 3 :].any()

    def gradient(beyond: float = 0.0, chunks: int = 3):
        """With other numbers beyond the end, or cut off where the episode ends."""
        lengths = {"latents": 1 + chunks, "actions": 8 * chunks, "executed_actions": 8 * chunks}
        lengths |= {"value_latents": chunks, "rgb_weights": chunks, "value_mask": chunks, "action_mask": 8 * chunks}
        batch = {}
        for name, length in lengths.items():
            axis = 1 if name.endswith("latents") else 0
            batch[name] = short[name].narrow(axis, 0, length).clone()[None]
            end = lengths[name] - (chunks - 2) * (8 if "action" in name else 1)
            if name.endswith(("latents", "actions")):
                batch[name].narrow(axis + 1, end, length - end).add_(beyond)
        generator = torch.Generator().manual_seed(0)
        world, actions = (torch.randn(shape, generator=generator) for shape in ((1, 1, 4, 3, 3, 2), (1, 1, 24, 16)))
        pipe.model.zero_grad()
        loss = FlowMatchingLoss(pipe.model.config)(
            pipe.model,
            **{("value_weights" if name == "value_mask" else name): tensor for name, tensor in batch.items()},
            prompt_embeds=short["prompt_embeds"][None],
            noise=(world[:, :, :, :chunks], world[:, :, :, :chunks], actions[:, :, : 8 * chunks]),
            timesteps=(torch.tensor([[[0.3, 0.6, 0.9][:chunks]]]),) * 2,
        ).loss
        loss.backward()
        return loss.detach(), pipe.model.blocks[0].attn1.to_q.weight.grad.clone()

    for got in (gradient(beyond=5), gradient(chunks=2)):
        for a, b in zip(got, gradient()):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    pipe.model.zero_grad()


def test_short_episodes_are_trained_on(pipe, mixed, tmp_path):
    trainer = train(pipe, mixed, tmp_path, 2, window_chunks=9)
    assert trainer.train_dataset.window_chunks == 4 and len(trainer.train_dataset) == 3
    assert all(np.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"actions_per_latent_frame": 4}, "have actions_per_latent_frame=8, and the model actions_per_latent_frame=4"),
        ({"chunk_latent_frames": 2, "action_dim": 14}, "have chunk_latent_frames=1, action_dim=16, and the model"),
        ({"in_channels": 8}, "have in_channels=4"),
        ({"text_dim": 64}, "have text_dim=16"),
    ],
)
def test_latents_of_another_geometry_are_refused(pipe, latents, fields, message):
    with pytest.raises(ValueError, match=message):
        LatentWindows(latents, changed(pipe.model.config, **fields), window_chunks=2)


def test_unfinished_old_or_damaged_latents_are_named(pipe, latents, tmp_path):
    config = pipe.model.config
    with pytest.raises(OSError, match="index.json is missing; run `aim-hf encode-latents`"):
        LatentWindows(tmp_path, config, window_chunks=2)
    for file in ("index.json", "shard-00001.safetensors"):
        (tmp_path / file).write_bytes((latents / file).read_bytes())
    (tmp_path / "shard-00000.safetensors").write_bytes((latents / "shard-00000.safetensors").read_bytes()[:100])
    (tmp_path / "processor").symlink_to(latents / "processor")
    with pytest.raises(OSError, match="shard-00000.safetensors can't be read"):
        LatentWindows(tmp_path, config, window_chunks=2)
    index = json.loads((latents / "index.json").read_text())
    for content, message in (
        (index["episodes"], "holds a JSON list, expected a dict.*older version"),  # as it was before
        ({"made_from": {}, "episodes": index["episodes"]}, "has no 'chunk_latent_frames'"),
        ({"made_from": index["made_from"], "episodes": []}, "index.json can't be read"),
        ({"made_from": index["made_from"], "episodes": [{"shard": 0, "key": "0", "chunks": 3}]}, "index.json can't"),
        ({"made_from": index["made_from"], "episodes": [{"chunks": 3}]}, r"index.json can't be read \(has no 'shard'"),
    ):
        (tmp_path / "index.json").write_text(json.dumps(content))
        with pytest.raises(OSError, match=message):
            LatentWindows(tmp_path, config, window_chunks=2)
    with pytest.raises(ValueError, match="window_chunks is 0"):
        LatentWindows(latents, config, window_chunks=0)


def copy_with(latents: Path, folder: Path, change) -> Path:
    """Fills `folder` with the latents; `change` changes the tensors of the second shard, whose path is returned."""
    for file in latents.iterdir():
        (folder / file.name).symlink_to(file)
    shard = folder / "shard-00001.safetensors"
    with safe_open(shard, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    change(tensors)
    shard.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, shard, metadata=metadata)
    return shard


ENTRIES = ("latents", "value_latents", "value_cells", "actions", "executed_actions", "prompt_embeds")


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_that_a_shard_lacks_is_told(pipe, latents, tmp_path, name):
    shard = copy_with(latents, tmp_path, lambda tensors: tensors.pop(f"1.{name}"))
    with pytest.raises(UnreadableFile, match=rf"{shard} can't be read \(.*1\.{name}\b.*\); delete it and run `aim-hf"):
        LatentWindows(tmp_path, pipe.model.config, window_chunks=2)


@pytest.mark.parametrize(
    ("name", "axis", "length", "shapes"),
    [
        ("latents", 0, 2, r"\[2, 5, 3, 2\]; expected \[4, 5, 3, 2\]"),
        ("latents", 2, 2, r"\[4, 5, 2, 2\]; expected \[4, 5, 3, 2\]"),
        ("latents", 1, 4, r"\[4, 4, 3, 2\]; expected \[4, 5, 3, 2\]"),
        ("value_latents", 3, 1, r"\[4, 4, 3, 1\]; expected \[4, 4, 3, 2\]"),
        ("value_cells", 1, 2, r"\[4, 2, 2\]; expected \[4, 3, 2\]"),
        ("actions", 1, 3, r"\[32, 3\]; expected \[32, 16\]"),
        ("executed_actions", 1, 3, r"\[32, 3\]; expected \[32, 16\]"),
        ("prompt_embeds", 1, 8, r"\[4, 8\]; expected \[1 to \d+, 16\]"),
        ("prompt_embeds", 0, 0, r"\[0, 16\]; expected \[1 to \d+, 16\]"),
    ],
)
def test_a_tensor_of_another_shape_is_told(pipe, latents, tmp_path, name, axis, length, shapes):
    def cut(tensors):
        tensors[f"1.{name}"] = tensors[f"1.{name}"].narrow(axis, 0, length)

    shard = copy_with(latents, tmp_path, cut)
    message = rf"{shard} can't be read \(1\.{name} has shape {shapes}, by index.json\); delete it and run `aim-hf"
    with pytest.raises(UnreadableFile, match=message):
        LatentWindows(tmp_path, pipe.model.config, window_chunks=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_statistics": None}, "processor_config.json has no action_statistics; .*Run `aim-hf encode-latents`"),
        ({"action_statistics": {"q01": [None] * 16, "q99": [1.0] * 16}}, r" can't be read .*\['q01'\] is"),
        ({"max_text_length": 7}, r"processor_config.json has max_text_length 7; expected \d+, by index.json. Run"),
        ({"canvas_size": [960, 640]}, r"processor_config.json has canvas_size \[960, 640\]; expected \[48, 32\]"),
    ],
)
def test_a_processor_of_other_latents_is_told(pipe, latents, tmp_path, changes, message):
    for file in latents.iterdir():
        if file.name != "processor":
            (tmp_path / file.name).symlink_to(file)
    shutil.copytree(latents / "processor", tmp_path / "processor")
    path = tmp_path / "processor" / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UnreadableFile, match=f"{tmp_path / 'processor'}.*{message}"):
        LatentWindows(tmp_path, pipe.model.config, window_chunks=2)


@pytest.mark.parametrize("name", ["latents", "value_cells", "actions", "prompt_embeds"])
def test_values_that_are_not_finite_are_told_with_their_shard(pipe, latents, tmp_path, name):
    def spoil(tensors):
        tensors[f"1.{name}"].view(-1)[-1] = float("nan") if name == "latents" else float("inf")

    shard = copy_with(latents, tmp_path, spoil)
    message = f"{shard}: 1.{name} of click_bell seed 5 has values that aren't finite; delete it and run `aim-hf encode"
    windows = LatentWindows(tmp_path, pipe.model.config, window_chunks=2)
    broken = set()
    for item in range(len(windows)):
        try:
            windows[item]
        except UnreadableFile as error:
            assert str(error).startswith(message)
            broken.add(windows._places[item][0])
    assert broken == {5}, "only the windows that read it"
    with pytest.raises(UnreadableFile, match="has values that aren't finite"):
        train(pipe, tmp_path, tmp_path / "run", 10, window_chunks=4)


def test_values_that_are_not_finite_are_not_written(pipe, tmp_path):
    settings = made_from(pipe.model.config, pipe.processor, VideoCodec(pipe.vae), "text encoder", 16, 12.5, 4)
    (shard,) = plan_shards(tmp_path, [{"task": "click_bell", "seed": 3}], settings)
    with pytest.raises(ValueError, match="^latents of .*'click_bell', 'seed': 3.* aren't finite"):
        shard.write([{"latents": torch.tensor([1e6]).half(), "actions": torch.zeros(1)}])
    assert not list(tmp_path.iterdir())


def test_a_folder_of_latents_has_one_way_of_making(pipe, latents, tmp_path):
    """Other settings are refused. Shards of changed episodes are made again; until then the folder isn't finished."""
    for file in latents.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index = json.loads((tmp_path / "index.json").read_text())
    keys = ("task", "instruction", "seed", "row")
    entries = [{key: entry[key] for key in keys} for entry in index["episodes"]]
    for name, value in (("fps", 10.0), ("actions_per_latent_frame", 4), ("canvas_size", [96, 96]), ("shard_size", 3)):
        with pytest.raises(FileExistsError, match=f"made from something else: {name} "):
            begin_encoding(tmp_path, plan_shards(tmp_path, entries, index["made_from"] | {name: value}))
    assert (tmp_path / "index.json").exists()

    entries[5]["row"] = "what it holds was changed"
    (tmp_path / "shard-00000.safetensors").write_bytes(b"cut")
    shards = plan_shards(tmp_path, entries, index["made_from"])
    assert begin_encoding(tmp_path, shards) == "encoding 2 of 2 files: 1 damaged, 1 made from other episodes"
    assert not (tmp_path / "index.json").exists()


def test_what_cannot_be_written_is_named(pipe, latents, tmp_path):
    (tmp_path / "file").write_text("")
    settings = made_from(pipe.model.config, pipe.processor, VideoCodec(pipe.vae), "text encoder", 16, 12.5, 4)
    (shard,) = plan_shards(tmp_path / "file", [{"seed": 0}], settings)
    for write in (
        lambda: begin_encoding(shard.path.parent, [shard]),
        lambda: shard.write([{"latents": torch.zeros(1)}]),
    ):
        with pytest.raises(OSError, match=f"{tmp_path}/file/.* could not be written .*choose a folder"):
            write()
    # A disk without room, as far as this process can tell.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(OSError, match="shard.safetensors could not be written .*File too large.*Make room"):
            replace(shard, path=tmp_path / "shard.safetensors").write([{"latents": torch.zeros(1 << 16)}])
        with (
            pytest.raises(OSError, match="folder could not be written"),
            written_folder(tmp_path / "folder") as folder,
        ):
            save_file({"weights": torch.zeros(1 << 16)}, folder / "model.safetensors")
        with pytest.raises(OSError, match="checkpoint-1 could not be written .*Make room"):
            train(pipe, latents, tmp_path / "run", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "run"}


def test_the_codec_of_the_latents_is_told_from_others(pipe, latents):
    """By its encoder and statistics: the decoder may still be in training."""
    windows, vae = LatentWindows(latents, pipe.model.config, window_chunks=2), copy.deepcopy(pipe.vae)
    with torch.no_grad():
        vae.decoder.conv_in.weight.add_(1)
        windows.check_codec(VideoCodec(vae))
        vae.encoder.conv_out.bias[0] += 1e-3
    with pytest.raises(ValueError, match="made by another video codec"):
        windows.check_codec(VideoCodec(vae))
    vae = copy.deepcopy(pipe.vae)
    vae.register_to_config(latents_mean=[0.0] * 4)
    with pytest.raises(ValueError, match="made by another video codec"):
        windows.check_codec(VideoCodec(vae))


def test_workers_read_latents_however_they_are_started(pipe, latents):
    windows = LatentWindows(latents, pipe.model.config, window_chunks=2)
    windows[0]  # an open file must not travel to the workers
    for method in ("spawn", "forkserver"):
        options = {"multiprocessing_context": method, "worker_init_fn": has_no_diffusers}  # which it needs seconds for
        loader = DataLoader(windows, batch_size=9, num_workers=1, **options)
        for batch, first in zip(loader, (0, 9), strict=True):
            assert torch.equal(batch["latents"], torch.stack([windows[first + i]["latents"] for i in range(9)]))


def new_model(config):
    torch.manual_seed(0)
    model = AIMForWorldAction(config)
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)  # new ones are silent, and LoRA leaves them so
    return model


def test_checkpoint_that_a_kill_left_half_written_is_passed_over(pipe, latents, tmp_path, monkeypatch):
    assert last_checkpoint(tmp_path / "run") is None
    train(pipe, latents, tmp_path / "run", 4)

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(AIMTrainer, "_save_scaler", kill)
    with pytest.raises(KeyboardInterrupt):
        train(pipe, latents, tmp_path / "run", 8, resume=last_checkpoint(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoint-8" / "optimizer.pt").exists()
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-4")


def train(
    pipe,
    latents,
    folder,
    max_steps,
    resume=None,
    config=None,
    lora_rank=None,
    window_chunks=2,
    save_steps=None,
    **options,
):
    model = new_model(config or pipe.model.config)
    if lora_rank:
        model = with_lora(model, lora_rank, frozen_dtype=torch.bfloat16 if options.get("bf16") else None)
    args = AIMTrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=save_steps or min(4, max_steps),
        num_draws=2,
        num_action_draws=3,
        sample_steps=0,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        **options,
    )
    trainer = AIMTrainer(model=model, args=args, train_dataset=LatentWindows(latents, model.config, window_chunks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("options, same", [({}, True), ({"seed": 1}, False), ({"data_seed": 1}, False)])
def test_processes_shuffle_alike(pipe, latents, tmp_path, options, same):
    """Each draws noise by a seed of its own, and takes its share of one order: a window comes once in an epoch."""
    orders = []
    for given in ({}, options):
        trainer = train(pipe, latents, tmp_path, 1, **given)
        for process in range(2):
            torch.manual_seed(trainer.args.seed + process)
            batches = trainer.get_train_dataloader().batch_sampler
            orders.append([index for batch in batches for index in batch])
    assert orders[0] == orders[1] and orders[2] == orders[3] and (orders[0] == orders[2]) == same
    assert orders[0] != sorted(orders[0]) == list(range(len(trainer.train_dataset)))


AUGMENTED = {"prompt_dropout": 0.5, "history_noise_probability": 0.5}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"muon_learning_rate": 0.02},
        AUGMENTED,
        {"lora_rank": 2},
        {"lora_rank": 2, ACTIVATION_CHECKPOINTING: True},
        {"lora_rank": 2, "bf16": True},
    ],
    ids=["adamw", "muon", "augmented", "lora", "lora checkpointed", "lora bfloat16"],
)
def test_resumed_training_is_the_uninterrupted_one(pipe, latents, tmp_path, options):
    whole = train(pipe, latents, tmp_path / "whole", 8, **options)
    before = str(tmp_path / "whole" / "checkpoint-4")
    resumed = train(pipe, latents, tmp_path / "resumed", 8, resume=before, **options)
    losses = [[log for log in t.state.log_history if "loss" in log] for t in (whole, resumed)]
    assert len(losses[0]) == len(losses[1]) == 8
    for a, b in zip(*losses):
        for name in ("loss", "rgb_loss", "value_loss", "action_loss"):
            assert a[name] == b[name], (a["step"], name)
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters()):
        assert torch.equal(a, b), name
    for a, b in zip(whole.ema.shadow_params, resumed.ema.shadow_params):
        assert torch.equal(a, b)
    folder = tmp_path / "resumed" / "checkpoint-8"
    assert (folder / EMA_FILE).exists()
    finished = train(pipe, latents, tmp_path / "resumed", 8, resume=True, **options)
    assert finished.state.global_step == 8, "not a step more"
    for a, b in zip(whole.ema.shadow_params, finished.ema.shadow_params):
        assert torch.equal(a, b)
    if "lora_rank" in options:
        return
    loaded = AIMForWorldAction.from_pretrained(folder)
    assert torch.equal(loaded.value_noise_token.weight, resumed.model.value_noise_token.weight)


def test_lora_trains_adapters_and_the_action_head(pipe, latents, tmp_path):
    """The video stream's own weights stay; what is saved gives the same model again, by PEFT's own means."""
    base = new_model(pipe.model.config)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    trainer = train(pipe, latents, tmp_path, 3, lora_rank=2)
    with pytest.raises(
        ValueError, match="LoRA adapters, of which each process would hold, and save, a part under FSDP"
    ):
        trainer._set_up_fsdp()
    names = set(trainer._trained())
    assert all("lora" in name or "action" in name or "value_noise_token" in name for name in names)
    model = trainer.model.eval()
    changed = {name for name, tensor in model.get_base_model().state_dict().items() if "base_layer" in name}
    assert changed
    for name in changed:
        original = name.replace(".base_layer", "")
        assert torch.equal(model.get_base_model().state_dict()[name], before[original]), name

    batch = torch.utils.data.default_collate([trainer.train_dataset[i] for i in range(2)])
    batch = weigh_values(batch, foreground_weight=10.0)

    def velocities(model):
        out = trainer.objective(model, **batch, generator=torch.Generator().manual_seed(1))
        return out.rgb_velocity, out.value_velocity, out.action_velocity

    with torch.no_grad():
        want = velocities(model)
        loaded = PeftModel.from_pretrained(base.eval(), tmp_path / "checkpoint-3")
        for got in (velocities(loaded), velocities(loaded.merge_and_unload())):
            for a, b in zip(got, want):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        new = velocities(new_model(pipe.model.config).eval())
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(new, want))


def test_lora_stores_frozen_weights_in_bfloat16(pipe, latents, tmp_path):
    """Trained weights stay in float32, and the gradients are those of float32 weights under autocast."""
    batch = torch.utils.data.default_collate([LatentWindows(latents, pipe.model.config, 2)[i] for i in range(2)])
    batch = weigh_values(batch, foreground_weight=10.0)
    losses, gradients = [], []
    for frozen_dtype in (None, torch.bfloat16):
        torch.manual_seed(1)
        model = with_lora(new_model(pipe.model.config), rank=2, frozen_dtype=frozen_dtype).train()
        dtypes = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
        assert dtypes == {True: torch.float32, False: frozen_dtype or torch.float32}
        with torch.autocast("cpu", torch.bfloat16):
            loss = FlowMatchingLoss(model.config)(model, **batch, generator=torch.Generator().manual_seed(2)).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99
    trainer = train(pipe, latents, tmp_path, 2, lora_rank=2, bf16=True)
    for name, tensor in load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors").items():
        assert tensor.dtype == torch.float32, name
    with trainer.averaged_model() as averaged:
        merged = copy.deepcopy(averaged).float().merge_and_unload()
    assert all(parameter.dtype == torch.float32 for parameter in merged.parameters())


def test_logged_terms_add_up_and_learning_happens(pipe, latents, tmp_path):
    trainer = train(pipe, latents, tmp_path, 40)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    for log in logs:
        assert log["loss"] == pytest.approx(log["rgb_loss"] + log["value_loss"] + log["action_loss"], abs=2e-3)
    assert np.mean([log["loss"] for log in logs[-5:]]) < np.mean([log["loss"] for log in logs[:5]])


def test_a_loss_that_is_not_finite_stops_training(pipe, latents, tmp_path, monkeypatch):
    monkeypatch.setattr(
        LatentWindows,
        "__getitem__",
        lambda self, i, get=LatentWindows.__getitem__: get(self, i) | {"actions": torch.full((16, 16), torch.nan)},
    )
    with pytest.raises(FloatingPointError, match="action_loss"):
        train(pipe, latents, tmp_path, 1)


def test_augmentations(pipe, latents, tmp_path):
    """Instructions are dropped, and observations noised, for the given shares of the windows."""
    trainer = train(pipe, latents, tmp_path, 1, **AUGMENTED, history_noise_max=0.3)
    dataset = trainer.train_dataset
    batch = torch.utils.data.default_collate([dataset[i % len(dataset)] for i in range(200)])
    torch.manual_seed(0)
    changed = trainer._augmentations(batch)
    assert changed.keys() == {"prompt_embeds", "history_timestep"}
    no_prompt = dataset.no_prompt_embeds()
    assert (no_prompt[0] == 1).all() and (no_prompt[1:] == 0).all()
    dropped = (changed["prompt_embeds"] == no_prompt).flatten(1).all(1)
    assert 70 < dropped.sum() < 130
    assert torch.equal(changed["prompt_embeds"][~dropped], batch["prompt_embeds"][~dropped])
    noised = changed["history_timestep"] > 0
    assert 70 < noised.sum() < 130 and 0.25 < changed["history_timestep"].max() <= 0.3
    assert 20 < (noised & dropped).sum() < 80  # drawn apart


def test_imagined_value_maps_are_those_of_a_rollout_and_reach_actions_alone(pipe, latents, tmp_path):
    trainer = train(pipe, latents, tmp_path, 1, imagined_value_probability=1.0)
    model, objective = trainer.model.eval(), trainer.objective
    batch = torch.utils.data.default_collate([trainer.train_dataset[i] for i in range(2)])
    batch.pop("value_cells")
    torch.manual_seed(5)
    imagined = objective.imagined_values(model, **batch)
    torch.manual_seed(5)
    x, m = torch.randn(2, *batch["value_latents"].shape)
    cache, frames = model.new_cache(2, *x.shape[-2:]), model.config.chunk_latent_frames
    model.set_text(cache, batch["prompt_embeds"])
    model.append(cache, batch["latents"][:, :, :1])
    scheduler = new_schedulers(model.config)["scheduler"]
    _, expected = denoise_world(model, cache, x[:, :, :frames], m[:, :, :frames], scheduler, SamplingConfig(1, 1))
    torch.testing.assert_close(imagined[:, :, :frames], expected, rtol=0, atol=1e-5)

    shown = trainer._imagined(model, batch)
    assert (shown["shown_value_latents"] != batch["value_latents"]).flatten(1).any(1).all()
    with torch.no_grad():
        true, seen = (
            objective(model, **batch, **changed, generator=torch.Generator().manual_seed(0)) for changed in ({}, shown)
        )
    assert torch.equal(true.value_velocity, seen.value_velocity) and torch.equal(true.rgb_velocity, seen.rgb_velocity)
    assert (true.action_velocity - seen.action_velocity).abs().max() > 1e-4

    trainer.args.imagined_value_start = 2
    assert trainer._imagined(model, batch) == {}, "it is at step 1"
    trainer.args.imagined_value_start = 1

    # A share of the windows, rounded up or down.
    four = torch.utils.data.default_collate([trainer.train_dataset[i] for i in range(4)])
    for probability, expected in ((0.5, [2, 2, 2, 2]), (0.375, [1, 2, 1, 2]), (0.125, [0, 1, 0, 1])):
        trainer.args.imagined_value_probability, counts = probability, []
        for trainer.state.global_step in (2, 3, 4, 5):
            shown = trainer._imagined(model, four).get("shown_value_latents", four["value_latents"])
            counts.append(int((shown != four["value_latents"]).flatten(1).any(1).sum()))
        assert counts == expected


def test_committed_actions_are_drawn(pipe, latents, tmp_path):
    ahead = AIMConfig(**{**pipe.model.config.to_diff_dict(), "action_lookahead_frames": 1})
    options = {"committed_probability": 0.5, "committed_max": 6}
    trainer = train(pipe, latents, tmp_path, 2, config=ahead, **options)
    dataset = trainer.train_dataset
    batch = torch.utils.data.default_collate([dataset[i % len(dataset)] for i in range(200)])
    committed = trainer._augmentations(batch)["committed_actions"]
    assert committed.shape == (200, 3, 2) and committed.max() == 6
    assert 0.45 < (committed > 0).float().mean() < 0.55
    with pytest.raises(ValueError, match="committed_max is 16; .* 1 to 15"):
        train(pipe, latents, tmp_path, 2, config=ahead, committed_probability=0.5, committed_max=16)


def test_latents_without_the_features_of_no_instruction(pipe, latents, tmp_path):
    for file in latents.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "no_prompt.safetensors").unlink()
    train(pipe, tmp_path, tmp_path / "run", 1)
    with pytest.raises(OSError, match="no_prompt.safetensors is missing; run `aim-hf encode-latents`"):
        train(pipe, tmp_path, tmp_path / "run", 1, prompt_dropout=0.1)
    save_file({"prompt_embeds": torch.ones(1, 8)}, tmp_path / "no_prompt.safetensors")
    with pytest.raises(
        OSError, match=r"no_prompt.safetensors can't be read \(prompt_embeds has shape \[1, 8\]; expec"
    ):
        train(pipe, tmp_path, tmp_path / "run", 1, prompt_dropout=0.1)

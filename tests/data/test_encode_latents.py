"""`aim-hf encode-latents`: the same folder from one process or two, at once or after an interruption."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from aim_hf.commands import run
from aim_hf.commands.encode_latents import main
from aim_hf.data.episodes import episode_features
from aim_hf.data.latent_windows import LatentWindows
from aim_hf.data.latents import encode_episode
from aim_hf.pipeline.codec import VideoCodec

from ..fixtures_pipeline import make_pipeline, make_processor
from ..training.test_stage1 import make_episode
from .fixtures_episodes import write_shard

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A dataset of five episodes in two files, and the pipeline whose codec and text encoder are used."""
    folder = tmp_path_factory.mktemp("material")
    pipe = make_pipeline()
    pipe.save_pretrained(folder / "policy")
    for index, seeds in enumerate(([0, 1, 2], [3, 4])):
        write_shard(folder / "episodes", [make_episode(seed) for seed in seeds], index=index)
    return folder, pipe


def encode(material, output: Path, python: str, *launch: str):
    """By the command that starts with `launch`, in one process if not given."""
    folder, _ = material
    command = [python, "-m", "accelerate.commands.launch", "--main_process_port", "0"]  # others launch meanwhile
    command += launch or ("--num_processes", "1", "--cpu", "-m", "aim_hf")
    options = ["--dataset", folder / "episodes", "--policy", folder / "policy", "--output_dir", output]
    options += ["--shard_size", "2"]
    subprocess.run(
        [*command, "encode-latents", *map(str, options)],
        check=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return {path.relative_to(output): path.read_bytes() for path in sorted(output.rglob("*.*")) if path.is_file()}


def test_latents_are_the_same_however_they_are_made(material, tmp_path, python):
    once = encode(material, tmp_path / "one", python, "--num_processes", "1", "--cpu", "-m", "aim_hf")
    two = "--num_processes", "2", "--multi_gpu", "-m", "aim_hf"
    assert encode(material, tmp_path / "two", python, *two) == once

    # Killed while it wrote its second shard, over the leftovers of a longer run.
    killed = tmp_path / "one"
    (killed / "index.json").unlink()
    (killed / "shard-00001.safetensors").rename(killed / ".shard-00001.safetensors.123")
    (killed / "shard-00009.safetensors").write_bytes(b"old")
    kept = (killed / "shard-00000.safetensors").stat().st_mtime_ns
    assert encode(material, killed, python) == once
    assert (killed / "shard-00000.safetensors").stat().st_mtime_ns == kept

    _, pipe = material
    index = json.loads((killed / "index.json").read_text())["episodes"]
    assert [entry["seed"] for entry in index] == [0, 1, 2, 3, 4]
    assert [entry["shard"][6:11] for entry in index] == ["00000", "00000", "00001", "00001", "00002"]
    tensors = load_file(killed / index[3]["shard"])
    fresh = encode_episode(make_episode(3), VideoCodec(pipe.vae), pipe.processor, 8, 1)
    assert torch.equal(tensors[f"{index[3]['key']}.actions"], fresh["actions"])
    assert tensors[f"{index[3]['key']}.latents"].shape == fresh["latents"].shape
    assert len(LatentWindows(killed, pipe.model.config, window_chunks=2)) == 5 * (index[0]["chunks"] - 1)


def test_actions_that_are_none_are_told_with_their_episode(material):
    _, pipe = material
    episode = make_episode(3)
    episode.action[:] = 0
    with pytest.raises(ValueError, match="^click_bell seed 3: actions have a left quaternion of length 0"):
        encode_episode(episode, VideoCodec(pipe.vae), pipe.processor, 8, 1)


@pytest.mark.parametrize("seed", [0, 1])  # the first episode is read to fit the processor, too
def test_a_damaged_video_is_told_in_one_line(material, tmp_path, capsys, seed):
    folder, _ = material
    path = write_shard(tmp_path / "episodes", [make_episode(seed) for seed in (0, 1)])
    rows = pq.read_table(path).to_pylist()
    rows[seed]["rgb_head_camera"] = {"bytes": b"junk", "path": None}
    Dataset.from_list(rows, features=episode_features()).to_parquet(path)
    options = ["--dataset", tmp_path / "episodes", "--policy", folder / "policy", "--output_dir", tmp_path / "latents"]
    with pytest.raises(SystemExit) as ended:
        run(["encode-latents", *map(str, options)])
    told = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2
    assert told.startswith(f"aim-hf encode-latents: {rows[seed]['task']} seed {seed}: rgb_head_camera can't be read (")
    assert "record this episode again, or leave it out" in told


def test_a_policy_is_no_folder_for_latents(material, tmp_path):
    """Its processor was replaced by that of the latents, which scales actions otherwise."""
    shutil.copytree(material[0] / "policy", tmp_path / "policy")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    options = ["--dataset", material[0] / "episodes", "--policy", tmp_path / "policy"]
    with pytest.raises(FileExistsError, match="policy/processor exists, but not .*policy/made_from.json, the record"):
        main([str(option) for option in (*options, "--output_dir", tmp_path / "policy")])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_instruction_that_is_too_long_is_refused_before_any_is_encoded(material, tmp_path):
    folder, _ = material
    write_shard(tmp_path / "episodes", [make_episode(0), replace(make_episode(1), instruction="wave " * 99)])
    options = ["--dataset", tmp_path / "episodes", "--policy", folder / "policy", "--output_dir", tmp_path / "latents"]
    with pytest.raises(ValueError, match="^instructions have at most 8 tokens .*'wave wave"):
        main([str(option) for option in options])
    assert not (tmp_path / "latents").exists()


def test_instructions_that_are_the_same_to_the_policy_are_refused(material, tmp_path):
    """They were encoded alike, so that the policy would do one task or the other."""
    folder, _ = material
    command = ["--dataset", str(tmp_path / "e"), "--policy", str(folder / "policy"), "--output_dir"]
    told = (("put the 红 block", "put the 蓝 block"), ("put the red block", "put  the red block"))
    for (first, second), output in zip(told, ("unknown", "known"), strict=True):
        episodes = [replace(make_episode(seed), instruction=text) for seed, text in enumerate((first, second))]
        write_shard(tmp_path / "e", episodes)
        if output == "known":
            main([*command, str(tmp_path / output)])
        else:
            with pytest.raises(ValueError, match=f"instructions '{first}' and '{second}' are the same to the policy"):
                main([*command, str(tmp_path / output)])
            assert not (tmp_path / output).exists()


def test_a_camera_without_a_slot_is_told(material, tmp_path, capsys):
    """Of a policy that was trained for fewer cameras, whose latents lacked the others without a word."""
    folder, pipe = material
    shutil.copytree(folder / "policy", tmp_path / "policy")
    cameras = {"head_camera": pipe.processor.cameras["head_camera"]}
    make_processor(cameras=cameras).save_pretrained(tmp_path / "policy" / "processor")
    write_shard(tmp_path / "episodes", [make_episode(0)])
    for policy, told in ((folder / "policy", False), (tmp_path / "policy", True)):
        output = tmp_path / f"latents of {policy.parent.name}"
        main(["--dataset", str(tmp_path / "episodes"), "--policy", str(policy), "--output_dir", str(output)])
        message = f"left out: pictures of left_camera, right_camera, for which {policy} has no slot\n"
        assert (message in capsys.readouterr().out) == told


def test_changed_episodes_are_encoded_anew(material, tmp_path):
    """Of the same names and seeds: columns swapped by another import, say. Other settings are refused."""
    folder, pipe = material
    shutil.copytree(folder / "episodes", tmp_path / "episodes")
    output = tmp_path / "latents"
    options = {"dataset": tmp_path / "episodes", "policy": folder / "policy", "output_dir": output, "shard_size": "2"}

    def run(**changes):
        main([part for name, value in (options | changes).items() for part in (f"--{name}", str(value))])
        return LatentWindows(output, pipe.model.config, window_chunks=2)

    run()
    kept = (output / "shard-00000.safetensors").stat().st_mtime_ns
    episodes = [make_episode(seed) for seed in (3, 4)]
    for episode in episodes:
        episode.expert_action = episode.expert_action[::-1].copy()
    write_shard(tmp_path / "episodes", episodes, index=1)
    windows = run()
    assert (output / "shard-00000.safetensors").stat().st_mtime_ns == kept
    fresh = encode_episode(episodes[0], VideoCodec(pipe.vae), pipe.processor, 8, 1)
    (item,) = (item for item in range(len(windows)) if windows._places[item] == (3, 0))
    assert torch.equal(windows[item]["actions"], windows.processor.scale_actions(fresh["actions"][:16]))
    with pytest.raises(FileExistsError, match="made from something else: chunk_latent_frames 1 there, 2 now"):
        run(preset="wan2.2-ti2v-5b")

"""Episodes that RoboTwin's own collection has recorded, annotated: `make test-robotwin`.

ROBOTWIN_CHECKOUTS names checkouts of RoboTwin whose recordings are tried too, separated by colons.
"""

import json
import os
import pickle
import re
import shutil
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aim_hf.commands import annotate_robotwin, collect, run, validate
from aim_hf.data.recordings import Recordings
from aim_hf.envs import make_environment

from .fixtures_robotwin_runtime import PYTHON, needs_robotwin, own_collection

pytestmark = [
    needs_robotwin,
    pytest.mark.usefixtures("robotwin"),
]
TASK = "click_bell"


@pytest.fixture(scope="module")
def recorded(assets, tmp_path_factory):
    """Two episodes that the package's own code has recorded."""
    folder = tmp_path_factory.mktemp("recorded") / TASK / "demo_clean"
    own_collection(assets, "", TASK, "demo_clean", folder, 2)
    return folder


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    return tmp_path_factory.mktemp("collected")


def collect_same(folder):
    """The rows of `aim-hf collect` for the seeds of `recorded`."""
    if not (folder / "README.md").exists():
        arguments = ["--suite", "robotwin", "--tasks", TASK, "--episodes", "2", "--output_dir", str(folder)]
        collect.main(arguments)
    return rows(folder)


def rows(folder):
    (path,) = folder.glob("data/*.parquet")
    return pq.read_table(path).to_pylist()


def annotate(*sources, output):
    annotate_robotwin.main([*map(str, sources), "--output_dir", str(output)])
    return rows(output)


def test_annotated_episodes_are_those_that_collect_makes(recorded, collected, tmp_path, capsys):
    """Every column, so also pictures, states, contacts, value maps and calibration."""
    annotated = annotate(recorded, output=tmp_path / "annotated")
    assert [row["seed"] for row in annotated] == [0, 1] and annotated == collect_same(collected)
    assert all([event["kind"] for event in row["events"]] == ["press"] for row in annotated)
    with pytest.raises(SystemExit) as ended:
        validate.main([str(tmp_path / "annotated")])
    assert ended.value.code == 0 and "0 simulated again; 0 problems" in capsys.readouterr().out


@pytest.mark.skipif("ROBOTWIN_CHECKOUTS" not in os.environ, reason="ROBOTWIN_CHECKOUTS names no checkout")
def test_recordings_of_checkouts(assets, collected, tmp_path):
    """Both formats of files, written by the checkouts' own collect_data.py."""
    for index, root in enumerate(os.environ["ROBOTWIN_CHECKOUTS"].split(":")):
        folder = tmp_path / str(index) / TASK / "demo_clean"
        own_collection(assets, root, TASK, "demo_clean", folder, 2)
        assert annotate(folder, output=tmp_path / f"annotated-{index}") == collect_same(collected)


def copy_episode(source, number, target, other):
    """Copies the files of an episode under another number."""
    for file in ("data/episode{}.hdf5", "_traj_data/episode{}.pkl"):
        path = target / file.format(other)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / file.format(number), path)


def test_what_does_not_agree_is_left_out_with_its_reason(recorded, tmp_path, capsys):
    folder, output = tmp_path / TASK / "demo_clean", tmp_path / "annotated"
    for number in range(6):
        copy_episode(recorded, min(number, 1), folder, number)
    scenes = json.loads((recorded / "scene_info.json").read_text())
    scenes |= {f"episode_{number}": scenes["episode_1"] for number in range(2, 6)}
    (folder / "scene_info.json").write_text(json.dumps(scenes))
    tamper = "import h5py, sys; h5py.File(sys.argv[1], 'r+')['joint_action/vector'][20, 3] += 0.01"
    subprocess.run([PYTHON, "-c", tamper, folder / "data/episode1.hdf5"], check=True)
    (folder / "_traj_data/episode3.pkl").write_bytes(pickle.dumps(print))
    (folder / "data/episode4.hdf5").unlink()
    (folder / "_traj_data/episode5.pkl").unlink()
    (folder / "seed.txt").write_text("0 1 5 13 14 15")
    reasons = {
        1: r"in frame 20 of \d+, joint target 3 is -?\d\.\d+ in the recording and -?\d\.\d+ simulated again",
        5: "the task was not fulfilled at the end of the expert's path",  # the seed of episode 2 is 1
        13: r"_traj_data/episode3.pkl can't be read \(it names builtins.print, which isn't run: only arrays of",
        14: "data/episode4.hdf5 is missing; take the whole folder that RoboTwin wrote",
        15: "_traj_data/episode5.pkl is missing; take",
    }
    for _ in range(2):  # a second call has nothing to do, and tells the same
        assert [row["seed"] for row in annotate(folder, output=output)] == [0]
        told = capsys.readouterr().out.splitlines()
        assert told[0] == f"1 of 6 episodes in {output}"
        for line, (seed, reason) in zip(told[1:], reasons.items(), strict=True):
            assert re.match(f"  left out: {TASK} easy seed {seed}: {reason}", line), line
    (manifest,) = output.glob("manifest/*.json")
    seeds = {of["seed"]: of.get("reason") for of in json.loads(manifest.read_text())["seeds"]}
    assert seeds.keys() == {0, *reasons} and str(tmp_path) not in manifest.read_text()


def test_another_scene_is_no_annotation(recorded, tmp_path, capsys):
    """Of which the description alone tells, and nothing is left."""
    folder = tmp_path / TASK / "demo_clean"
    shutil.copytree(recorded, folder)
    scenes = {f"episode_{number}": {"info": {"{A}": "050_bell/base7"}} for number in range(2)}
    (folder / "scene_info.json").write_text(json.dumps(scenes))
    with pytest.raises(SystemExit):
        run(["annotate-robotwin", str(folder), "--output_dir", str(tmp_path / "annotated")])
    told = capsys.readouterr().err.splitlines()[-1]
    assert "none of 2 episodes agrees with its recording: click_bell easy seed 0: the scene is described as" in told


def write_lerobot(recordings, folder):
    """A LeRobot dataset v2.1 of RoboTwin's joint vectors, as conversions make it: without the last frame."""
    (folder / "meta").mkdir(parents=True)
    (folder / "data/chunk-000").mkdir(parents=True)
    environment, episodes = make_environment("robotwin", TASK), []
    for number in range(len(recordings.seeds)):
        joints = recordings.states(number, environment)[:-1, :14].astype("float32")
        table = {"timestamp": [frame / 50 for frame in range(len(joints))], "frame_index": list(range(len(joints)))}
        table |= {"episode_index": [number] * len(joints), "task_index": [0] * len(joints)}
        columns = {name: pa.array(values) for name, values in table.items()} | {
            "observation.state": pa.array(joints.tolist())
        }
        pq.write_table(pa.table(columns), folder / f"data/chunk-000/episode_{number:06d}.parquet")
        episodes.append({"episode_index": number, "tasks": ["ring"], "length": len(joints)})
    environment.close()
    info = {"codebase_version": "v2.1", "fps": 50, "total_episodes": len(episodes), "chunks_size": 1000}
    info["features"] = {"observation.state": {"dtype": "float32", "shape": [14], "names": None}}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, episodes)))
    (folder / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "ring"}))


def test_a_lerobot_dataset_with_seeds(recorded, collected, tmp_path, capsys):
    folder = tmp_path / TASK / "demo_clean-lerobot"
    write_lerobot(Recordings.open(recorded), folder)
    shutil.copy(recorded / "seed.txt", folder)
    assert annotate(folder, output=tmp_path / "annotated") == collect_same(collected)
    (folder / "seed.txt").write_text("0")
    with pytest.raises(SystemExit):
        run(["annotate-robotwin", str(folder), "--output_dir", str(tmp_path / "other")])
    assert "seed.txt has 1 seeds; expected one of each of the 2 episodes, in their order." in capsys.readouterr().err

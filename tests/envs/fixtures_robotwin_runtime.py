"""RoboTwin's own code, run in its own way, with stand-in assets and the planner `cpu`: the adapter's reference."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from aim_hf.envs.robotwin.client import __file__ as client

PYTHON = Path(__file__).parents[2] / ".venv-robotwin" / "bin" / "python"
# An environment whose set-up was interrupted has an interpreter, too.
needs_robotwin = pytest.mark.skipif(
    not (PYTHON.parents[1] / ".setup-done").exists(), reason="there is no whole .venv-robotwin: run make robotwin"
)

# To a task and its arguments, as RoboTwin's own scripts make them.
_TASK = """
import hashlib, importlib, json, os, pickle, shutil, sys
folder, root, task, config = sys.argv[1:5]
sys.path.insert(0, folder)
import cpu_planner
cpu_planner.stand_in_for_curobo()
sys.path.pop(0)
sys.modules["open3d"] = type(sys)("open3d")
import numpy as np
import sapien, yaml
choose = sapien.render.set_camera_shader_dir
sapien.render.set_camera_shader_dir = lambda _: choose("trivial")
if root:
    sys.path[:0] = [root, root + "/description/utils", root + "/script", root + "/scripts"]
    from envs import CONFIGS_PATH
    envs, load = "envs", lambda name: yaml.safe_load(open(f"{CONFIGS_PATH}/{name}.yml"))
else:
    from robotwin.config import load_task_config as load
    envs = "robotwin.envs"
module = importlib.import_module(f"{envs}.{task}")
cpu_planner.replace_curobo(*[importlib.import_module(f"{envs}.robot.{name}") for name in ("planner", "robot")])
args = load(config)
robot = os.path.abspath(load("_embodiment_config")[args["embodiment"][0]]["file_path"])
args.update(task_name=task, left_robot_file=robot, right_robot_file=robot, dual_arm_embodied=True, task_config=config)
for arm in ("left", "right"):
    args[arm + "_embodiment_config"] = yaml.safe_load(open(os.path.join(robot, "config.yml")))
env = getattr(module, task)()
"""

# A scene, and the expert's way through it.
_EXPERT = """
def poses():
    bodies = [*env.scene.get_all_actors()]
    bodies += [link.entity for found in env.scene.get_all_articulations() for link in found.get_links()]
    return {str(body.per_scene_id): [*body.get_pose().p.tolist(), *body.get_pose().q.tolist()] for body in bodies}

def pictures():
    views = env.get_obs()["observation"]
    return {
        name: [hashlib.sha256(views[name]["rgb"].tobytes()).hexdigest()]
        + [np.asarray(views[name][key], np.float64).tolist() for key in ("intrinsic_cv", "extrinsic_cv")]
        for name in ("head_camera", "left_camera", "right_camera")
    }

result = {}
try:
    env.setup_demo(now_ep_num=0, seed=int(sys.argv[5]), is_test=True, **args)
    cpu_planner.note_table(env.table_z_bias)
    result.update(initial=poses(), pictures=pictures())
    info = env.play_once()["info"]
    result.update(planned=bool(env.plan_success), final=poses())
    result.update(success=result["planned"] and bool(env.check_success()))
    result.update(info={name: str(value) for name, value in info.items()})
except Exception as error:
    result.update(error=f"{type(error).__name__}: {error}")
print("RESULT" + json.dumps(result))
"""

# As collect_data.py: plans until some seeds have succeeded, and follows the paths again with pictures. The package has
# no writer of HDF5 files.
_COLLECTION = """
args.update(save_path=sys.argv[5], episode_num=int(sys.argv[6]))
if root:
    import collect_data
    collect_data.run(env, args)
    sys.exit()
import h5py
seeds, seed = [], 0
while len(seeds) < args["episode_num"]:
    env.setup_demo(now_ep_num=len(seeds), seed=seed, **args)
    env.play_once()
    if env.plan_success and env.check_success():
        env.save_traj_data(len(seeds))
        seeds.append(seed)
    env.close_env()
    seed += 1
scenes = {}
args.update(need_plan=False, save_data=True)
for index, seed in enumerate(seeds):
    env.setup_demo(now_ep_num=index, seed=seed, **args)
    env.set_path_lst({"need_plan": False, **env.load_tran_data(index)})
    scenes[f"episode_{index}"] = env.play_once()
    frames = [pickle.load(open(f"{env.folder_path['cache']}{frame}.pkl", "rb")) for frame in range(env.FRAME_IDX)]
    os.makedirs(args["save_path"] + "/data", exist_ok=True)
    with h5py.File(f"{args['save_path']}/data/episode{index}.hdf5", "w") as file:
        for group in ("joint_action", "endpose"):
            for name in frames[0][group]:
                file[f"{group}/{name}"] = np.array([frame[group][name] for frame in frames])
    shutil.rmtree(env.folder_path['cache'])
    env.close_env()
open(args["save_path"] + "/seed.txt", "w").write(" ".join(map(str, seeds)))
json.dump(scenes, open(args["save_path"] + "/scene_info.json", "w"))
"""


def _run(assets: Path, code: str, *arguments: str) -> str:
    command = [PYTHON, "-c", _TASK + code, Path(client).parent, *arguments]
    variables = os.environ | dict.fromkeys(("ASSETS_PATH", "ROBOTWIN_ASSETS_ROOT"), str(assets))
    done = subprocess.run(command, cwd=assets, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def own_play(assets: Path, root: str, task: str, config: str, seed: int) -> dict:
    """The scene of a seed and the result of its expert, by RoboTwin's own code; without a `root`, the package's."""
    return json.loads(_run(assets, _EXPERT, root, task, config, str(seed)).rpartition("RESULT")[2])


def own_collection(assets: Path, root: str, task: str, config: str, folder: Path, episodes: int) -> None:
    """Lets RoboTwin's own code record episodes into a folder."""
    _run(assets, _COLLECTION, root, task, config, str(folder), str(episodes))

"""A stand-in for a RoboTwin 2.0 checkout: the same files, names and habits around a simulator of a few lines.

`write_checkout` writes it into a folder, in either layout, together with an "interpreter" that finds stand-ins for
the packages that RoboTwin imports. Its arms go where they are told, a closed gripper holds what is between its
fingers, and what is let go falls. The last digit of a seed chooses what goes wrong; a gripper command can crash or
hang it.
"""

import json
import sys
from pathlib import Path

# Last digits of seeds; of 8 and 9, only where the digit before is 0.
UNSTABLE, NO_PLAN, UNFULFILLED, RAISES, EXITS, CRASHES, HANGS = (
    3,
    4,
    5,
    6,
    7,
    8,
    9,
)
CRASH_COMMAND, HANG_COMMAND, FREEZE_COMMAND = 0.125, 0.25, 0.375  # a gripper's

TEMPLATES = {
    "stack_blocks_two": {
        "seen": ["Stack {B} on {A}.", "With {a}, put {B} on {A}."],
        "unseen": ["Pile {A}, {B}"],
    },
    "click_bell": {"seen": ["Ring {A}"], "unseen": ["Press {A} using {a}"]},
}

_SIMULATOR = '''
import ctypes, os, signal, time
import cv2, gymnasium, h5py, imageio, open3d, toppra, torch, transforms3d, trimesh
import mplib.sapien_utils, curobo.wrap.reacher.motion_gen
import numpy as np
import sapien
import yaml
from ._GLOBAL_CONFIGS import CONFIGS_PATH
from .utils import *

for file in ("objaverse/list.json", "same.json"):  # at import, and relative to the working directory
    open("./assets/objects/" + file).close()
print("missing pytorch3d")


class Link:
    linear_velocity = angular_velocity = np.zeros(3)
    kinematic, parent = False, None

    def __init__(self, entity, joint_type="fixed"):
        self.entity, self.joint = entity, Bag(type=joint_type)
    def get_name(self):
        return self.entity.name
    def get_pose(self):
        return self.entity.pose


class Scene:
    def __init__(self):
        self.entities, self.hooks, self.articulations = [], [], []
        self.ambient = 0
    def add(self, name, position, component=None):
        entity = sapien.Entity(len(self.entities) + 1, name, sapien.Pose(position), component)
        self.entities.append(entity)
        return entity
    def get_all_actors(self):
        links = {id(link.entity) for articulation in self.articulations for link in articulation.links}
        return [entity for entity in self.entities if id(entity) not in links]
    def get_all_articulations(self):
        return self.articulations
    def step(self):
        for hook in self.hooks:
            hook()
    def get_contacts(self):
        return self.contacts()


class Articulation:
    def __init__(self, links):
        self.links = links
    def get_name(self):
        return "robot"
    def get_links(self):
        return self.links


class Joint:
    def __init__(self, name, child_link=None):
        self.name, self.child_link, self.target = name, child_link, 0.0
    def get_name(self):
        return self.name
    def get_pose_in_child(self):
        return sapien.Pose([0, 0, 0])


class Robot:
    """Arm joints are the position and the rotation vector of the frame 0.12 m behind the TCP."""

    def __init__(self):
        self.left_planner = self.right_planner = None
        self.left_mplib_planner, self.right_mplib_planner = Bag(TOPP=topp), Bag(TOPP=topp)

    def load(self, scene):
        base, links = scene.add("base", [0, -0.6, 0]), []
        for arm, x in (("left", -0.3), ("right", 0.3)):
            hand = Link(scene.add(arm + "_hand", [x, 0, 1]), "revolute")
            fingers = [Link(scene.add(f"{arm}_finger_{i}", [x, 0, 1]), "prismatic") for i in (1, 2)]
            links += [hand, *fingers]
            setattr(self, arm + "_arm_joints", [Joint(f"{arm}_joint{i}") for i in range(6)])
            setattr(self, arm + "_joints", np.array([x, -0.2, 1.0, 0, np.pi / 2, 0]))
            setattr(self, arm + "_gripper", [(Joint("f", finger), 1.0, 0.0) for finger in fingers])
            setattr(self, arm + "_gripper_val", 0.0)
            setattr(self, arm + "_camera", hand)
            setattr(self, arm + "_ee", self.ee(arm, hand))
        self.left_entity = self.right_entity = Articulation([Link(base), *links])
        entity = self.left_entity
        entity.get_active_joints = lambda: self.left_arm_joints + self.right_arm_joints
        entity.get_qpos = lambda: np.concatenate([self.left_joints, self.right_joints])
        entity.get_root_pose = lambda: sapien.Pose([0, 0, 0])
        entity.create_pinocchio_model = lambda: Model(entity)
        scene.articulations.append(entity)
        self.update()

    def ee(self, arm, hand):
        robot = self
        class Ee:
            child_link = hand
            global_pose = property(lambda _: sapien.Pose(*from_joints(getattr(robot, arm + "_joints"))))
            def get_pose_in_child(_):
                return sapien.Pose([0, 0, 0])
        return Ee()

    def update(self):
        for arm in ("left", "right"):
            p, q = from_joints(getattr(self, arm + "_joints"))
            rotation = quat2mat(q)
            self.__dict__[arm + "_camera"].entity.pose = sapien.Pose(p, q)
            for side, (joint, *_) in zip((1, -1), getattr(self, arm + "_gripper")):
                offset = np.array([0.12, side * 0.05 * getattr(self, arm + "_gripper_val"), 0])
                joint.child_link.entity.pose = sapien.Pose(p + rotation @ offset, q)

    def _tcp(self, pose):
        return [*(pose.p + quat2mat(pose.q) @ [0.12, 0, 0]), *pose.q]
    def get_left_tcp_pose(self):
        return self._tcp(self.left_ee.global_pose)
    def get_right_tcp_pose(self):
        return self._tcp(self.right_ee.global_pose)
    def get_left_gripper_val(self):
        return self.left_gripper_val
    def get_right_gripper_val(self):
        return self.right_gripper_val
    def left_plan_path(self, pose):
        return plan(self.left_joints, pose)
    def right_plan_path(self, pose):
        return plan(self.right_joints, pose)


class Model:
    def __init__(self, entity):
        self.entity = entity
    def compute_forward_kinematics(self, qpos):
        self.qpos = qpos
    def get_link_pose(self, index):
        arm = self.entity.links[index].get_name().split("_")[0]
        return sapien.Pose(*from_joints(self.qpos[:6] if arm == "left" else self.qpos[6:]))


def plan(joints, pose):
    goal = to_joints(np.asarray(pose, float))
    if np.linalg.norm(goal[:3]) > 2:
        return {"status": "Fail"}
    return {"status": "Success", "position": path(joints, goal)}


def path(start, goal):
    steps = max(1, int(np.ceil(np.abs(goal - start).max() / 0.004)))
    return start + np.linspace(0, 1, steps + 1)[1:, None] * (goal - start)


def topp(joints, dt, verbose=False):
    if np.array_equal(joints[0], joints[-1]):
        raise RuntimeError("no motion")
    found = path(joints[0], joints[-1])
    return None, found, found, None, None


class Camera:
    def __init__(self, table_shift):
        self.static_camera_name = ["head_camera", "front_camera"]
        self.static_camera_list = ["head", "front"]
        self.wrists = {}
    def update_wrist_camera(self, left, right):
        self.wrists = {"left_camera": left.p, "right_camera": right.p}
    def get_config(self):
        config = {}
        for name in ["left_camera", "right_camera", *self.static_camera_name]:
            extrinsic = np.hstack([np.diag([1.0, -1, -1]), -self.wrists.get(name, np.array([0, 0, 1.5]))[:, None]])
            config[name] = {"intrinsic_cv": np.diag([8.0, 8, 1]), "extrinsic_cv": extrinsic.astype(np.float32)}
        return config


class Base_Task:
    def _init_task_env_(self, table_xy_bias=[0, 0], **kwargs):
        self.seed, self.task_name = kwargs["seed"], kwargs["task_name"]
        self.eval_mode, self.data_type = kwargs.get("eval_mode", False), kwargs["data_type"]
        self.trouble = self.seed % 10 if self.seed % 10 < 8 else self.seed % 100
        np.random.seed(self.seed)
        if self.trouble == 8:
            os._exit(42)
        if self.trouble == 9:
            time.sleep(1000)
        self.table_xy_bias, self.table_z_bias, self.save_freq = table_xy_bias, 0.0, kwargs["save_freq"]
        self.plan_success, self.eval_success, self.take_action_cnt, self.step_lim = True, False, 0, None
        self.stage_success_tag = False
        self.objects, self.held, self.info = [], {}, {"info": {}}
        self.scene = Scene()
        self.scene.add("ground", [0, 0, 0])
        self.table = self.scene.add("table", [0, 0, 0.74])
        if not hasattr(self, "robot"):
            if (kwargs["left_embodiment_config"].get("broken")):
                self.robot = Robot()
                raise TypeError("'NoneType' object is not subscriptable")
            self.robot = Robot()
        self.robot.load(self.scene)
        self.cameras = Camera(0)
        self.scene.hooks.append(self.simulate)
        self.scene.contacts = self.contacts
        self.robot.left_gripper_val = self.robot.right_gripper_val = 1.0
        self.load_actors()
        if kwargs["domain_randomization"]["cluttered_table"]:
            self.get_cluttered_table()
        for _ in range(3):
            self.scene.step()
        if self.trouble == 3:
            raise UnStableError(f"Objects is unstable in seed({self.seed})")
        if self.eval_mode:
            with open(os.path.join(CONFIGS_PATH, "_eval_step_limit.yml")) as f:
                self.step_lim = yaml.safe_load(f)[self.task_name]

    def setup_demo(self, **kwargs):
        self._init_task_env_(**kwargs)

    def get_cluttered_table(self, xlim=[-0.5, 0.5]):
        xlim[0] += self.table_xy_bias[0]
        self.scene.add("clutter", [xlim[0], 0.2, 0.74])

    def close_env(self, clear_cache=False):
        print("closed")

    # A simulator

    def add_block(self, name, position):
        component = Link(None)
        entity = self.scene.add(name, position, component)
        component.entity = entity
        self.objects.append(component)
        return Bag(actor=entity, get_pose=lambda: entity.pose)

    def simulate(self):
        self.robot.update()
        for component in self.objects:
            entity, before = component.entity, component.entity.pose.p
            after = before.copy()
            for arm in ("left", "right"):
                tcp = np.array(getattr(self.robot, f"get_{arm}_tcp_pose")()[:3])
                closed = getattr(self.robot, arm + "_gripper_val") <= 0.5
                if closed and (arm in self.held or np.linalg.norm(tcp - before) < 0.03):
                    if self.held.setdefault(arm, (component, before - tcp))[0] is component:
                        after = tcp + self.held[arm][1]
                elif not closed:
                    self.held.pop(arm, None)
            if component not in [held for held, _ in self.held.values()]:
                after[2] = max(self.below(component)[1] + 0.025, after[2] - 0.005)
            entity.pose = sapien.Pose(after)
            component.linear_velocity = (after - before) * 250

    def below(self, component):
        place, found = component.entity.pose.p, (self.table, 0.74)
        for other in self.objects:
            at = other.entity.pose.p
            if other is not component and at[2] < place[2] and np.abs(at - place)[:2].max() < 0.05:
                found = max(found, (other.entity, at[2] + 0.025), key=lambda item: item[1])
        return found

    def contacts(self):
        found = []
        for component in self.objects:
            p = component.entity.pose.p
            support, top = self.below(component)
            corners = [p + [x, y, -0.025] for x in (-0.025, 0.025) for y in (-0.025, 0.025)]
            if p[2] - 0.025 - top < 1e-6:
                found.append(Contact(component, Bag(entity=support), corners, [0, 0, 1], 1e-4))
            for arm, (held, _) in self.held.items():
                if held is component:
                    across = quat2mat(getattr(self.robot, arm + "_camera").entity.pose.q)[:, 1]
                    for side, (joint, *_) in zip((1, -1), getattr(self.robot, arm + "_gripper")):
                        point = [p + side * 0.025 * across]
                        found.append(Contact(joint.child_link, component, point, side * across, 0.01))
        close = Contact(Bag(entity=self.table), self.robot.left_camera, [[0, 0, 0]], [0, 0, 1], 0)
        return [*found, *self.more_contacts(), close]

    def more_contacts(self):
        return []

    # What RoboTwin offers

    def get_obs(self):
        self.cameras.update_wrist_camera(self.robot.left_camera.get_pose(), self.robot.right_camera.get_pose())
        views = self.cameras.get_config()
        for index, (name, view) in enumerate(views.items()):
            view["rgb"] = np.full((12, 16, 3), 40 * index + self.eval_mode, np.uint8)
            view["rgb"][0, 0] = np.round(50 * np.abs(self.objects[0].entity.pose.p)) if self.objects else 0
            if self.data_type["depth"]:
                view["depth"] = np.full((12, 16), 1500.0)
        robot = self.robot
        vector = [*robot.left_joints, robot.left_gripper_val, *robot.right_joints, robot.right_gripper_val]
        return {"observation": views, "joint_action": {"vector": np.array(vector)}, "endpose": {}}

    def take_action(self, action, action_type="qpos"):
        if self.take_action_cnt == self.step_lim or self.eval_success:
            return
        self.take_action_cnt += 1
        print(f"step: {self.take_action_cnt} / {self.step_lim}", end="\\r")
        half = len(action) // 2
        paths, grippers = {}, {}
        for arm, part in (("left", action[:half]), ("right", action[half:])):
            joints = getattr(self.robot, arm + "_joints")
            grippers[arm] = np.clip(part[-1], 0, 1)
            if grippers[arm] == 0.125:
                os.kill(os.getpid(), signal.SIGSEGV)
            if grippers[arm] == 0.25:
                time.sleep(1000)
            if grippers[arm] == 0.375:  # as in a renderer that keeps the interpreter's lock
                ctypes.PyDLL(None).sleep(1000)
            if action_type == "ee":
                result = getattr(self.robot, arm + "_plan_path")(part[:-1])
                paths[arm] = result.get("position")
            else:
                try:
                    topp = getattr(self.robot, arm + "_mplib_planner").TOPP
                    paths[arm] = topp(np.vstack([joints, part[:-1]]), 1 / 250)[1]
                except Exception:
                    paths[arm] = None
        self.follow(paths, grippers, check=True)

    def follow(self, paths, grippers, check=False):
        length = max(50 if path is None else len(path) for path in paths.values())
        start = {arm: getattr(self.robot, arm + "_gripper_val") for arm in grippers}
        for index in range(length):
            for arm, path in paths.items():
                if path is not None:
                    setattr(self.robot, arm + "_joints", path[min(index, len(path) - 1)])
            for arm, goal in grippers.items():
                setattr(self.robot, arm + "_gripper_val", start[arm] + (goal - start[arm]) * (index + 1) / length)
            self.scene.step()
            if check and self.check_success():
                self.eval_success = True
                return

    # What experts are written with

    def move(self, arm, position):
        if not self.plan_success:
            return
        result = getattr(self.robot, arm + "_plan_path")([*(np.asarray(position) - [0, 0, -0.12]), *DOWN])
        if result["status"] != "Success":
            self.plan_success = False
            return
        self.follow({arm: result["position"]}, {})

    def grip(self, arm, value):
        if self.plan_success:
            self.follow({arm: None}, {arm: value})

    def grippers_open(self):
        return self.robot.left_gripper_val > 0.8 and self.robot.right_gripper_val > 0.8
'''

_UTILS = """
import numpy as np
import sapien


class UnStableError(Exception):
    pass


class Bag:
    def __init__(self, **values):
        self.__dict__.update(values)


class ArmTag(str):
    pass


class Contact:
    def __init__(self, first, second, points, normal, impulse):
        self.bodies = [first, second]
        self.points = [
            Bag(position=np.array(p), normal=np.array(normal), impulse=impulse * np.array(normal), separation=0.0)
            for p in points
        ]


def quat2mat(q):
    w, x, y, z = np.asarray(q) / np.linalg.norm(q)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])


def from_joints(joints):
    angle = np.linalg.norm(joints[3:])
    return joints[:3], np.array([np.cos(angle / 2), *np.sin(angle / 2) * joints[3:] / max(angle, 1e-12)])


def to_joints(pose):
    q = pose[3:] / np.linalg.norm(pose[3:])
    q = q * (1 if q[0] >= 0 else -1)
    length = np.linalg.norm(q[1:])
    return np.concatenate([pose[:3], 2 * np.arctan2(length, q[0]) * q[1:] / max(length, 1e-12)])


DOWN = [np.sqrt(0.5), 0, np.sqrt(0.5), 0]
"""

_SAPIEN = """
import os
import types
import numpy as np


class Pose:
    def __init__(self, p, q=(1, 0, 0, 0)):
        self.p, self.q = np.array(p, float), np.array(q, float)
    def __mul__(self, other):
        from envs.utils import quat2mat
        (w, x, y, z), (a, b, c, d) = self.q, other.q
        q = [w*a - x*b - y*c - z*d, w*b + x*a + y*d - z*c, w*c - x*d + y*a + z*b, w*d + x*c - y*b + z*a]
        return Pose(self.p + quat2mat(self.q) @ other.p, q)


class Entity:
    def __init__(self, per_scene_id, name, pose, component):
        self.per_scene_id, self.name, self.pose, self.component = per_scene_id, name, pose, component
    def get_name(self):
        return self.name
    def get_pose(self):
        return self.pose
    def find_component_by_type(self, kind):
        return self.component


class physx:
    class PhysxRigidDynamicComponent:
        pass


class render:
    def RenderSystem():
        if os.path.exists(os.path.join(os.path.dirname(__file__), "no_vulkan")):
            raise RuntimeError("failed to find a rendering device")
        return types.SimpleNamespace(device=types.SimpleNamespace(name=os.environ.get("FAKE_DEVICE", "a GPU")))
    def set_camera_shader_dir(name):
        pass
"""

_TORCH = """
class cuda:
    def is_available():
        return True
"""

_TASKS = {
    "stack_blocks_two": """
    def load_actors(self):
        x, y = np.random.uniform([-0.25, -0.1], [-0.1, 0.1])
        self.block1 = self.add_block("box", [x, y, 0.765])
        self.block2 = self.add_block("box", [x + 0.3, y, 0.765])

    def play_once(self):
        for block, arm, height in ((self.block1, "left", 0.77), (self.block2, "right", 0.82)):
            place = block.get_pose().p
            self.move(arm, place + [0, 0, 0.1])
            self.move(arm, place)
            self.grip(arm, 0.4)
            self.move(arm, place + [0, 0, 0.15])
            if self.trouble == 4:
                self.move(arm, [9, 9, 9])
            if self.trouble == 6:
                raise IndexError("no such pose")
            if self.trouble == 7:
                exit()
            self.move(arm, [0, -0.13, height + 0.1])
            self.move(arm, [0, -0.13, height])
            self.grip(arm, 1.0)
            self.move(arm, [-0.3 if arm == "left" else 0.3, -0.2, 1.0])
        if self.trouble == 5:
            self.grip("left", 0.0)
        self.info["info"] = {"{A}": "red block", "{B}": "green block", "{a}": "left", "{b}": "right"}
        return self.info

    def check_success(self):
        first, second = self.block1.get_pose().p, self.block2.get_pose().p
        return bool(np.all(np.abs(second - first - [0, 0, 0.05]) < [0.02, 0.02, 0.01]) and self.grippers_open())
""",
    "click_bell": """
    def load_actors(self):
        self.place = np.array([np.random.uniform(-0.2, -0.1), -0.1, 0.8])
        open("./assets/objects/050_bell/model_data0.json").close()
        entity = self.scene.add("050_bell", self.place)
        self.bell = Bag(actor=entity, get_pose=lambda: entity.pose)

    def more_contacts(self):
        finger = self.robot.left_gripper[0][0].child_link
        if np.linalg.norm(finger.entity.pose.p - self.place) > 0.02:
            return []
        return [Contact(finger, Bag(entity=self.bell.actor), [self.place], [0, 0, 1], 0.01)]

    def play_once(self):
        self.grip("left", 0.0)
        self.move("left", self.place + [0, 0, 0.1])
        self.move("left", self.place)
        self.check_success()
        self.move("left", self.place + [0, 0, 0.1])
        self.info["info"] = {"{A}": "bell", "{a}": "left"}
        return self.info

    def check_success(self):
        self.checks = getattr(self, "checks", 0) + 1
        if self.more_contacts():
            self.stage_success_tag = True
        return self.stage_success_tag
""",
    "place_object_scale": """
    def load_actors(self):
        x = np.random.choice([-0.2, 0.2])
        self.object = self.add_block("object", [x, 0, 0.765])
        self.block1 = self.object

    def play_once(self):
        self.arm_tag = ArmTag("right" if self.object.get_pose().p[0] > 0 else "left")
        self.move(self.arm_tag, self.object.get_pose().p + [0, 0, 0.05])
        self.info["info"] = {"{a}": self.arm_tag}
        return self.info

    def check_success(self):
        return bool(getattr(self.robot, f"get_{self.arm_tag}_tcp_pose")()[2] < 0.85)
""",
    "dump_bin_bigbin": """
    def setup_demo(self, **kwargs):
        self._init_task_env_(table_xy_bias=[0.3, 0], **kwargs)

    def load_actors(self):
        self.block1 = self.add_block("box", [0, 0, 0.765])

    def play_once(self):
        return self.info

    def check_success(self):
        return True
""",
}

# How RoboTwin's own scripts do it.
OWN_SCRIPT = """
import importlib, json, os, sys
import yaml
root, task, seed, config = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
sys.path.insert(0, root)
from envs._GLOBAL_CONFIGS import CONFIGS_PATH
args = yaml.safe_load(open(os.path.join(CONFIGS_PATH, config + ".yml")))
robot = yaml.safe_load(open(os.path.join(CONFIGS_PATH, "_embodiment_config.yml")))[args["embodiment"][0]]["file_path"]
args.update(task_name=task, left_robot_file=robot, right_robot_file=robot, dual_arm_embodied=True, eval_mode=True)
for arm in ("left", "right"):
    args[arm + "_embodiment_config"] = yaml.safe_load(open(os.path.join(robot, "config.yml")))
env = getattr(importlib.import_module("envs." + task), task)()

def poses():
    return {str(e.per_scene_id): [*e.get_pose().p.tolist(), *e.get_pose().q.tolist()] for e in env.scene.entities}

env.setup_demo(now_ep_num=0, seed=seed, is_test=True, **args)
initial, info = poses(), env.play_once()
print("RESULT" + json.dumps([initial, poses(), bool(env.plan_success and env.check_success()), info["info"]]))
"""

_INSTRUCTIONS = """
import json, os, random

def generate_episode_descriptions(task_name, episodes, max_descriptions=1000000):
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"../task_instruction/{task_name}.json")
    if not os.path.exists(path):
        exit()
    with open(path) as f:
        templates = json.load(f)
    print("generating")
    made = {"episode_index": 0}
    for split in ("seen", "unseen"):
        random.shuffle(templates[split])
        made[split] = []
        for template in templates[split] * max_descriptions:
            for key, value in episodes[0].items():
                template = template.replace(key, value)
            made[split].append(template)
        made[split] = made[split][:max_descriptions]
    return [made]
"""

_CONFIG = """
save_freq: 15
embodiment: [aloha-agilex]
clear_cache_freq: 2
domain_randomization: {{random_background: false, cluttered_table: {clutter}}}
camera: {{head_camera_type: D435, wrist_camera_type: D435, collect_head_camera: true, collect_wrist_camera: true}}
data_type: {{rgb: true, endpose: true, qpos: true, depth: false}}
"""


def write_checkout(folder: Path, layout: str = "env_cfg/task_config") -> tuple[Path, Path]:
    """Writes the checkout and its interpreter. Returns the paths of both."""
    root, stubs, python = folder / "RoboTwin", folder / "packages", folder / "python"
    limits = "".join(f"{task}: {12 if task == 'stack_blocks_two' else 400}\n" for task in _TASKS)
    robot = "assets/embodiments/aloha-agilex"
    files = {
        "envs/__init__.py": "from .utils import *\nfrom ._GLOBAL_CONFIGS import *\n",
        "envs/utils.py": _UTILS,
        "envs/_GLOBAL_CONFIGS.py": "import os\nCONFIGS_PATH = os.path.join(os.path.dirname(os.path.dirname("
        f"os.path.abspath(__file__))), {layout!r}) + '/'\n",
        "envs/_base_task.py": _SIMULATOR,
        "description/utils/generate_episode_instructions.py": _INSTRUCTIONS,
        f"{layout}/demo_clean.yml": _CONFIG.format(clutter="false"),
        f"{layout}/demo_randomized.yml": _CONFIG.format(clutter="true"),
        f"{layout}/_embodiment_config.yml": f"aloha-agilex: {{file_path: ./{robot}/}}\n",
        f"{layout}/_camera_config.yml": "D435: {fovy: 37, w: 16, h: 12}\n",
        f"{layout}/_eval_step_limit.yml": limits,
        "assets/objects/objaverse/list.json": "{}",
        "assets/objects/same.json": "{}",
        "assets/objects/050_bell/model_data0.json": "{}",
        f"{robot}/config.yml": "arm_joints_name: [[a, b, c, d, e, f], [g, h, i, j, k, l]]\n",
        f"{robot}/curobo_left.yml": f"robot_cfg: {{kinematics: {{urdf_path: {root}/{robot}/config.yml}}}}\n",
        f"{robot}/curobo_right.yml": "planner: {}\n",
    }
    for task, code in _TASKS.items():
        files[f"envs/{task}.py"] = f"from ._base_task import *\n\n\nclass {task}(Base_Task):{code}"
    for task, templates in TEMPLATES.items():
        files[f"description/task_instruction/{task}.json"] = json.dumps(templates)
    modules = "mplib/__init__ mplib/sapien_utils toppra torch gymnasium transforms3d trimesh imageio cv2 open3d h5py"
    modules += " curobo/__init__ curobo/wrap/__init__ curobo/wrap/reacher/__init__ curobo/wrap/reacher/motion_gen"
    packages = {f"{name}.py": "" for name in modules.split()}
    packages |= {"sapien/__init__.py": _SAPIEN, "sapien/vulkan_shader/trivial": "", "torch.py": _TORCH}
    for base, contents in ((root, files), (stubs, packages)):
        for name, content in contents.items():
            path = base / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH="{stubs}"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return root, python

"""The simulated state of one task of gym-aloha, and its measurements.

Scene, start pose, distribution of the objects, gripper's scale and reward are gym-aloha's own. Physics steps are taken
here instead of by its environment, which renders three pictures of 480 x 640 in every control step.
"""

from __future__ import annotations

from collections.abc import Collection

import mujoco
import numpy as np
from dm_control.mujoco import Physics
from gym_aloha.constants import ASSETS_DIR
from gym_aloha.tasks import sim

from ..base import ARMS, Body, Contact
from .kinematics import tcp_pose

SUCCESS = 4  # gym-aloha's reward of a fulfilled task


class AlohaScene:
    """A scene of the model file `file` with gym-aloha's `task`, which can be reset any number of times. The
    measurements are those of `in_process.Scene`."""

    def __init__(self, file: str, task: sim.BimanualViperXTask) -> None:
        self._task = task
        self._physics = Physics.from_xml_path(str(ASSETS_DIR / file))
        self.model, self.data = self._physics.model.ptr, self._physics.data.ptr
        model = self.model
        # Bodies without geoms are marks that cameras look at.
        self._names = {body: model.body(body).name for body in range(model.nbody) if model.body_geomnum[body]}
        self._dynamic = {body for body in self._names if model.body_dofnum[body] and model.body_parentid[body] == 0}
        self.robot_links = [body for body, name in self._names.items() if name.startswith("vx300s_")]
        self.fingers = {arm: [model.body(f"vx300s_{arm}/{side}_finger_link").id for side in ARMS] for arm in ARMS}
        self._hands = {arm: model.body(f"vx300s_{arm}/gripper_link").id for arm in ARMS}

    def reset(self, objects: np.ndarray) -> None:
        """Puts the arms in their start pose and the objects at `objects`, the poses (7,) of all in one row."""
        sim.BOX_POSE[0] = objects  # how gym-aloha passes it
        self._task.initialize_episode(self._physics)

    # Stepping and measuring

    def control(self, qpos: np.ndarray) -> None:
        """Sets the drive targets: for each arm six joint angles (rad) and the gripper, (14,)."""
        self._task.before_step(qpos, self._physics)

    def step(self) -> None:
        """One physics step. Until `update`, measurements are those of its beginning, on which its forces act."""
        mujoco.mj_step(self.model, self.data)

    def update(self) -> None:
        """Brings all measurements to the current state, without changing it."""
        mujoco.mj_forward(self.model, self.data)

    def succeeds(self) -> bool:
        return self._task.get_reward(self._physics) == SUCCESS

    def qpos(self) -> np.ndarray:
        return self._task.get_qpos(self._physics)

    def tcp(self, arm: str) -> np.ndarray:
        return tcp_pose(self.data, self._hands[arm])

    def body_id(self, name: str) -> int:
        return self.model.body(name).id

    def bodies(self, of: Collection[int] | None = None) -> dict[int, Body]:
        data = self.data
        return {
            body: Body(name, np.concatenate([data.xpos[body], data.xquat[body]]), body in self._dynamic)
            for body, name in self._names.items()
            if of is None or body in of
        }

    def velocities(self, of: Collection[int] | None = None) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        found, velocity = {}, np.empty(6)  # angular, then linear
        for body in self._names:
            if of is None or body in of:
                mujoco.mj_objectVelocity(self.model, self.data, mujoco.mjtObj.mjOBJ_XBODY, body, velocity, 0)
                found[body] = velocity[3:].copy(), velocity[:3].copy()
        return found

    def contacts(self, of: Collection[int] | None = None) -> list[Contact]:
        model, data = self.model, self.data
        force = np.empty(6)  # along the normal and two tangents, then torques
        found: dict[tuple[int, int], list[np.ndarray]] = {}
        for index, contact in enumerate(data.contact):
            pair = int(model.geom_bodyid[contact.geom[1]]), int(model.geom_bodyid[contact.geom[0]])
            if of is not None and pair[0] not in of and pair[1] not in of:
                continue
            mujoco.mj_contactForce(model, data, index, force)
            axes = contact.frame.reshape(3, 3)  # rows; the first is the normal, from the first geom to the second
            row = [contact.pos, axes[0], model.opt.timestep * force[:3] @ axes, [contact.dist]]
            found.setdefault(pair, []).append(np.concatenate(row))
        tables = {pair: np.stack(rows) for pair, rows in found.items()}
        return [
            Contact(*pair, table[:, :3], table[:, 3:6], table[:, 6:9], table[:, 9])
            for pair, table in tables.items()
            if table[:, 6:9].any()
        ]

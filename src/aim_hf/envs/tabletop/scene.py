"""The physical scene of table, objects and two arms, and its measurements.

It is independent of tasks, actions and cameras. With `visual=False` the scene needs no renderer; the physics is
bitwise the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import sapien
from sapien.wrapper.actor_builder import ActorBuilder
from sapien.wrapper.urdf_loader import URDFLoader

from ..base import ARMS, Body, Contact
from ..poses import axis_rotation
from . import robot
from .kinematics import from_pose

Color = tuple[float, float, float]  # red, green, blue, each 0 .. 1

TABLE_TOP = 0.74
TABLE_HALF_SIZE = (0.60, 0.35, 0.02)
PHYSICS_DT = 1 / 250
DENSITY = 600.0  # kg/m³, of objects: wood

_FRICTION = 1.2
_SIDE_SHADE = 0.72  # factor on the color below a shape's top, so that edges show under the unlit shader
_LID = 0.0006  # m, thickness of the bright top

# A drive's stiffness and damping act on accelerations: critically damped at 60 rad/s.
_ARM_DRIVE = {"stiffness": 3600.0, "damping": 120.0, "force_limit": 60.0, "mode": "acceleration"}
# At most 40 N per finger; each holds a 5 cm cube with 25 N.
_FINGER_DRIVE = {"stiffness": 1000.0, "damping": 40.0, "force_limit": 40.0, "mode": "force"}

_TOUCHING = 0.001  # m: PhysX also reports shapes that are merely close, up to 2 cm

_LARGEST_PUSH_OUT = 1.0  # m/s, so that an object pressed into the table slips away slowly

_PRESS_TOLERANCE = 0.025  # m, across
_REST_SPEED = 0.01  # m/s
_REST_SPIN = 0.2  # rad/s


@dataclass(frozen=True)
class Part:
    """A primitive of a body: a `box` of full extents `size` (3,), or an upright `cylinder` of `size` (radius, height).

    `center` (3,) is in the body's frame. `solid=False`: visible, without collisions.
    """

    shape: str
    size: tuple[float, ...]
    color: Color
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    solid: bool = True

    @property
    def height(self) -> float:
        return self.size[-1]


# SAPIEN's cylinders lie along x.
_UPRIGHT = [np.sqrt(0.5), 0.0, np.sqrt(0.5), 0.0]


class ArmBuilders:
    """Builders of the two arms, which are parsed once from URDF text and built into any number of scenes."""

    def __init__(self, visual: bool) -> None:
        loader = URDFLoader()
        loader.set_scene(sapien.Scene([sapien.physx.PhysxCpuSystem()]))  # a placeholder: `build` sets the real scene
        loader.set_material(_FRICTION, _FRICTION, 0.0)
        self._builders = {}
        with tempfile.TemporaryDirectory() as folder:  # the loader reads only files
            for arm in ARMS:
                path = Path(folder) / f"{arm}.urdf"
                path.write_text(robot.arm_urdf(arm, visual))
                self._builders[arm] = loader.load_file_as_articulation_builder(str(path))

    def build(self, scene: sapien.Scene, arm: str) -> sapien.physx.PhysxArticulation:
        articulation = self._builders[arm].set_scene(scene).build(fix_root_link=True)
        articulation.name = f"{arm}_arm"
        articulation.root_pose = sapien.Pose(robot.BASE_POSITIONS[arm], robot.BASE_QUATERNION)
        for link in articulation.links:
            link.disable_gravity = True
            for shape in link.collision_shapes:
                # Links of one arm never collide with each other: shapes that share a bit of word 2 and the number
                # in word 3 ignore each other.
                shape.set_collision_groups([1, 1, 1, 1 + ARMS.index(arm)])
        for index, joint in enumerate(articulation.active_joints):
            joint.set_drive_properties(**(_ARM_DRIVE if index < 6 else _FINGER_DRIVE))
        return articulation


class TabletopScene:
    """One scene, which is built part by part and then stepped. It measures what `in_process.Scene` does.

    `paint` gives the color that a part of a body has for the color that `add_body` is told; `scale` multiplies the
    sizes of bodies.
    """

    def __init__(
        self,
        builders: ArmBuilders,
        visual: bool,
        paint: Callable[[Color], Color] = lambda color: color,
        scale: float = 1.0,
    ) -> None:
        systems = [sapien.physx.PhysxCpuSystem()]
        if visual:
            systems.append(sapien.render.RenderSystem())
        self.sapien = sapien.Scene(systems)
        self.sapien.set_timestep(PHYSICS_DT)
        self.visual = visual
        self.scale = scale
        self._paint = paint
        self._material = sapien.physx.PhysxMaterial(_FRICTION, _FRICTION, 0.0)
        self._entities: dict[str, sapien.Entity] = {}
        self.table_top = TABLE_TOP
        self.arms = {arm: builders.build(self.sapien, arm) for arm in ARMS}
        self._links = {
            link.entity.per_scene_id: (f"{arm}_{link.name}", link)
            for arm, articulation in self.arms.items()
            for link in articulation.links
        }
        self.fingers = {
            arm: [link.entity.per_scene_id for link in articulation.links if link.name.startswith("finger")]
            for arm, articulation in self.arms.items()
        }

        self.robot_links = list(self._links)
        self._dynamic: dict[str, sapien.physx.PhysxRigidDynamicComponent] = {}
        self._ids: dict[sapien.physx.PhysxBaseComponent, int] = {}

    # Building

    def add_table(self, color: tuple, height_offset: float = 0.0, texture: np.ndarray | None = None) -> None:
        """Adds the table, its top `height_offset` above `TABLE_TOP`. `texture` (H, W, 3) uint8 replaces `color`."""
        self.table_top = TABLE_TOP + height_offset
        builder = self.sapien.create_actor_builder()
        builder.add_box_collision(half_size=TABLE_HALF_SIZE, material=self._material)
        if self.visual:
            material = _render_material(color)
            if texture is not None:
                rgba = np.dstack([texture, np.full(texture.shape[:2], 255, np.uint8)])
                material.base_color_texture = sapien.render.RenderTexture2D(rgba, "R8G8B8A8Unorm")
            builder.add_box_visual(half_size=TABLE_HALF_SIZE, material=material)
        builder.set_initial_pose(sapien.Pose([0, 0, self.table_top - TABLE_HALF_SIZE[2]]))
        self._entities["table"] = builder.build_static("table")

    def add_floor(self, color: tuple) -> None:
        """Adds the floor, which is the background of pictures and stops falling objects."""
        half_size = (4.0, 4.0, 0.05)
        builder = self.sapien.create_actor_builder()
        builder.add_box_collision(half_size=half_size, material=self._material)
        if self.visual:
            builder.add_box_visual(half_size=half_size, material=_render_material(color))
        builder.set_initial_pose(sapien.Pose([0, 0, -half_size[2]]))
        self._entities["floor"] = builder.build_static("floor")

    def add_body(
        self,
        name: str,
        parts: list[Part],
        x: float,
        y: float,
        yaw: float = 0.0,
        dynamic: bool = True,
        density: float = DENSITY,
        friction: float = _FRICTION,
    ) -> None:
        """Adds a body of primitives that stands on the table at (x, y). The origin of its frame, to which each part's
        `center` refers, is the center of its bottom. The friction between two bodies is the mean of their `friction`.

        Raises ValueError if the name is taken.
        """
        if name in self._entities:
            raise ValueError(f"name={name!r} is taken in this scene: give each body a name of its own.")
        material = self._material
        if friction != _FRICTION:
            material = sapien.physx.PhysxMaterial(friction, friction, 0.0)
        builder = self.sapien.create_actor_builder()
        for part in (self._changed(part) for part in parts):
            if part.solid:
                pose, size = _geometry(part, part.height, 0.0)
                common = {"pose": pose, "material": material, "density": density}
                if part.shape == "box":
                    builder.add_box_collision(half_size=size, **common)
                else:
                    builder.add_cylinder_collision(radius=size[0], half_length=size[1], **common)
            if self.visual:
                shade = tuple(_SIDE_SHADE * channel for channel in part.color)
                _add_visual(builder, part, part.height, 0.0, shade)
                _add_visual(builder, part, _LID, part.height / 2, part.color)
        builder.set_initial_pose(sapien.Pose([x, y, self.table_top], axis_rotation(2, yaw)))
        entity = self._entities[name] = builder.build(name) if dynamic else builder.build_static(name)
        if dynamic:
            component = entity.find_component_by_type(sapien.physx.PhysxRigidDynamicComponent)
            self._dynamic[name] = component
            component.max_depenetration_velocity = _LARGEST_PUSH_OUT

    def _changed(self, part: Part) -> Part:
        size, center = (tuple(self.scale * number for number in of) for of in (part.size, part.center))
        return replace(part, size=size, center=center, color=self._paint(part.color))

    # Stepping and measuring

    def step(self) -> None:
        self.sapien.step()

    def body_id(self, name: str) -> int:
        return self._entities[name].per_scene_id

    def pose(self, name: str) -> np.ndarray:
        """The pose (7,) of a body by name."""
        return from_pose(self._entities[name].pose)

    def tcp(self, arm: str) -> np.ndarray:
        return from_pose(self.arms[arm].links[6].entity.pose)

    def gripper(self, arm: str) -> float:
        """The measured opening of an arm's gripper, 0 closed .. 1 open."""
        return float(np.clip(self.arms[arm].qpos[6:].mean() / robot.FINGER_STROKE, 0.0, 1.0))

    def qpos(self) -> np.ndarray:
        return np.concatenate([[*self.arms[arm].qpos[:6], self.gripper(arm)] for arm in ARMS], dtype=np.float64)

    def bodies(self, of: Collection[int] | None = None) -> dict[int, Body]:
        found = {}
        for name, entity in self._entities.items():
            body_id = entity.per_scene_id
            if of is None or body_id in of:
                found[body_id] = Body(name, from_pose(entity.pose), name in self._dynamic)
        for body_id, (name, link) in self._links.items():
            if of is None or body_id in of:
                found[body_id] = Body(name, from_pose(link.entity.pose), False)
        return found

    def velocities(self, of: Collection[int] | None = None) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        found = {}
        for name, entity in self._entities.items():
            if of is None or entity.per_scene_id in of:
                still = (np.zeros(3), np.zeros(3))
                found[entity.per_scene_id] = _velocity(self._dynamic[name]) if name in self._dynamic else still
        for body_id, (_, link) in self._links.items():
            if of is None or body_id in of:
                found[body_id] = _velocity(link)
        return found

    def contacts(self, of: Collection[int] | None = None) -> list[Contact]:
        found = []
        for contact in self.sapien.get_contacts():
            first, second = (self._body_id(component) for component in contact.bodies)
            if of is not None and first not in of and second not in of:
                continue
            points = [(point, point.impulse) for point in contact.points]
            pushing = [impulse.any() for _, impulse in points]
            if any(pushing):
                rows = [
                    np.concatenate([point.position, point.normal, impulse, [point.separation]], dtype=np.float64)
                    for (point, impulse), pushes in zip(points, pushing)
                    if pushes or point.separation < _TOUCHING
                ]
                table = np.stack(rows)
                found.append(Contact(first, second, table[:, :3], table[:, 3:6], table[:, 6:9], table[:, 9]))
        return found

    def _body_id(self, component: sapien.physx.PhysxBaseComponent) -> int:
        """The id of a component's body. It is cached, because reading it takes as long as reading a contact."""
        if component not in self._ids:
            self._ids[component] = component.entity.per_scene_id
        return self._ids[component]

    # For success checks

    def touching(self, name: str, others: list[int]) -> list[Contact]:
        """The contacts between a body and any of the bodies with the ids `others`."""
        own = self.body_id(name)
        contacts = self.contacts([own])
        return [contact for contact in contacts if contact.body_a in others or contact.body_b in others]

    def is_pressed(self, name: str, top: np.ndarray) -> bool:
        """Whether closed fingers touch the body near the point `top` (3,) on it."""
        for arm, fingers in self.fingers.items():
            if self.gripper(arm) < 0.3:
                for contact in self.touching(name, fingers):
                    offsets = contact.points - top
                    near = np.linalg.norm(offsets[:, :2], axis=1) < _PRESS_TOLERANCE
                    if np.any(near & (offsets[:, 2] > -0.012)):
                        return True
        return False

    def is_left(self, name: str) -> bool:
        """Whether no finger touches the body, and it is at rest."""
        if self.touching(name, self.fingers["left"] + self.fingers["right"]):
            return False
        linear, angular = _velocity(self._dynamic[name])
        return bool(np.linalg.norm(linear) < _REST_SPEED and np.linalg.norm(angular) < _REST_SPIN)

    def tilt(self, name: str) -> float:
        """The angle (rad) between the body's z and the world's."""
        _, x, y, _ = self.pose(name)[3:]
        return float(np.arccos(np.clip(1 - 2 * (x * x + y * y), -1, 1)))


def _velocity(component: sapien.physx.PhysxRigidBodyComponent) -> tuple[np.ndarray, np.ndarray]:
    linear, angular = component.linear_velocity, component.angular_velocity
    return np.asarray(linear, dtype=np.float64), np.asarray(angular, dtype=np.float64)


def _render_material(color: tuple) -> sapien.render.RenderMaterial:
    return sapien.render.RenderMaterial(base_color=[*color, 1.0])


def _geometry(part: Part, height: float, lift: float) -> tuple[sapien.Pose, tuple[float, ...]]:
    """Pose and SAPIEN's half sizes of a part with the given height, its center raised by `lift`."""
    center = np.array(part.center) + [0, 0, lift]
    if part.shape == "box":
        return sapien.Pose(center), (part.size[0] / 2, part.size[1] / 2, height / 2)
    if part.shape == "cylinder":
        return sapien.Pose(center, _UPRIGHT), (part.size[0], height / 2)
    raise ValueError(f"shape={part.shape!r} is unknown: use 'box' or 'cylinder'.")


def _add_visual(builder: ActorBuilder, part: Part, height: float, lift: float, color: tuple) -> None:
    pose, size = _geometry(part, height, lift)
    if part.shape == "box":
        builder.add_box_visual(pose=pose, half_size=size, material=_render_material(color))
    else:
        builder.add_cylinder_visual(pose=pose, radius=size[0], half_length=size[1], material=_render_material(color))

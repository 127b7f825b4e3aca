"""Detects the contact events of an episode during simulation: picks, places, presses, pushes and insertions.

`EventDetector` checks the contacts 21 times a second (4 times while every closing gripper holds a body): shorter
contacts are no events, and checking every physics step would take a third of the simulation time. It depends only on
the environment protocol.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..envs.base import Contact, Environment
from ..envs.poses import rotation_matrix
from .render import Event

CHECK_SECONDS = 0.048  # s of simulated time between two checks of the contacts
CHECK_SECONDS_HOLDING = 0.24  # the same while every closing gripper already holds a body
HOLD_CHECKS = 2  # consecutive checks that a grasp, a rest or a release must last
MIN_FORCE = 0.2  # N, of each finger on a held body, and of a finger on a pressed or pushed body
OPPOSITE = -0.5  # largest cosine between the forces of two fingers that grasp: 120 degrees apart
# A body is at rest if it moves more slowly than this between checks. Instantaneous velocities are no measure: the
# simulator reports several cm/s for a light block that rests on a stack.
REST_SPEED = 0.01  # m/s
REST_SPIN = 0.2  # rad/s


@dataclass
class _Touch:
    """One finger on one body: its normal force (N), without friction, and the contact points."""

    push: np.ndarray
    points: list[np.ndarray]


@dataclass(frozen=True)
class MadeContact:
    """An event of an episode in progress.

    kind, arm, frame: as in `Event`; a frame is a control step.
    first_frame: the first frame after its first touch, which is `frame` for a pick or place.
    body: id of the picked, placed, pressed, pushed or inserted body.
    points (num_points, 3) float64: world coordinates (m) of the contact points, with the body at its pose in the frame
        before `first_frame`, as in a value map.
    """

    kind: str
    arm: str
    frame: int
    first_frame: int
    body: int
    points: np.ndarray


@dataclass
class _Touched:
    """A touch of a body, such as a target that is being pressed, pushed or filled.

    made: the event, as if it ended with the first touch.
    on: the touched body.
    points: contact points of the first touch, in the coordinates of `on`.
    pose: of `on` at the last check.
    free_checks: checks since it was last touched or moving.
    """

    made: MadeContact
    on: int
    points: np.ndarray
    pose: np.ndarray
    free_checks: int = 0


class EventDetector:
    """Finds the events of one episode.

        detector = EventDetector(env)              # after env.reset(seed)
        env.on_physics_step.append(detector)
        detector.add_frame(env, action)            # before each action, and after the last action with None

    pick: both fingers of an arm push the same movable body from opposite sides for `HOLD_CHECKS` checks. The arm must
        release the body before it can pick it again.
    place: no finger touches a picked body, which rests for `HOLD_CHECKS` checks on a body outside the robot, or is
        carried by one at the end of the episode. The arm of the event is the last arm that touched it.
    press, push: a closed finger pushes one of the task's press or push targets, and lets go of it. Like a place, the
        event happens when no finger of the arm has touched the target for `HOLD_CHECKS` checks, in which it rested, or
        at the end of the episode. Its points are those of the first touch: a map shows them as long as the push lasts.
        A target that is pushed again has another event.
    insert: a picked body pushes one of the task's insert targets, until they part, the fingers let go of the body or
        the episode ends. The arm of the event is the one that carries the body, and the points are on the target,
        which has one event.

    `made`: the events so far, in time order.
    """

    def __init__(self, env: Environment) -> None:
        self.arm_of = {finger: arm for arm, fingers in env.fingers().items() for finger in fingers}
        self.robot = set(env.robot_links())
        self.targets = {body: kind for body, kind in env.targets().items() if kind != "insert"}
        self.to_fill = env.targets().keys() - self.targets.keys()  # insert targets that are still empty
        self.touched: dict[int, _Touched] = {}  # the targets whose press, push or insertion has begun
        self.check_steps = round(CHECK_SECONDS / env.physics_dt)
        self.check_steps_holding = round(CHECK_SECONDS_HOLDING / env.physics_dt)
        bodies = env.bodies()
        self.names = {body: state.name for body, state in bodies.items()}
        self.moving = {body for body, state in bodies.items() if state.dynamic}
        self.movable = self.moving - self.targets.keys()
        self.start = {body: state.pose for body, state in bodies.items()}
        self.poses: list[dict[int, np.ndarray]] = []  # of the moving bodies, in each frame
        self.closed: set[str] = set()  # arms whose gripper is commanded to be closed
        self.gripping: set[str] = set()  # arms whose gripper isn't commanded to be fully open
        self.steps = 0  # physics steps so far
        self.grasp_checks: dict[tuple[str, int], int] = {}  # (arm, body): checks since it is gripped
        self.free_checks: dict[tuple[str, int], int] = {}  # (arm, body) picked: checks since a finger last touched it
        self.carrier: dict[int, str] = {}  # body picked and not yet placed -> the last arm that touched it
        # Body in `carrier` -> the pose where its rest began, and the number of checks since.
        self.rest: dict[int, tuple[np.ndarray, int]] = {}
        # Kind, arm, frame, body, and the points in body coordinates.
        self.found: list[tuple[str, str, int, int, np.ndarray]] = []
        self.made: list[MadeContact] = []  # of `found`

    def add_frame(self, env: Environment, action: np.ndarray | None) -> None:
        """Records the bodies' poses in a frame, and which grippers the next action (16,) closes; None concludes
        the episode."""
        if action is None:
            self.conclude(env)
        self.poses.append({body: state.pose for body, state in env.bodies(self.moving).items()})
        if action is not None:
            grippers = {"left": action[7], "right": action[15]}
            self.closed = {arm for arm, gripper in grippers.items() if gripper < 0.5}
            self.gripping = {arm for arm, gripper in grippers.items() if gripper < 1}

    def before_step(self, env: Environment, grippers: tuple[float, float]) -> None:
        """`add_frame` for an action of which the left and right gripper are known, 0 closed .. 1 open."""
        action = np.zeros(16)
        action[[7, 15]] = grippers
        self.add_frame(env, action)

    def __call__(self, env: Environment) -> None:
        """Checks the contacts, if due. Called after every physics step."""
        if not self.poses:  # a demonstration that begins with a recovery: its mistake isn't watched
            return
        self.steps += 1
        if self.steps % self.check_steps:
            return
        holding, carrying = {arm for arm, _ in self.free_checks}, set(self.carrier.values())
        if not (self.gripping or holding or carrying or self.touched):
            return
        settled = self.gripping == holding and carrying <= holding and not (self.to_fill or self.touched)
        if settled and self.steps % self.check_steps_holding:
            return
        touches = self._touches(env)
        self._find_picks(env, touches)
        self._find_presses_and_pushes(env, touches)
        self._find_insertions(env)
        self._find_ends_of_touches(env, touches)
        self._find_places(env, {body for _, body in touches})

    def conclude(self, env: Environment) -> None:
        """Checks once more at the end of the episode, which may end with its last contact: a press, push or insertion
        that lasts, or a place before the body rests, as a mug that still swings on its peg."""
        touches = self._touches(env)
        self._find_presses_and_pushes(env, touches)
        self._find_insertions(env)
        for target in list(self.touched):
            self._add(self.touched.pop(target))
        for _ in range(1 + HOLD_CHECKS):  # the first may begin a rest
            self._find_places(env, {body for _, body in touches})

    def events(self) -> list[Event]:
        """The events so far in time order, with the poses of their bodies in the frames so far."""
        return [
            Event(
                kind=kind,
                arm=arm,
                frame=frame,
                body_name=self.names[body],
                points=points.astype(np.float32),
                body_pose=np.array([poses.get(body, self.start[body]) for poses in self.poses], dtype=np.float32),
            )
            for kind, arm, frame, body, points in self.found
        ]

    def _touches(self, env: Environment) -> dict[tuple[str, int], dict[int, _Touch]]:
        """The fingers' contacts: (arm, body) -> finger -> touch. Sorted: the simulator's order is arbitrary."""
        touches: dict[tuple[str, int], dict[int, _Touch]] = {}
        for contact in env.contacts(self.arm_of):
            for finger, body, sign in ((contact.body_a, contact.body_b, -1), (contact.body_b, contact.body_a, 1)):
                if finger in self.arm_of and body not in self.robot:
                    along = np.einsum("pi,pi->p", contact.impulses, contact.normals) @ contact.normals
                    fingers = touches.setdefault((self.arm_of[finger], body), {})
                    touch = fingers.setdefault(finger, _Touch(np.zeros(3), []))
                    touch.push += sign / env.physics_dt * along
                    touch.points.extend(contact.points)
        return dict(sorted(touches.items()))

    def _find_picks(self, env: Environment, touches: dict[tuple[str, int], dict[int, _Touch]]) -> None:
        for key in list(self.free_checks):
            self.free_checks[key] = 0 if key in touches else self.free_checks[key] + 1
            if self.free_checks[key] >= HOLD_CHECKS:
                del self.free_checks[key]
        gripped = [key for key, fingers in touches.items() if key[1] in self.movable and _oppose(fingers)]
        self.grasp_checks = {key: self.grasp_checks.get(key, 0) + 1 for key in gripped}
        for (arm, body), checks in self.grasp_checks.items():
            if checks >= HOLD_CHECKS and (arm, body) not in self.free_checks:
                self.free_checks[arm, body] = 0
                self.carrier[body] = arm
                points = [point for touch in touches[arm, body].values() for point in touch.points]
                self._add(self._touched_now(env, "pick", arm, body, points))
        for arm, body in touches:
            if body in self.carrier:
                self.carrier[body] = arm

    def _find_presses_and_pushes(self, env: Environment, touches: dict[tuple[str, int], dict[int, _Touch]]) -> None:
        for (arm, body), fingers in touches.items():
            if body in self.targets.keys() - self.touched.keys() and arm in self.closed:
                if max(np.linalg.norm(touch.push) for touch in fingers.values()) > MIN_FORCE:
                    points = [point for touch in fingers.values() for point in touch.points]
                    self.touched[body] = self._touched_now(env, self.targets[body], arm, body, points)

    def _find_insertions(self, env: Environment) -> None:
        for contact in env.contacts(self.to_fill) if self.to_fill and self.carrier else []:
            for body, target in ((contact.body_a, contact.body_b), (contact.body_b, contact.body_a)):
                force = np.linalg.norm(contact.impulses.sum(axis=0)) / env.physics_dt
                if body in self.carrier and target in self.to_fill and force > MIN_FORCE:
                    self.to_fill.remove(target)
                    points, arm = list(contact.points), self.carrier[body]
                    self.touched[target] = self._touched_now(env, "insert", arm, target, points, body)

    def _find_ends_of_touches(self, env: Environment, touches: dict[tuple[str, int], dict[int, _Touch]]) -> None:
        seconds = self.check_steps * env.physics_dt
        for target, touched in list(self.touched.items()):
            pose, before = env.bodies([target])[target].pose, touched.pose
            touched.pose = pose
            made = touched.made
            if made.kind == "insert":
                held = made.body in {body for _, body in touches}
                pairs = [{contact.body_a, contact.body_b} for contact in env.contacts([target])]
                lasts = held and {made.body, target} in pairs
            else:
                lasts = (made.arm, target) in touches or not _is_near(pose, before, seconds)
            touched.free_checks = 0 if lasts else touched.free_checks + 1
            if touched.free_checks >= HOLD_CHECKS:
                self._add(self.touched.pop(target))

    def _find_places(self, env: Environment, touched: set[int]) -> None:
        free = self.carrier.keys() - touched
        self.rest = {body: rest for body, rest in self.rest.items() if body in free}
        bodies, contacts = (env.bodies(free), env.contacts(free)) if free else ({}, [])
        seconds = (HOLD_CHECKS - 1) * self.check_steps * env.physics_dt
        for body in sorted(free):
            pose, support = bodies[body].pose, self._support(body, contacts)
            start, checks = self.rest.get(body, (pose, 0))
            resting = support is not None and _is_near(pose, start, seconds)
            self.rest[body] = (start, checks + 1) if resting else (pose, 0)
            if self.rest[body][1] >= HOLD_CHECKS:
                arm = self.carrier.pop(body)
                del self.rest[body]
                points = [
                    point
                    for contact in contacts
                    if {contact.body_a, contact.body_b} == {body, support}
                    for point in contact.points
                ]
                self._add(self._touched_now(env, "place", arm, support, points, body))

    def _support(self, body: int, contacts: list[Contact]) -> int | None:
        """The body, other than the robot, that carries most of the weight of `body`; None without one."""
        lift: dict[int, float] = {}
        for contact in contacts:
            for other, below, sign in ((contact.body_a, contact.body_b, 1), (contact.body_b, contact.body_a, -1)):
                if other == body and below not in self.robot:
                    lift[below] = lift.get(below, 0.0) + sign * contact.impulses[:, 2].sum()
        support = max(lift, key=lift.get, default=None)
        return support if support is not None and lift[support] > 0 else None

    def _touched_now(
        self, env: Environment, kind: str, arm: str, on: int, points: list[np.ndarray], moved: int | None = None
    ) -> _Touched:
        """A touch of the body `on` at world points. `moved`: the placed or inserted body."""
        pose, before = env.bodies([on])[on].pose, self.poses[-1].get(on, self.start[on])
        local = (np.array(sorted(map(tuple, points))) - pose[:3]) @ rotation_matrix(pose[3:])
        world = local @ rotation_matrix(before[3:]).T + before[:3]
        now = len(self.poses)
        made = MadeContact(kind, arm, now, now, on if moved is None else moved, world)
        return _Touched(made, on, local, pose)

    def _add(self, touched: _Touched) -> None:
        """Adds the event of a touch that ends in this frame."""
        made = replace(touched.made, frame=len(self.poses))
        self.made.append(made)
        self.found.append((made.kind, made.arm, made.frame, touched.on, touched.points))


def _is_near(pose: np.ndarray, other: np.ndarray, seconds: float) -> bool:
    """Whether a body at rest can move from one pose to the other in `seconds`."""
    shift = np.linalg.norm(pose[:3] - other[:3])
    turn = 2 * np.arccos(min(1.0, abs(float(pose[3:] @ other[3:]))))
    return bool(shift < REST_SPEED * seconds and turn < REST_SPIN * seconds)


def _oppose(fingers: dict[int, _Touch]) -> bool:
    """Whether two fingers push a body from opposite sides, each with more than `MIN_FORCE`."""
    if len(fingers) < 2:
        return False
    first, second = (touch.push for touch in fingers.values())
    strength = np.linalg.norm(first), np.linalg.norm(second)
    return min(strength) > MIN_FORCE and first @ second < OPPOSITE * strength[0] * strength[1]

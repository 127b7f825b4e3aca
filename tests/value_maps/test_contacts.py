"""Events: from contacts given step by step, and from the real simulator."""

import numpy as np
import pytest

from aim_hf.envs import make_environment
from aim_hf.envs.base import ARMS, Body, Contact
from aim_hf.envs.demonstration import perturbation
from aim_hf.envs.poses import rotation_matrix
from aim_hf.value_maps.contacts import CHECK_SECONDS, HOLD_CHECKS, EventDetector
from aim_hf.value_maps.render import TOGETHER

LEFT, RIGHT, PALM, TABLE, BLOCK, BELL, KNOB, TUBE = (1, 2), (3, 4), 5, 10, 11, 12, 13, 14
WIDE, LOOSE, CLOSED = np.ones(16), np.full(16, 0.9), np.zeros(16)  # what the grippers are told
STILL, MOVING = np.zeros(3), np.array([0, 0, -0.05])  # m/s


class Contacts:
    """The part of the environment protocol that the detector reads, with contacts set by hand."""

    physics_dt = 1 / 250

    def __init__(self):
        self.block, self.motion, self.now = np.array([0.1, 0.2, 0.3, np.sqrt(0.5), 0, 0, np.sqrt(0.5)]), STILL, []
        self.target, self.target_motion = np.array([0, 0, 0, 1.0, 0, 0, 0]), STILL

    def fingers(self):
        return {"left": list(LEFT), "right": list(RIGHT)}

    def robot_links(self):
        return [*LEFT, *RIGHT, PALM]

    def targets(self):
        return {BELL: "press", KNOB: "push", TUBE: "insert"}

    def bodies(self, of=None):
        here = np.array([0, 0, 0, 1.0, 0, 0, 0])
        links = {link: Body(f"link_{link}", here, False) for link in self.robot_links()}
        still = {TABLE: Body("table", here, False)}
        targets = {BELL: Body("bell", self.target, True), KNOB: Body("knob", self.target, True)}
        moving = {BLOCK: Body("block", self.block, True), TUBE: Body("tube", here, True)}
        bodies = links | still | targets | moving
        return {body: state for body, state in bodies.items() if of is None or body in of}

    def contacts(self, of):
        return [contact for contact in self.now if contact.body_a in of or contact.body_b in of]


def push(first: int, second: int, force: tuple, at: tuple = (0, 0, 0)) -> Contact:
    """A contact that pushes `first` with `force` (N)."""
    impulse = np.array([force], dtype=float) * Contacts.physics_dt
    normal = impulse / np.linalg.norm(impulse)
    return Contact(first, second, np.array([at], dtype=float), normal, impulse, np.array([-1e-4]))


def grip(fingers=LEFT, force=5.0) -> list[Contact]:
    """The second finger's contact lists the block last: its force is the opposite of what the block gets."""
    first, second = fingers
    return [push(BLOCK, first, (force, 0, 0), (0, 0.2, 0.3)), push(second, BLOCK, (force, 0, 0), (0.2, 0.2, 0.3))]


REST = [push(BLOCK, TABLE, (0, 0, 1), at) for at in ((0, 0, 0), (0.1, 0, 0), (0, 0.1, 0), (0.1, 0.1, 0))]


class Episode:
    """Drives a detector through stretches of the same contacts."""

    def __init__(self):
        self.env = Contacts()
        self.detector = EventDetector(self.env)
        self.add_frame()

    def add_frame(self, action=LOOSE):
        self.detector.add_frame(self.env, action)

    def run(self, contacts, checks=HOLD_CHECKS):
        self.env.now = contacts
        for _ in range(checks * round(CHECK_SECONDS / self.env.physics_dt)):
            self.env.block = np.concatenate(
                [self.env.block[:3] + self.env.motion * self.env.physics_dt, self.env.block[3:]]
            )
            self.env.target = np.concatenate(
                [self.env.target[:3] + self.env.target_motion * self.env.physics_dt, self.env.target[3:]]
            )
            self.detector(self.env)
        return self

    def kinds(self):
        return [(event.kind, event.arm, event.body_name) for event in self.detector.events()]


@pytest.fixture
def episode():
    return Episode()


def test_a_pick_is_a_lasting_grip_from_both_sides(episode):
    episode.run(grip(), HOLD_CHECKS - 1)
    assert episode.kinds() == []
    episode.run(grip(), 1)
    assert episode.kinds() == [("pick", "left", "block")]
    event = episode.detector.events()[0]
    assert event.frame == 1, "the first frame after it"
    # The block's x points along the world's y: its frame sees the fingers along its own y.
    np.testing.assert_allclose(event.points[event.points[:, 1].argsort()], [[0, -0.1, 0], [0, 0.1, 0]], atol=1e-6)


@pytest.mark.parametrize(
    "contacts",
    [
        grip(force=0.1),
        grip()[:1],
        [push(BLOCK, LEFT[0], (5, 0, 0)), push(BLOCK, LEFT[1], (5, 0, 0))],
        [push(BLOCK, LEFT[0], (5, 0, 0)), push(BLOCK, RIGHT[0], (-5, 0, 0))],
        [push(TABLE, LEFT[0], (5, 0, 0)), push(TABLE, LEFT[1], (-5, 0, 0))],
    ],
    ids=["weak", "one finger", "same side", "two arms' fingers", "not movable"],
)
def test_what_is_no_pick(episode, contacts):
    assert episode.run(contacts, 3 * HOLD_CHECKS).kinds() == []


def test_a_gripper_that_is_told_to_be_wide_open_holds_nothing(episode):
    episode.add_frame(WIDE)
    assert episode.run(grip()).kinds() == []
    episode.add_frame(LOOSE)
    assert episode.run(grip()).kinds() == [("pick", "left", "block")]


def test_a_grip_that_flickers_is_one_pick_and_one_after_a_release_another(episode):
    for _ in range(4):
        episode.run(grip()).run(grip()[:1], 1).run([], HOLD_CHECKS - 1)
    assert len(episode.kinds()) == 1
    assert episode.run([], 1).run(grip()).kinds() == [("pick", "left", "block")] * 2


def test_friction_does_not_hide_that_fingers_oppose(episode):
    contacts = grip()
    for contact in contacts:  # what carries the block, larger than what squeezes it
        contact.impulses[:, 2] += 2 * abs(contact.impulses[:, 0]) * (1 if contact.body_a == BLOCK else -1)
    assert episode.run(contacts).kinds() == [("pick", "left", "block")]


def test_a_place_is_lasting_rest_on_a_support_free_of_fingers(episode):
    episode.run(grip())
    episode.run(grip() + REST, 3 * HOLD_CHECKS)
    assert episode.kinds()[1:] == [], "still held"
    episode.env.motion = MOVING
    episode.run(REST, 3 * HOLD_CHECKS)
    assert episode.kinds()[1:] == [], "still moving"
    episode.env.motion = STILL
    episode.run([], 3 * HOLD_CHECKS)
    assert episode.kinds()[1:] == [], "in the air"
    episode.run([push(BLOCK, PALM, (0, 0, 1))], 3 * HOLD_CHECKS)
    assert episode.kinds()[1:] == [], "on the robot"
    episode.add_frame()
    episode.run(REST, 3 * HOLD_CHECKS)
    assert episode.kinds()[1:] == [("place", "left", "table")]
    place = episode.detector.events()[1]
    assert place.frame == 2 and len(place.points) == 4


@pytest.mark.parametrize(
    ("contacts", "expected"),
    [(REST, [("place", "left", "table")]), ([], []), (grip() + REST, []), ([push(BLOCK, PALM, (0, 0, 1))], [])],
    ids=["carried", "in the air", "held", "on the robot"],
)
def test_the_end_of_an_episode_places_a_body_that_is_carried_but_does_not_rest(episode, contacts, expected):
    episode.run(grip())
    episode.env.motion = MOVING
    episode.add_frame()
    episode.run(contacts, 3 * HOLD_CHECKS)
    assert episode.kinds()[1:] == []
    episode.add_frame(None)
    assert episode.kinds()[1:] == expected
    assert all(event.frame == 2 < len(event.body_pose) for event in episode.detector.events()[1:]), "the last frame"


def test_what_was_never_picked_is_not_placed(episode):
    assert episode.run(REST, 3 * HOLD_CHECKS).kinds() == []


def test_after_a_handover_the_second_arm_places(episode):
    right_alone = np.concatenate([WIDE[:8], LOOSE[8:]])
    episode.run(grip()).run(grip() + grip(RIGHT)).add_frame(right_alone)
    episode.run(grip(RIGHT)).add_frame(WIDE)
    episode.run(REST)
    assert episode.kinds() == [("pick", "left", "block"), ("pick", "right", "block"), ("place", "right", "table")]


@pytest.mark.parametrize(("kind", "target", "body"), [("press", BELL, "bell"), ("push", KNOB, "knob")])
def test_a_press_or_a_push_lasts_until_the_closed_finger_lets_go_of_a_body_at_rest(episode, kind, target, body):
    touch = [push(target, LEFT[0], (0, 0, -1), (0.3, 0.1, 0.2))]
    assert episode.run(touch, 5).run([], 5).kinds() == [], "open"
    episode.add_frame(CLOSED)
    episode.run([push(BLOCK, LEFT[0], (0, 0, -1))], 5)
    assert episode.kinds() == [], "no target"
    episode.run([push(target, LEFT[0], (0, 0, -0.1))], 5).run([], 5)
    assert episode.kinds() == [], "weak"
    episode.run(touch, 1).run([push(target, LEFT[0], (0, 0, -0.1), (0.4, 0.1, 0.2))], 5).run([], HOLD_CHECKS - 1)
    episode.run(touch, 1)
    assert episode.kinds() == [], "touched"
    episode.env.target_motion = np.array([0.1, 0, 0])
    episode.run([], 5)
    assert episode.kinds() == [], "it still moves by itself"
    episode.env.target_motion = STILL
    episode.add_frame(WIDE)
    episode.run([], HOLD_CHECKS)
    assert episode.kinds() == [(kind, "left", body)]
    (event,) = episode.detector.events()
    assert event.frame == 3
    np.testing.assert_allclose(event.points, [[0.3, 0.1, 0.2]], rtol=1e-6, err_msg="of the first touch, on the body")
    episode.add_frame(CLOSED)
    assert episode.run(touch, 5).run([], 5).kinds() == 2 * [(kind, "left", body)], "again"


def test_a_press_that_lasts_ends_with_the_episode(episode):
    episode.add_frame(CLOSED)
    episode.run([push(BELL, LEFT[0], (0, 0, -1))], 5).add_frame(CLOSED)
    assert episode.kinds() == []
    episode.add_frame(None)
    assert episode.kinds() == [("press", "left", "bell")]
    assert episode.detector.events()[0].frame == 3


def test_an_insertion_lasts_while_the_held_body_is_on_its_target(episode):
    touch = [push(BLOCK, TUBE, (-1, 0, 0), (0.3, 0.1, 0.2))]
    assert episode.run(touch, 5).kinds() == [], "not held"
    episode.run(grip())
    episode.run(grip() + [push(BLOCK, TUBE, (-0.1, 0, 0))], 5)
    assert episode.kinds()[1:] == [], "weak"
    episode.add_frame()
    episode.run(grip() + touch, 5)
    assert episode.kinds()[1:] == [], "not over"
    episode.add_frame()
    episode.run(touch, HOLD_CHECKS)
    assert episode.kinds()[1:] == [("insert", "left", "tube")], "the fingers let go of it"
    (insertion,) = episode.detector.events()[1:]
    assert insertion.frame == 3
    np.testing.assert_allclose(insertion.points, [[0.3, 0.1, 0.2]], rtol=1e-6)
    episode.run(grip()).run(grip() + touch, 5).run(grip(), 5)
    assert episode.kinds()[2:] == [("pick", "left", "block")], "one event a target"


def test_an_insertion_ends_where_the_bodies_part(episode):
    episode.run(grip()).run(grip() + [push(BLOCK, TUBE, (-1, 0, 0))], 1).run(grip(), HOLD_CHECKS)
    assert episode.kinds()[1:] == [("insert", "left", "tube")]


def test_a_target_is_not_picked(episode):
    episode.run([push(KNOB, LEFT[0], (5, 0, 0)), push(KNOB, LEFT[1], (-5, 0, 0))], 3 * HOLD_CHECKS)
    assert episode.kinds() == []


def test_order_of_contacts_does_not_matter():
    both = [*grip(), *grip(RIGHT)]
    first, second = Episode().run(both), Episode().run(both[::-1])
    assert first.kinds() == second.kinds() == [("pick", "left", "block"), ("pick", "right", "block")]
    for one, other in zip(first.detector.events(), second.detector.events(), strict=True):
        assert np.array_equal(one.points, other.points)


def test_poses_are_those_of_each_frame(episode):
    poses = []
    for frame in range(4):
        episode.env.block = episode.env.block + [0.01, 0, 0, 0, 0, 0, 0]
        episode.add_frame()
        poses.append(episode.env.block)
        if frame == 1:
            episode.run(grip())
    event = episode.detector.events()[0]
    assert event.body_pose.shape == (5, 7) and event.frame == 3
    np.testing.assert_allclose(event.body_pose[1:], poses, rtol=1e-6)


@pytest.mark.parametrize(("split", "seed"), [("easy", 0), ("hard", 1)])
@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("click_bell", ["press bell"]),
        ("place_a2b_left", ["pick cube", "place table"]),
        ("place_a2b_right", ["pick cube", "place table"]),
        ("stack_blocks_two", ["pick red_cube", "place table", "pick green_cube", "place red_cube"]),
        ("lift_pot", ["pick pot", "pick pot"]),
        ("handover_block", ["pick block", "pick block", "place pad"]),
        ("press_stapler", ["press stapler"]),
        ("turn_switch", ["push knob"]),
        ("move_pillbottle_pad", ["pick bottle", "place pad"]),
        ("pick_dual_bottles", ["pick left_bottle", "pick right_bottle"]),
        (
            "stack_blocks_three",
            [
                *("pick red_cube", "place table", "pick green_cube", "place red_cube"),
                *("pick blue_cube", "place green_cube"),
            ],
        ),
        (
            "blocks_ranking_rgb",
            ["pick red_cube", "place table", "pick green_cube", "place table", "pick blue_cube", "place table"],
        ),
    ],
)
def test_the_experts_events_are_those_of_the_task(task, expected, split, seed):
    env = make_environment("tabletop", task, split, render=False)
    env.reset(seed)
    detector = EventDetector(env)
    env.on_physics_step.append(detector)
    path = env.expert()
    tools = []
    for action in [*path.actions, None]:
        seen = len(detector.made)
        detector.add_frame(env, action)
        assert {made.kind for made in detector.made[seen:]} <= {"press", "push"}, "the end adds no others"
        tools.append({arm: env.tcp(arm)[:3] for arm in ARMS})
        if action is not None:
            env.step(action, observe=False)
    events = detector.events()
    found = [f"{event.kind} {event.body_name}" for event in events]
    if task in ("lift_pot", "pick_dual_bottles"):
        assert sorted(event.arm for event in events) == ["left", "right"]
        assert abs(events[0].frame - events[1].frame) <= TOGETHER, "both are shown in one map"
        found.sort()
    assert found == expected
    for event in events:
        assert min(abs(event.frame - step) for step in path.key_steps) <= 4, "an event happens at a key step"
        pose = event.body_pose[event.frame]
        contact = pose[:3] + rotation_matrix(pose[3:]) @ event.points.mean(axis=0)
        distance = {arm: np.linalg.norm(tool - contact) for arm, tool in tools[event.frame].items()}
        assert min(distance, key=distance.get) == event.arm and distance[event.arm] < 0.1, "its own arm is there"
    if task == "handover_block":
        assert events[0].arm != events[1].arm == events[2].arm
    env.close()


def test_perturbation_is_smooth_of_the_given_size_and_absent_at_key_steps():
    offsets = np.stack([perturbation(60, [30], 0.01, np.random.default_rng(seed), 0.08) for seed in range(300)])
    assert offsets.shape == (300, 60, 2, 3)
    assert not offsets[:, 28:33].any() and not offsets[:, 0].any()
    far = offsets[:, [15, 45]]
    assert far.std() == pytest.approx(0.01, rel=0.05) and abs(far.mean()) < 0.001
    assert np.abs(np.diff(offsets, axis=1)).max() < 0.02, "no step jumps"
    assert abs(np.corrcoef(offsets[:, 15, 0, 0], offsets[:, 45, 0, 0])[0, 1]) < 0.2, "band-limited, not an offset"
    assert not perturbation(60, [30], 0.0, np.random.default_rng(0), 0.08).any()

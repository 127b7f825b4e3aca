"""Action-based spatial value maps: the next contact of each arm, projected into every frame of every camera.

An `Event` stores contact points in the coordinates of their body, and the pose of that body in each frame of the
episode. The map of a frame is a pure function of events and cameras: the points are placed by the body's pose,
projected, and drawn as Gaussians whose standard deviation is `RADIUS` metres at their depth. The maps of a stored
episode can therefore be rendered again, bit for bit.

A map shows contacts even if they are occluded; `visible_shares` gives the share that a camera sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from ..envs.poses import rotation_matrix

RADIUS = 0.02  # m, the standard deviation of the Gaussian around a contact point
MIN_SIGMA = 1.5  # pixels: a smaller spot would fall between pixel centers
MAX_SIGMA = 0.15  # fraction of the image width: a larger spot would not localise the contact
DEPTH_TOLERANCE = 0.01  # m
DENSEST = 4  # times as many points along each axis are drawn at most, where a spot is cut to `MAX_SIGMA`
TOGETHER = 5  # frames: the next events of both arms are shown in one map if they are at most this far apart
_HEAT = np.array([[130, 0, 20], [255, 60, 0], [255, 190, 0], [255, 255, 170]])  # colors at 0, 1/3, 2/3 and 1
# 255 * exp(-z^2 / 2) rounds to 0 beyond this many standard deviations, so nothing is drawn there.
REACH = float(np.sqrt(2 * np.log(510)))


@dataclass
class Event:
    """A contact by which an arm carries out its task.

    kind: "pick" (both fingers hold the body), "place" (a held object rests on the body), "press" or "push" (a closed
        finger pushes the body, down or along), "insert" (a held object is pushed into the body).
    arm: "left" or "right".
    frame: the first frame after the event.
    body_name: the body of the points: the picked, pressed or pushed body, the support of a placed object, or the body
        that an object is inserted in.
    points (num_points, 3) float32: contact points in the coordinates of that body (m).
    body_pose (num_frames, 7) float32: world pose of the body in each frame, xyz (m) and quaternion wxyz.
    visible: camera -> (num_frames,) float32, the share of points that it sees; cameras without depth are absent.
    """

    kind: str
    arm: str
    frame: int
    body_name: str
    points: np.ndarray
    body_pose: np.ndarray
    visible: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._filled: dict[int, np.ndarray] = {}

    def filled_points(self, density: int = 1) -> np.ndarray:
        """The points to draw, `density` times as close together as needed for Gaussians of `RADIUS`."""
        if density not in self._filled:
            self._filled[density] = fill_hull(self.points, RADIUS / 2 / density)
        return self._filled[density]


def fill_hull(points: np.ndarray, spacing: float = RADIUS / 2) -> np.ndarray:
    """Points (num_filled, 3) float64 that fill the convex hull of `points` (num_points, 3) about `spacing` m apart.

    Contact between two boxes has only the four corners as points, which would be drawn as four separate spots. Adding
    the midpoints of all pairs repeatedly fills the hull, whether it is a point, a segment, a face or a solid. One
    point is kept in each cube of side `spacing`.
    """
    points = np.asarray(points, dtype=np.float64)
    corner = points.min(axis=0)
    shape = np.ceil((points.max(axis=0) - corner) / spacing).astype(int) + 1
    count = paired = 0  # number of points, and of those among them whose own midpoints have been added
    while len(points) > count:
        count = len(points)
        points = np.concatenate([points, ((points[:, None] + points[None, paired:]) / 2).reshape(-1, 3)])
        cells = np.minimum(np.floor((points - corner) / spacing).astype(int), shape - 1)
        first = np.full(shape.prod(), len(points))
        first[np.ravel_multi_index(tuple(cells.T), shape)[::-1]] = np.arange(len(points))[::-1]
        kept = np.sort(first[first < len(points)])
        paired = np.searchsorted(kept, count)
        points = points[kept]
    return points


def world_points(points: np.ndarray, body_pose: np.ndarray) -> np.ndarray:
    """World coordinates (num_frames, num_points, 3) of body points (num_points, 3) at poses (num_frames, 7)."""
    pose = np.asarray(body_pose, dtype=np.float64)
    return points @ np.swapaxes(rotation_matrix(pose[:, 3:]), -1, -2) + pose[:, None, :3]


def shown_events(events: list[Event], num_frames: int) -> np.ndarray:
    """Whether each frame shows each event: (num_events, num_frames) bool, read-only.

    A frame shows the next event of each arm, up to and including the event's own frame. If the next events of both
    arms are more than `TOGETHER` frames apart, it shows only the earlier one.
    """
    return _shown_events(tuple((event.arm, event.frame) for event in events), num_frames)


@lru_cache(maxsize=16)  # called once per camera
def _shown_events(events: tuple[tuple[str, int], ...], num_frames: int) -> np.ndarray:
    frames, never = np.arange(num_frames), 2 * num_frames + TOGETHER
    next_frame = np.full((len(events), num_frames), never)
    for arm in {arm for arm, _ in events}:
        start = -1
        own = [index for index, event in enumerate(events) if event[0] == arm]
        for index in sorted(own, key=lambda index: events[index][1]):
            upcoming = (frames > start) & (frames <= events[index][1])
            next_frame[index, upcoming] = start = events[index][1]
    earliest = next_frame.min(axis=0, initial=never)
    shown = (next_frame < never) & (next_frame - earliest <= TOGETHER)
    shown.flags.writeable = False
    return shown


def project(points: np.ndarray, intrinsics: np.ndarray, extrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects world points (..., num_points, 3) into cameras.

    intrinsics (..., 3, 3); extrinsics (..., 3, 4) world to camera, OpenCV axes (x right, y down, z forward).

    Returns:
        Pixels (..., num_points, 2) as u (right) and v (down), and depths (..., num_points) in m. The center of the
        pixel in row i, column j is at u = j + 0.5, v = i + 0.5. Pixels of points that aren't in front of the camera
        are inf.
    """
    camera = points @ np.swapaxes(extrinsics[..., :3], -1, -2) + extrinsics[..., None, :, 3]
    depth = camera[..., 2]
    ahead = depth > 1e-3
    image = camera @ np.swapaxes(intrinsics, -1, -2)
    pixels = np.full(image.shape[:-1] + (2,), np.inf)
    pixels[ahead] = image[ahead][:, :2] / image[ahead][:, 2:]
    return pixels, depth


def splat(pixels: np.ndarray, sigma: np.ndarray, height: int, width: int) -> np.ndarray:
    """The maximum of Gaussians with peak 1 around each point: (num_frames, height, width) float32.

    pixels (num_frames, num_points, 2), inf for points that aren't drawn; sigma (num_frames, num_points) in pixels.
    """
    maps = np.zeros((len(pixels), height, width), dtype=np.float32)
    if not len(pixels):
        return maps
    axes, drawn = [], np.ones(len(pixels), dtype=bool)
    for points, size in ((pixels[..., 0], width), (pixels[..., 1], height)):
        reach = np.where(np.isfinite(points), REACH * sigma, 0)
        low = np.clip(np.floor((points - reach).min(axis=1)), 0, size).astype(int)
        high = np.clip(np.ceil(np.where(np.isfinite(points), points + reach, -1).max(axis=1)), 0, size).astype(int)
        drawn &= high > low
        axes.append((low, high, size))
    # Where neither camera nor body moves, the map of the frame before is copied.
    moved = (pixels[1:] != pixels[:-1]).any(axis=(1, 2)) | (sigma[1:] != sigma[:-1]).any(axis=1)
    fresh = drawn & np.concatenate([[True], moved])
    if not fresh.any():
        return maps
    boxes = []  # columns, then rows, of a box in each frame, of equal size, outside which every value is 0
    for low, high, size in axes:
        extent = (high - low)[fresh].max()
        boxes.append(np.minimum(low[fresh], size - extent)[:, None] + np.arange(extent))
    columns, rows = boxes
    across, down = (  # squared distances along each axis, in standard deviations: (num_points, frames, box)
        np.square((box + 0.5 - points.T[..., None]) / sigma[fresh].T[..., None]).astype(np.float32)
        for box, points in ((columns, pixels[fresh, :, 0]), (rows, pixels[fresh, :, 1]))
    )
    nearest = np.full((len(columns), rows.shape[1], columns.shape[1]), np.inf, dtype=np.float32)
    distance = np.empty_like(nearest)
    for index in range(len(across)):
        np.add(down[index, :, :, None], across[index, :, None, :], out=distance)
        np.minimum(nearest, distance, out=nearest)
    frames = np.flatnonzero(fresh)[:, None, None]
    maps[frames, rows[:, :, None], columns[:, None, :]] = np.exp(-nearest / 2)
    source = np.maximum.accumulate(np.where(fresh, np.arange(len(maps)), 0))
    maps[drawn] = maps[source[drawn]]
    return maps


def render_value_maps(
    events: list[Event],
    intrinsics: np.ndarray,
    extrinsics: np.ndarray,
    height: int,
    width: int,
    frames: Sequence[int] | None = None,
) -> np.ndarray:
    """The value maps of one camera over an episode: (num_frames, height, width, 3) uint8, gray as RGB, read-only.

    intrinsics (num_frames, 3, 3), extrinsics (num_frames, 3, 4) as in `project`. Frames after the last event
    are black. `frames`: indices of the frames to render, in that order; default: all.
    """
    frames = np.arange(len(intrinsics)) if frames is None else np.asarray(frames)
    all_shown = shown_events(events, len(intrinsics))[:, frames]
    intrinsics, extrinsics = (np.asarray(matrices, dtype=np.float64)[frames] for matrices in (intrinsics, extrinsics))
    maps = np.zeros((len(frames), height, width), dtype=np.float32)
    for event, shown in zip(events, all_shown, strict=True):
        left, density = np.flatnonzero(shown), 1
        while len(left):
            points = world_points(event.filled_points(density), event.body_pose[frames[left]])
            pixels, depth = project(points, intrinsics[left], extrinsics[left])
            radius = intrinsics[left, 0, 0][:, None] * RADIUS / np.maximum(depth, 1e-3)
            sigma = np.clip(radius, MIN_SIGMA, MAX_SIGMA * width)
            # Smaller spots than `RADIUS` need more points, or the map ripples between them.
            needed = np.where(depth > 1e-3, radius / sigma, 1).max(axis=1)
            drawn = needed <= density if density < DENSEST else np.ones(len(left), dtype=bool)
            done = left[drawn]
            maps[done] = np.maximum(maps[done], splat(pixels[drawn], sigma[drawn], height, width))
            left, density = left[~drawn], density + 1
    maps *= 255
    gray = np.rint(maps, out=maps).astype(np.uint8)
    return np.broadcast_to(gray[..., None], (*gray.shape, 3))


def visible_shares(
    events: list[Event], intrinsics: np.ndarray, extrinsics: np.ndarray, depth: np.ndarray
) -> list[np.ndarray]:
    """The share of each event's points that one camera sees: (num_frames,) float32 each, 0 in frames that don't show
    the event.

    intrinsics, extrinsics as in `render_value_maps`; depth (num_frames, height, width) in m along the camera's axis. A
    point is visible if the depth of its pixel, or of one of the four neighbours, is at least the point's depth minus
    `DEPTH_TOLERANCE`: contact points lie on surfaces, and pixels are coarse. Points out of view aren't visible.
    """
    intrinsics, extrinsics = np.asarray(intrinsics, dtype=np.float64), np.asarray(extrinsics, dtype=np.float64)
    height, width = depth.shape[1:]
    shares = np.zeros((len(events), len(depth)), dtype=np.float32)
    for share, event, shown in zip(shares, events, shown_events(events, len(depth)), strict=True):
        points = world_points(event.points, event.body_pose[shown])
        pixels, distance = project(points, intrinsics[shown], extrinsics[shown])
        u, v = pixels[..., 0], pixels[..., 1]
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        columns, rows = (np.where(inside, x, 0).astype(int) for x in (u, v))
        frames = np.flatnonzero(shown)[:, None]
        farthest = np.full(columns.shape, -np.inf)
        for down, right in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)):
            beside = depth[frames, np.clip(rows + down, 0, height - 1), np.clip(columns + right, 0, width - 1)]
            np.maximum(farthest, beside, out=farthest)
        share[shown] = (inside & (distance <= farthest + DEPTH_TOLERANCE)).mean(axis=1)
    return list(shares)


def overlay(rgb: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Value maps (..., H, W) in [0, 1] as heat colors over darkened gray pictures (..., H, W, 3) uint8.

    Raises:
        ValueError: for integers, such as the maps of an episode, whose values are 0 to 255.
    """
    if np.issubdtype(np.asarray(value).dtype, np.integer):
        raise ValueError(f"value is {value.dtype}; expected floating-point numbers in [0, 1]: divide it by 255.")
    value = np.clip(value, 0, 1)
    gray = 35 + 0.5 * rgb.mean(axis=-1, keepdims=True)
    levels = np.linspace(0, 1, len(_HEAT))
    heat = np.stack([np.interp(value, levels, channel) for channel in _HEAT.T], axis=-1)
    opacity = np.clip(1.5 * value - 0.08, 0, 0.78)[..., None]
    return ((1 - opacity) * gray + opacity * heat).astype(np.uint8)

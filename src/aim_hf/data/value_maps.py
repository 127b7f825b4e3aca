"""Action-based spatial value maps: the next contact of each arm, projected into every frame of every camera.

An `Event` keeps its contact points in the frame of the body that they belong to, with that body's pose in each frame
of the episode. A frame's map is a pure function of events and cameras: put the points where the body is in this frame,
project them, and draw around each a Gaussian as wide as `RADIUS` metres appear at its depth. So the maps of a stored
episode can be rendered again, bit by bit.

Left out: occlusion. A map shows where to act, seen or hidden.
"""

from dataclasses import dataclass

import numpy as np

RADIUS = 0.02  # m, the standard deviation of the Gaussian around a contact point
MIN_SIGMA = 1.5  # pixels: a smaller spot would fall between them
MAX_SIGMA = 0.15  # of the image width: a larger one would no longer say where
TOGETHER = 5  # frames: the next events of two arms that are no further apart are shown in one map
# 255 * exp(-z^2 / 2) rounds to 0 beyond this many standard deviations, so that nothing need be drawn there.
REACH = float(np.sqrt(2 * np.log(510)))


@dataclass
class Event:
    """A contact that an arm's task turns on.

    kind: "pick" (both fingers hold the body), "place" (what was held rests on the body), "press" or "push" (a closed
        finger pushes the body, down or along).
    arm: "left" or "right".
    frame: the first frame that shows the event done.
    body_name: the body that the points are fixed to: what is picked, pressed or pushed, or the support of a place.
    points (num_points, 3) float32: contact points in the frame of that body (m).
    body_pose (num_frames, 7) float32: its pose in each frame, xyz (m) and quaternion wxyz, in the world.
    """

    kind: str
    arm: str
    frame: int
    body_name: str
    points: np.ndarray
    body_pose: np.ndarray


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Unit quaternions wxyz (..., 4) as rotation matrices (..., 3, 3)."""
    w, x, y, z = np.moveaxis(np.asarray(quaternion, dtype=np.float64), -1, 0)
    matrix = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(matrix), (0, 1), (-2, -1))


def fill_hull(points: np.ndarray, spacing: float = RADIUS / 2) -> np.ndarray:
    """Points (num_filled, 3) float64 that fill the convex hull of `points` (num_points, 3) about `spacing` m apart.

    A box that touches a box gives its four corners alone; drawn by themselves they would be four spots around nothing.
    Midpoints of all pairs, again and again, are dense in the hull whether it is a point, a segment, a face or a solid;
    one point is kept in each cube of side `spacing`.
    """
    points = np.asarray(points, dtype=np.float64)
    corner = points.min(axis=0)
    shape = np.ceil((points.max(axis=0) - corner) / spacing).astype(int) + 1
    count = 0
    while len(points) > count:
        count = len(points)
        points = np.concatenate([points, ((points[:, None] + points[None]) / 2).reshape(-1, 3)])
        cells = np.minimum(np.floor((points - corner) / spacing).astype(int), shape - 1)
        _, first = np.unique(np.ravel_multi_index(tuple(cells.T), shape), return_index=True)
        points = points[np.sort(first)]
    return points


def shown_events(events: list[Event], num_frames: int) -> np.ndarray:
    """Which event each frame shows: (num_events, num_frames) bool.

    A frame shows the next event of each arm, an event being next up to the frame in which it happens; of two arms only
    the earlier, unless they are at most `TOGETHER` frames apart.
    """
    frames, never = np.arange(num_frames), 2 * num_frames + TOGETHER
    next_frame = np.full((len(events), num_frames), never)
    for arm in {event.arm for event in events}:
        start = -1
        for index in sorted((i for i, event in enumerate(events) if event.arm == arm), key=lambda i: events[i].frame):
            upcoming = (frames > start) & (frames <= events[index].frame)
            next_frame[index, upcoming] = start = events[index].frame
    earliest = next_frame.min(axis=0, initial=never)
    return (next_frame < never) & (next_frame - earliest <= TOGETHER)


def project(points: np.ndarray, intrinsics: np.ndarray, extrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project world points (..., num_points, 3) through cameras: pixels (..., num_points, 2) as u (right), v (down),
    and depths (..., num_points) in m.

    intrinsics (..., 3, 3); extrinsics (..., 3, 4) world to camera, OpenCV axes (x right, y down, z forward). The
    centre of the pixel in row i, column j is at u = j + 0.5, v = i + 0.5. Where the depth is not positive, pixels are
    inf.
    """
    camera = points @ np.swapaxes(extrinsics[..., :3], -1, -2) + extrinsics[..., None, :, 3]
    depth = camera[..., 2]
    ahead = depth > 1e-3
    image = camera @ np.swapaxes(intrinsics, -1, -2)
    pixels = np.full(image.shape[:-1] + (2,), np.inf)
    pixels[ahead] = image[ahead][:, :2] / image[ahead][:, 2:]
    return pixels, depth


def splat(pixels: np.ndarray, sigma: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw a Gaussian of peak 1 around each point, the largest winning: (num_frames, height, width) float32.

    pixels (num_frames, num_points, 2), inf where not to be drawn; sigma (num_frames, num_points) in pixels.
    """
    maps = np.zeros((len(pixels), height, width), dtype=np.float32)
    axes = []  # columns, then rows: the box, equally large in each frame, outside which every value is 0
    for points, size in ((pixels[..., 0], width), (pixels[..., 1], height)):
        reach = np.where(np.isfinite(points), REACH * sigma, 0)
        low = np.clip(np.floor((points - reach).min(axis=1)), 0, size).astype(int)
        high = np.clip(np.ceil(np.where(np.isfinite(points), points + reach, -1).max(axis=1)), 0, size).astype(int)
        extent = np.maximum(high - low, 0).max(initial=0)
        axes.append(np.minimum(low, size - extent)[:, None] + np.arange(extent))
    columns, rows = axes
    nearest = np.full((len(pixels), rows.shape[1], columns.shape[1]), np.inf, dtype=np.float32)
    for index in range(pixels.shape[1]):
        u, v, scale = (x[:, None] for x in (pixels[:, index, 0], pixels[:, index, 1], sigma[:, index]))
        across = np.square((columns + 0.5 - u) / scale).astype(np.float32)
        down = np.square((rows + 0.5 - v) / scale).astype(np.float32)
        np.minimum(nearest, down[:, :, None] + across[:, None, :], out=nearest)
    frames = np.arange(len(pixels))[:, None, None]
    maps[frames, rows[:, :, None], columns[:, None, :]] = np.exp(-nearest / 2)
    return maps


def render_value_maps(
    events: list[Event], intrinsics: np.ndarray, extrinsics: np.ndarray, height: int, width: int
) -> np.ndarray:
    """The value maps of one camera over an episode: (num_frames, height, width, 3) uint8, gray as RGB.

    intrinsics (num_frames, 3, 3), extrinsics (num_frames, 3, 4) as in `project`. Frames after the last event are
    black, as is what lies out of view.
    """
    intrinsics, extrinsics = np.asarray(intrinsics, dtype=np.float64), np.asarray(extrinsics, dtype=np.float64)
    maps = np.zeros((len(intrinsics), height, width), dtype=np.float32)
    for event, shown in zip(events, shown_events(events, len(intrinsics)), strict=True):
        pose = np.asarray(event.body_pose[shown], dtype=np.float64)
        points = fill_hull(event.points) @ np.swapaxes(rotation_matrix(pose[:, 3:]), -1, -2) + pose[:, None, :3]
        pixels, depth = project(points, intrinsics[shown], extrinsics[shown])
        focal_length = intrinsics[shown, 0, 0][:, None]
        sigma = np.clip(focal_length * RADIUS / np.maximum(depth, 1e-3), MIN_SIGMA, MAX_SIGMA * width)
        maps[shown] = np.maximum(maps[shown], splat(pixels, sigma, height, width))
    gray = np.rint(255 * maps).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)

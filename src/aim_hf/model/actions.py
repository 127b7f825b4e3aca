"""Robot actions for the network: relative to the episode's first pose (action space `ee`), and scaled by quantiles.

A dimension that leaves its quantiles rarely, but by far, is scaled by its whole range. Both steps are inverted
exactly. Quaternions are wxyz everywhere.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..utils.arrays import as_numbers
from ..utils.checks import are_finite, check_choice, check_kind, check_positive, check_whole

ACTION_SPACES = ("ee", "qpos")
# `ee`: left xyz (3), quaternion wxyz (4), gripper (1); then the same of the right arm.
EE_ACTION_DIM = 16
QUANTILES, RANGE = ("q01", "q99"), ("min", "max")  # keys of action statistics
# A dimension whose quantiles would scale a training action beyond this is scaled by its range instead.
FURTHEST = 5.0
# Limit of poses, in metres, and of executed actions, in half-ranges. It is far beyond what robots do, and keeps the
# network's numbers finite in every dtype but float16.
LARGEST = 1000.0


class ActionsMixin:
    """The methods of [`AIMProcessor`] for actions: torch tensors (..., T, action_dim), in physical units unless they
    are called relative or normalized."""

    action_space: str
    action_dim: int
    minimum_half_range: float

    def _set_actions(
        self,
        action_space: str,
        action_dim: int,
        action_statistics: Mapping[str, Sequence[float]] | None,
        minimum_half_range: float,
    ) -> None:
        check_choice("action_space", action_space, ACTION_SPACES)
        if action_space == "ee" and action_dim != EE_ACTION_DIM:
            raise ValueError(f"action_dim is {action_dim}; actions of space 'ee' have {EE_ACTION_DIM} numbers.")
        self.action_space = action_space
        self.action_dim = check_whole("action_dim", action_dim)
        self.minimum_half_range = check_positive("minimum_half_range", minimum_half_range)
        self.action_statistics = action_statistics

    @property
    def action_statistics(self) -> dict[str, list[float]] | None:
        return self.__dict__["action_statistics"]

    @action_statistics.setter
    def action_statistics(self, statistics: Mapping[str, Sequence[float]] | None) -> None:
        if statistics is not None:
            check_kind("action_statistics", statistics, Mapping)
            if set(statistics) not in ({*QUANTILES}, {*QUANTILES, *RANGE}):
                raise ValueError(
                    f"action_statistics have {', '.join(sorted(map(str, statistics)))}; expected q01, q99, min, max, "
                    "as compute_action_statistics returns them."
                )
            for name, values in statistics.items():
                if not are_finite(values) or len(values) != self.action_dim:
                    raise ValueError(
                        f"action_statistics[{name!r}] is {values}; expected {self.action_dim} finite numbers, as "
                        "compute_action_statistics returns them."
                    )
            statistics = {name: [float(x) for x in values] for name, values in statistics.items()}
            rising = [name for name in ("min", "q01", "q99", "max") if name in statistics]
            for low, high in zip(rising, rising[1:]):
                if any(a > b for a, b in zip(statistics[low], statistics[high], strict=True)):
                    raise ValueError(f"action_statistics have a {low} above its {high}; recompute them.")
        self.__dict__["action_statistics"] = statistics

    def relative_actions(
        self, actions: ArrayLike | torch.Tensor, initial_pose: ArrayLike | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Actions relative to the episode's first pose, in physical units, as the network sees them before scaling.

        Args:
            actions: (..., T, action_dim).
            initial_pose: (..., 16), the episode's first pose; needed by `ee`, ignored by `qpos`.

        Raises:
            ValueError: for a wrong width, NaN, quaternions not of unit length, or a missing pose.
        """
        actions = self._check_actions(actions, "actions")
        if self.action_space == "qpos":
            return actions
        initial = self._check_initial_pose(initial_pose, actions)
        parts = []
        for (xyz, quaternion, gripper), (xyz0, quaternion0, _) in zip(_arms(actions), _arms(initial), strict=True):
            rotation = _quaternion_product(_quaternion_inverse(quaternion0), quaternion)
            rotation = torch.where(rotation[..., :1] < 0, -rotation, rotation)
            parts += [xyz - xyz0, rotation, gripper]
        return torch.cat(parts, dim=-1)

    def absolute_actions(
        self, actions: ArrayLike | torch.Tensor, initial_pose: ArrayLike | torch.Tensor | None = None
    ) -> torch.Tensor:
        """The inverse of `relative_actions`. Predicted quaternions are normalized to unit length; the results lie in
        the hemisphere of the first pose's quaternion. Raises ValueError for a wrong width, NaN, a rotation of length
        0, or a missing pose."""
        actions = floating(actions)
        self._check_numbers(actions, "relative actions")
        if self.action_space == "qpos":
            return actions
        initial = self._check_initial_pose(initial_pose, actions)
        parts = []
        for (xyz, rotation, gripper), (xyz0, quaternion0, _) in zip(_arms(actions), _arms(initial), strict=True):
            length = rotation.norm(dim=-1, keepdim=True)
            if (length == 0).any():
                raise ValueError("relative actions have a rotation of length 0; expected quaternions wxyz.")
            rotation = rotation / length
            parts += [xyz + xyz0, _quaternion_product(quaternion0, rotation), gripper]
        return torch.cat(parts, dim=-1)

    def compute_action_statistics(self, actions: ArrayLike | torch.Tensor) -> dict[str, list[float]]:
        """1 % and 99 % quantiles, minimum and maximum of each dimension. Assign them to `action_statistics`.

        Args:
            actions: (N, action_dim), results of `relative_actions` over the whole training set.

        Raises:
            ValueError: for another shape, no actions, or numbers that aren't finite.
        """
        actions = floating(actions).cpu().double().numpy()
        if actions.ndim != 2 or actions.shape[1] != self.action_dim or not len(actions):
            raise ValueError(f"actions have shape {actions.shape}; expected (N, {self.action_dim}) with N >= 1.")
        if not np.isfinite(actions).all():
            raise ValueError("actions have NaN or infinite numbers; drop or repair those steps.")
        low, high = np.quantile(actions, [0.01, 0.99], axis=0)
        statistics = {"q01": low, "q99": high, "min": actions.min(axis=0), "max": actions.max(axis=0)}
        return {name: values.tolist() for name, values in statistics.items()}

    @property
    def moving_dimensions(self) -> torch.Tensor:
        """(action_dim,), False for numbers that are constant in the training set, such as an arm that the robot
        lacks."""
        self._check_statistics()
        low, high = self._statistics(RANGE if "min" in self.action_statistics else QUANTILES)
        return high > low

    def normalize_actions(
        self, actions: ArrayLike | torch.Tensor, initial_pose: ArrayLike | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Relative actions, scaled so that q01 is at -1 and q99 at 1, as the network sees them.

        Nothing is clipped: the 2 % of actions outside the quantiles lie outside [-1, 1], so that the inverse is exact.
        A dimension whose training data would exceed `FURTHEST`, such as a gripper that closes in 0.6 % of the frames,
        is scaled by its whole range: minimum at -1, maximum at 1.

        Args:
            actions: (..., T, action_dim) in physical units.
            initial_pose: (..., 16), the episode's first pose; needed by `ee`, ignored by `qpos`.

        Returns:
            (..., T, action_dim), the dtype of `actions`.

        Raises:
            ValueError: for a wrong width, NaN, quaternions not of unit length, or missing statistics.
        """
        return self.scale_actions(self.relative_actions(actions, initial_pose))

    def scale_actions(self, relative: torch.Tensor) -> torch.Tensor:
        """Scales the output of `relative_actions`, as `normalize_actions` does."""
        relative = floating(relative)
        center, half_range = self._scale(relative)
        return (relative - center) / half_range

    def normalize_executed(
        self, name: str, actions: torch.Tensor, initial_pose: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`normalize_actions` of actions that a robot reports as executed; refuses implausibly large numbers.

        Args:
            name: of the actions in error messages.

        Raises:
            ValueError: as `normalize_actions`, and for numbers more than `LARGEST` half-ranges from the middle of the
                training set's range.
        """
        relative = self.relative_actions(self._check_actions(actions, name), initial_pose)
        center, half_range = self._scale(relative)
        name += ", relative to the first pose" if self.action_space == "ee" else ""
        check_magnitude(name, relative, center, half_range)
        return (relative - center) / half_range

    def unnormalize_actions(
        self, actions: ArrayLike | torch.Tensor, initial_pose: ArrayLike | torch.Tensor | None = None
    ) -> torch.Tensor:
        """The inverse of `normalize_actions`: normalized (..., T, action_dim) -> absolute, in physical units.

        Raises:
            ValueError: for a wrong width, NaN or missing statistics.
        """
        actions = floating(actions)
        self._check_numbers(actions, "normalized actions")
        center, half_range = self._scale(actions)
        return self.absolute_actions(actions * half_range + center, initial_pose)

    def _scale(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Center and half-range of each dimension, in the dtype and on the device of `actions`."""
        self._check_statistics()

        def scale(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (low + high) / 2, ((high - low) / 2).clamp(min=self.minimum_half_range)

        center, half_range = scale(*self._statistics(QUANTILES))
        if "min" in self.action_statistics:
            low, high = self._statistics(RANGE)
            beyond = torch.maximum(center - low, high - center) > FURTHEST * half_range
            center, half_range = (torch.where(beyond, *pair) for pair in zip(scale(low, high), (center, half_range)))
        return center.to(actions), half_range.to(actions)

    def _statistics(self, names: tuple[str, str]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.tensor(self.action_statistics[name], dtype=torch.float64, device="cpu") for name in names)

    def _check_statistics(self) -> None:
        if self.action_statistics is None:
            raise ValueError(
                "action_statistics are not set; assign compute_action_statistics(...) of the training set."
            )

    def _check_numbers(self, actions: torch.Tensor, name: str) -> None:
        if actions.ndim < 1 or actions.shape[-1] != self.action_dim:
            raise ValueError(
                f"{name} have shape {tuple(actions.shape)}; expected (..., {self.action_dim}) for action space "
                f"{self.action_space!r}."
            )
        if not torch.isfinite(actions).all():
            raise ValueError(f"{name} have NaN or infinite numbers; find where they come from.")

    def _check_actions(self, actions: ArrayLike | torch.Tensor, name: str) -> torch.Tensor:
        actions = floating(actions, name)
        self._check_numbers(actions, name)
        if self.action_space == "ee":
            for arm, (_, quaternion, _) in zip(("left", "right"), _arms(actions), strict=True):
                norm = quaternion.norm(dim=-1)
                if ((norm - 1).abs() > 0.01).any():
                    raise ValueError(
                        f"{name} have a {arm} quaternion of length {norm.flatten()[(norm - 1).abs().argmax()]:.3g}; "
                        "expected unit quaternions wxyz at numbers 3..6 of an arm. Check the order of the numbers."
                    )
        return actions

    def _check_initial_pose(
        self, initial_pose: ArrayLike | torch.Tensor | None, actions: torch.Tensor
    ) -> torch.Tensor:
        if initial_pose is None:
            raise ValueError("initial_pose is missing; actions of space 'ee' are relative to the first pose.")
        initial = self._check_actions(initial_pose, "initial_pose").to(actions)
        if actions.ndim < 2 or initial.shape[:-1] != actions.shape[:-2]:
            raise ValueError(
                f"initial_pose has shape {tuple(initial.shape)} and actions {tuple(actions.shape)}; expected "
                "(..., 16) and (..., T, 16) with the same leading shape: one pose an episode."
            )
        return initial.unsqueeze(-2)


def floating(numbers: ArrayLike | torch.Tensor, name: str = "actions") -> torch.Tensor:
    """`numbers` as a floating-point tensor; integers and lists become float64, and arrays and lists are on the CPU,
    whatever torch's defaults are. Raises ValueError, with `name`, for anything but numbers."""
    if not torch.is_tensor(numbers):
        array = as_numbers(name, numbers)
        # A copy, since torch takes no other byte order, no negative strides, and no extended precision.
        dtype = array.dtype if array.dtype in (np.float16, np.float32) else np.float64
        numbers = torch.from_numpy(np.array(array, dtype=dtype, order="C"))
    if numbers.is_complex():
        raise ValueError(f"{name} is Tensor of dtype {numbers.dtype}; expected an array of numbers.")
    return numbers if numbers.is_floating_point() else numbers.double()


def check_magnitude(
    name: str, numbers: torch.Tensor, center: torch.Tensor | float = 0.0, unit: torch.Tensor | float = 1.0
) -> None:
    """Raises ValueError, with its index, for a number that is more than `LARGEST` units from the center."""
    far = (numbers - center).abs() > LARGEST * unit
    if far.any():
        place = far.nonzero()[0].tolist()
        ends = (torch.as_tensor(center + side * LARGEST * unit).expand_as(numbers) for side in (-1, 1))
        low, high = (end[tuple(place)].item() for end in ends)
        raise ValueError(
            f"{name}: number {place} is {numbers[tuple(place)].item():.3g}; expected {low:.3g} to {high:.3g}, and "
            "usually far less. Check its unit and its source."
        )


def _arms(actions: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yields xyz, quaternion and gripper of the left arm, then of the right arm."""
    for arm in actions.split(8, dim=-1):
        yield arm[..., :3], arm[..., 3:7], arm[..., 7:]


def _quaternion_inverse(q: torch.Tensor) -> torch.Tensor:
    return torch.cat([q[..., :1], -q[..., 1:]], dim=-1) / q.square().sum(-1, keepdim=True)


def _quaternion_product(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    p, q = torch.broadcast_tensors(p, q)
    pw, pv, qw, qv = p[..., :1], p[..., 1:], q[..., :1], q[..., 1:]
    scalar = pw * qw - (pv * qv).sum(-1, keepdim=True)
    return torch.cat([scalar, pw * qv + qw * pv + torch.linalg.cross(pv, qv)], dim=-1)

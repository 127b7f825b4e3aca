"""Converts camera pictures, value maps, actions and instructions to network inputs, and network outputs back.

Pictures are packed and cut apart in `canvas.py`; actions are made relative and scaled in `actions.py`. Here are words,
observations, and the file that holds all fields.
"""

import inspect
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from ..utils.arrays import as_numbers
from ..utils.checks import check_kind, check_number, check_stored, check_whole, shortened
from ..utils.files import reading
from .actions import EE_ACTION_DIM, ActionsMixin, check_magnitude
from .canvas import CanvasMixin, t_pose_canvas
from .checkpoint import MEND

# A tokenizer's first call sets its padding, which fails while another call runs.
_tokenizer_lock = threading.Lock()


class AIMProcessor(CanvasMixin, ActionsMixin, ProcessorMixin):
    r"""
    Prepares inputs of [`AIMForWorldAction`] and converts its outputs back. All fields are saved in
    `processor_config.json`.

    Args:
        tokenizer: of the text encoder.
        canvas_size: (height, width) of the canvas in pixels.
        cameras: camera name -> `{"size": [height, width], "slot": [top, left, height, width]}`: the size of the
            camera's pictures, and its slot on the canvas. See [`t_pose_canvas`].
        action_space: `"ee"` or `"qpos"`.
            `ee`: 16 numbers, per arm (left, right) xyz in metres, unit quaternion wxyz, gripper 0 closed .. 1 open.
            The network sees them relative to that arm's first pose (p0, q0) of the episode: `xyz - p0` along the world
            axes, `q0^-1 * q` with w >= 0 (q and -q are the same rotation), and the gripper unchanged.
            `qpos`: joint angles in radians and grippers, absolute.
        action_dim: numbers in one action; 16 for `ee`, depends on the robot for `qpos` (14 for two arms of 6 joints
            and a gripper).
        action_statistics: `{"q01": [...], "q99": [...], "min": [...], "max": [...]}` of relative actions, from
            `compute_action_statistics`. May be set later; (un)normalizing needs it. Older checkpoints have only the
            quantiles.
        minimum_half_range: lower limit of a dimension's half-range, in its own unit. Without it, noise of a dimension
            that hardly moves in the data (an idle arm) would be amplified.
        max_text_length: number of tokens that every instruction is padded to.
        fps: control steps per second at which actions were recorded and are executed; None if unknown.

    Raises:
        ValueError: if slots overlap or leave the canvas, or action fields don't fit together.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        canvas_size: Sequence[int],
        cameras: Mapping[str, Mapping[str, Sequence[int]]],
        action_space: str = "ee",
        action_dim: int = EE_ACTION_DIM,
        action_statistics: Mapping[str, Sequence[float]] | None = None,
        minimum_half_range: float = 0.01,
        max_text_length: int = 512,
        fps: float | None = None,
    ):
        self._set_canvas(canvas_size, cameras)
        self._set_actions(action_space, action_dim, action_statistics, minimum_half_range)
        self.max_text_length = check_whole("max_text_length", max_text_length)
        self.fps = fps
        check_kind("tokenizer", tokenizer, PreTrainedTokenizerBase)
        if tokenizer.pad_token is None:
            raise ValueError("the tokenizer has no pad token; set one, or restore its tokenizer_config.json.")
        super().__init__(tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "AIMProcessor":
        """As `ProcessorMixin.from_pretrained`, but raises OSError for a `Path` that is no folder."""
        folder = pretrained_model_name_or_path
        if isinstance(folder, os.PathLike) and not os.path.isdir(folder):
            raise OSError(f"{folder} is no folder; expected the processor/ of a checkpoint.")
        return super().from_pretrained(folder, **kwargs)

    @classmethod
    def get_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As `ProcessorMixin.get_processor_dict`, but raises OSError where there is no processor_config.json."""
        fields, unused = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        check_stored(fields, pretrained_model_name_or_path, "processor_config.json", part="processor")
        return fields, unused

    @classmethod
    def _load_tokenizer_from_pretrained(cls, kind: str, source: str | os.PathLike, subfolder: str = "", **kwargs: Any):
        # Without its file, transformers would ask for a package that makes one from others.
        with reading(f"the tokenizer in {os.path.join(source, subfolder)}", MEND):
            return super()._load_tokenizer_from_pretrained(kind, source, subfolder=subfolder, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        # The base class would fill in missing fields of a damaged processor_config.json, and drop unknown ones.
        fields = set(inspect.signature(cls.__init__).parameters) - {"self", "tokenizer"}
        # Processors of aim-hf 0.1.0 have no fps.
        found = set(processor_dict) - {"processor_class", "auto_map"} | {"fps"}
        if found != fields:
            raise ValueError(
                f"processor_config.json lacks {sorted(fields - found)} and has unknown {sorted(found - fields)}; it "
                "is damaged or of another version. Save the processor again."
            )
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    @property
    def fps(self) -> float | None:
        return self.__dict__["fps"]

    @fps.setter
    def fps(self, fps: float | None) -> None:
        self.__dict__["fps"] = None if fps is None else check_number("fps", fps, least=1e-3)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Mapping[str, np.ndarray] | None = None,
        actions: ArrayLike | torch.Tensor | None = None,
        initial_pose: ArrayLike | torch.Tensor | None = None,
    ) -> BatchFeature:
        """Network inputs for the given arguments.

        Args:
            text: instruction(s); gives `input_ids` and `attention_mask` (B, max_text_length).
            images: camera -> uint8 (B, T, H, W, 3); gives `pixel_values` (B, 3, T, canvas height, canvas width).
            actions, initial_pose: as in `normalize_actions`; gives `actions` (..., T, action_dim).
        """
        data = {}
        if text is not None:
            data.update(self.tokenize(text))
        if images is not None:
            data["pixel_values"] = self.canvas_to_pixels(self.pack_canvas(images))
        if actions is not None:
            data["actions"] = self.normalize_actions(actions, initial_pose)
        return BatchFeature(data)

    # Words

    def tokenize(self, text: str | Sequence[str], allow_empty: bool = False) -> BatchFeature:
        """`input_ids` and `attention_mask`, long (B, max_text_length), padded at the end.

        Args:
            allow_empty: accept "", no instruction, which classifier-free guidance needs.

        Raises:
            ValueError: for an instruction that is empty, no text or too long (nothing is truncated silently).
        """
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, Sequence) or not len(texts):
            raise ValueError(
                f"instruction is {shortened(text, 40)}; expected words, or a list with the words of each row."
            )
        texts = list(texts)
        for i, t in enumerate(texts):
            if not isinstance(t, str) or not (t.strip() or allow_empty):
                raise ValueError(
                    f"instruction {i} is {shortened(t, 40)}; expected words. Say what the robot should do."
                )
            if any("\ud800" <= character <= "\udfff" for character in t):
                raise ValueError(
                    f"instruction {i} is {shortened(t, 40)}; expected Unicode text without lone surrogates."
                )
        most = self.max_text_length
        with _tokenizer_lock:
            tokens = self.tokenizer(
                texts, padding="max_length", padding_side="right", max_length=most, return_tensors=None, verbose=False
            )
        for t, ids in zip(texts, tokens["input_ids"], strict=True):
            if len(ids) > most:
                raise ValueError(
                    f"instructions have at most {most} tokens (about {most * len(t) // len(ids)} characters); this "
                    f"one has {len(ids)}: {shortened(t, 40)}. Shorten it."
                )
        names = ("input_ids", "attention_mask")
        return BatchFeature({name: torch.tensor(tokens[name], device="cpu") for name in names})

    # Observations, in RoboTwin's layout

    def observation_views(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Camera -> uint8 (H, W, 3) of one observation; cameras without a slot are left out. Raises ValueError for a
        missing camera."""
        pictures = observation.get("observation") if isinstance(observation, Mapping) else None
        if not isinstance(pictures, Mapping):
            raise ValueError(
                f'observation is {type(observation).__name__} without "observation"; expected a dict in RoboTwin\'s '
                'layout, with observation["observation"][camera]["rgb"] for each of ' + f"{sorted(self.cameras)}."
            )
        available = {name for name, camera in pictures.items() if isinstance(camera, Mapping) and "rgb" in camera}
        if missing := [name for name in self.cameras if name not in available]:
            raise ValueError(
                f"observation has no camera {', '.join(missing)} (it has {sorted(available)}); expected "
                'observation["observation"][camera]["rgb"] for each of ' + f"{sorted(self.cameras)}."
            )
        return {name: pictures[name]["rgb"] for name in self.cameras}

    def initial_pose(self, observation: Mapping[str, Any]) -> torch.Tensor:
        """Measured pose of both arms in the layout of an `ee` action, float64 (16,); actions are relative to it.
        Raises ValueError for a missing or malformed part of `endpose`."""
        endpose = observation.get("endpose")
        endpose = endpose if isinstance(endpose, Mapping) else {}
        keys = ("left_endpose", "left_gripper", "right_endpose", "right_gripper")
        missing = [key for key in keys if key not in endpose]
        if missing:
            raise ValueError(
                f"observation['endpose'] has no {', '.join(missing)}; action space 'ee' needs {', '.join(keys)}."
            )
        parts = []
        for key in keys:
            expected = 1 if key.endswith("gripper") else 7
            name = f"observation['endpose'][{key!r}]"
            parts.append(np.atleast_1d(as_numbers(name, endpose[key])))
            if parts[-1].shape != (expected,):
                raise ValueError(f"{name} has shape {parts[-1].shape}; expected ({expected},).")
        pose = np.concatenate(parts, dtype=np.float64)
        pose = self._check_actions(pose, "pose of the first observation")
        check_magnitude("pose of the first observation", pose)
        return pose


def robotwin_processor(
    tokenizer: PreTrainedTokenizerBase, canvas_size: tuple[int, int] = (384, 320), **kwargs: Any
) -> AIMProcessor:
    """The processor for RoboTwin 2.0: three cameras of 240 x 320 on a T-pose canvas.

    Args:
        tokenizer: of the text encoder.
        canvas_size: (height, width) in pixels; the network's cost grows with it. Wan2.1's VAE gives as many tokens at
            (192, 160) as Wan2.2's at (384, 320).
        kwargs: other fields of [`AIMProcessor`]; `action_statistics` are computed from a dataset.
    """
    cameras = t_pose_canvas(canvas_size, (240, 320), (240, 320))
    return AIMProcessor(tokenizer, canvas_size=canvas_size, cameras=cameras, **kwargs)

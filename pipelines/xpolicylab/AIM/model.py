"""An AIM pipeline as a policy of XPolicyLab, whose server calls the methods of `Model`.

XPolicyLab's client sends one observation with each request for actions, and none in between. AIM wants to see a
picture after every `actions_per_frame` actions, so each answer holds that many actions of the current chunk; a new
chunk is sampled when the last one is over.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from aim_hf import AIMPipeline
from aim_hf.envs.base import ARMS
from aim_hf.envs.poses import along_tools, unpack_endpose
from aim_hf.envs.robotwin.environment import FRAME_BEHIND_TCP
from aim_hf.envs.robotwin.tasks import evaluation_seed
from aim_hf.pipeline.sampling_config import SamplingConfig
from aim_hf.pipeline.session import AIMSession
from aim_hf.utils.checks import noise_seed

CAMERAS = {"head_camera": "cam_head", "left_camera": "cam_left_wrist", "right_camera": "cam_right_wrist"}
ACTION_TYPES = {"ee": "ee", "joint": "qpos"}  # XPolicyLab's name -> the action space of an AIMProcessor
STATE = {"ee": "tcp_pose", "qpos": "arm_joint_state"}
ACTION = {"ee": "ee_pose", "qpos": "arm_joint_state"}


@dataclass
class Episode:
    """An episode in progress: its session, the actions (T, action_dim) of the current chunk, of which `position` are
    handed out, and the observations since the chunk was sampled."""

    session: AIMSession
    generator: torch.Generator
    actions: np.ndarray | None = None
    position: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)


class Model:
    """Acts in any number of environments, which are told apart by `env_idx` of their observations.

    Args:
        model_cfg: the settings of `deploy.yml` and the server's command line. `checkpoint_path`: folder or repo id of
            an AIMPipeline; `ckpt_name` if not given. `device`. `action_type`: `ee` or `joint`, as in training. `seed`:
            of the noise, for clients that tell no scene. A field of [`SamplingConfig`] that is set replaces the
            checkpoint's own.

    Raises:
        ValueError: for a benchmark or an action type that the checkpoint can't act in.
        OSError, ValueError: as `AIMPipeline.from_pretrained`.
    """

    def __init__(self, model_cfg: dict[str, Any]) -> None:
        if (bench := model_cfg["bench_name"]) != "RoboTwin":
            raise ValueError(
                f"bench_name is {bench!r}; AIM knows the frames of end-effector poses in RoboTwin alone. Give "
                "bench_name RoboTwin."
            )
        self.pipe = AIMPipeline.from_pretrained(model_cfg.get("checkpoint_path") or model_cfg["ckpt_name"])
        self.pipe.to(model_cfg.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.pipe.set_progress_bar_config(disable=True)
        sampling = {field.name: model_cfg.get(field.name) for field in fields(SamplingConfig)}
        given = {name: value for name, value in sampling.items() if value is not None}
        self.sampling_config = replace(self.pipe.sampling_config, **given)
        self.mode = self.pipe.processor.action_space
        if ACTION_TYPES.get(model_cfg["action_type"]) != self.mode:
            (wanted,) = (name for name, mode in ACTION_TYPES.items() if mode == self.mode)
            raise ValueError(f"action_type is {model_cfg['action_type']!r}; this checkpoint needs {wanted!r}.")
        self.seed = noise_seed("seed", model_cfg.get("seed") or 0)
        self.reset()

    def prepare_case(self, case_meta: dict[str, Any] | None = None) -> None:
        """Takes the scene's seed, from which `aim-hf evaluate` draws the noise of the same scene."""
        if case_meta and "seed" in case_meta:
            self.seed = evaluation_seed(noise_seed("seed", case_meta["seed"]))

    def reset(self) -> None:
        """Forgets all episodes."""
        self._episodes: dict[int, Episode] = {}
        self._latest: dict[int, dict[str, Any]] = {}

    def update_obs(self, obs: dict[str, Any]) -> None:
        """Takes the latest observation of an environment, in XPolicyLab's format 1.0."""
        self.update_obs_batch([obs])

    def update_obs_batch(self, obs_list: list[dict[str, Any]]) -> None:
        """Takes the latest observations of several environments."""
        self._current = [obs.get("env_idx", 0) for obs in obs_list]
        self._latest |= dict(zip(self._current, obs_list, strict=True))

    def get_action(self) -> list[dict[str, np.ndarray]]:
        """The next actions of the environment whose observation came last."""
        (actions,) = self.get_action_batch(self._current)
        return actions

    def get_action_batch(self, env_idx_list: list[int] | None = None) -> list[list[dict[str, np.ndarray]]]:
        """The next `actions_per_frame` actions of each environment, from its latest observation."""
        return [self._next_actions(index) for index in (self._current if env_idx_list is None else env_idx_list)]

    def _next_actions(self, index: int) -> list[dict[str, np.ndarray]]:
        obs, pipe = self._latest.pop(index), self.pipe
        if index not in self._episodes:
            session = pipe.start(obs["instruction"], negative_prompt=self.sampling_config.negative_prompt)
            self._episodes[index] = Episode(session, torch.Generator().manual_seed(self.seed + index))
        episode = self._episodes[index]
        episode.seen.append(self._observation(obs))
        if episode.actions is None or episode.position == len(episode.actions):
            self._plan(episode)
        part = episode.actions[episode.position : episode.position + pipe.actions_per_frame]
        episode.position += len(part)
        return [self._action(action) for action in part]

    def _plan(self, episode: Episode) -> None:
        pipe, first = self.pipe, None
        if episode.actions is None:
            (first,) = episode.seen
        else:
            pipe.append(episode.session, episode.seen, episode.actions[None])
        output = pipe(
            first,
            session=episode.session,
            sampling_config=self.sampling_config,
            generator=[episode.generator],
            output_type="latent",
        )
        episode.actions, episode.position, episode.seen = output.actions[0].numpy(), 0, []

    def _observation(self, obs: dict[str, Any]) -> dict[str, Any]:
        """An observation in the layout of `aim_hf.envs.base.Observation`."""
        pictures = {name: {"rgb": obs["vision"][CAMERAS[name]]["color"]} for name in self.pipe.processor.cameras}
        state = {key: np.asarray(value, dtype=np.float64) for key, value in obs["state"].items()}
        names = [name for arm in ARMS for name in (f"{arm}_{STATE[self.mode]}", f"{arm}_ee_joint_state")]
        vector = np.concatenate([state[name] for name in names])
        if self.mode == "qpos":
            return {"observation": pictures, "joint_action": {"vector": vector}}
        return {"observation": pictures, "endpose": unpack_endpose(vector)}

    def _action(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """One action with XPolicyLab's names; poses are of RoboTwin's frame, which lies behind the TCP."""
        command = along_tools(action, -FRAME_BEHIND_TCP) if self.mode == "ee" else action
        answer = {}
        for arm, part in zip(ARMS, np.split(command, 2), strict=True):
            answer[f"{arm}_{ACTION[self.mode]}"] = part[:-1].astype(np.float32)
            answer[f"{arm}_ee_joint_state"] = part[-1:].astype(np.float32)
        return answer

"""What an iteration learns from: groups of episodes, and the file that keeps them in a checkpoint."""

import json
from collections import defaultdict
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..training.checkpoints import MEND
from ..utils.files import reading
from .scenes import PracticeScene


@dataclass
class Group:
    """What the learner needs of G episodes of one scene, of up to C chunks (`num_chunks`) with S random steps each.

    prompt_embeds (L, text_dim); first (c, 1, h, w), the first observation.
    rgb, value: (G, C, c, F, h, w), as imagined. observed: the same shape, what was really seen after each chunk.
    executed (G, C, F * n, D), normalized.
    steps (C, S): the random denoising steps. before, after (G, C, S, P, D): the samples around them. log_probs
        (G, C, S, M): log-likelihoods of the steps under the policy that took them.
    num_chunks (G,); success (G,). What is kept of a chunk is zero for an episode that ended before it.
    advantages (G, C): set by the trainer.
    """

    scene: PracticeScene
    prompt_embeds: torch.Tensor
    first: torch.Tensor
    rgb: torch.Tensor
    value: torch.Tensor
    observed: torch.Tensor
    executed: torch.Tensor
    steps: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    log_probs: torch.Tensor
    num_chunks: torch.Tensor
    success: torch.Tensor
    advantages: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it but the scene."""
        return {f.name: value for f in fields(self) if torch.is_tensor(value := getattr(self, f.name))}


@dataclass
class Buffer:
    """The groups of an iteration that are learned from.

    groups: of each of its steps. tokens: by optimizer step and process, what the loss is divided by.
    """

    groups: list[list[Group]] = field(default_factory=list)
    tokens: float = 0.0

    def save(self, path: Path) -> None:
        tensors = {
            f"{step}.{number}.{name}": tensor.contiguous()
            for step, groups in enumerate(self.groups)
            for number, group in enumerate(groups)
            for name, tensor in group.tensors().items()
        }
        scenes = [[[group.scene.task, group.scene.seed] for group in groups] for groups in self.groups]
        save_file(tensors, path, metadata={"scenes": json.dumps(scenes), "tokens": repr(self.tokens)})

    @classmethod
    def load(cls, path: Path) -> "Buffer":
        """Raises UnreadableFile, naming the file, if it is missing or damaged."""
        with reading(path, MEND), safe_open(path, "pt") as file:
            described, names = file.metadata(), defaultdict(dict)
            for key in file.keys():
                step, number, name = key.split(".", 2)
                names[int(step), int(number)][name] = file.get_tensor(key)
            groups = [
                [Group(PracticeScene(*scene), **names[step, number]) for number, scene in enumerate(scenes)]
                for step, scenes in enumerate(json.loads(described["scenes"]))
            ]
            return cls(groups, float(described["tokens"]))

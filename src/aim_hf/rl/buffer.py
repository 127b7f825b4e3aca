"""Groups of episodes that an iteration learns from, and their file in a checkpoint."""

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
    """Training data of G episodes of one scene, with up to C chunks and S random denoising steps per chunk.

    prompt_embeds: (L, text_dim). first: (c, 1, h, w), latents of the first observation.
    rgb, value: (G, C, c, F, h, w), imagined latents. observed: the same shape, real latents after each chunk.
    executed: (G, C, F * n, D), normalized actions.
    steps: (C, S), indices of the random denoising steps. before, after: (G, C, S, P, D), the samples before and after
        these steps. log_probs: (G, C, S, M), log-likelihoods of these steps under the policy of the rollout.
    num_chunks: (G,), number of chunks of each episode; all tensors are zero beyond it. success: (G,).
    advantages: (G, C), set by the trainer.
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
        """All tensor fields that are set, by name."""
        return {f.name: value for f in fields(self) if torch.is_tensor(value := getattr(self, f.name))}


@dataclass
class Buffer:
    """Groups of one iteration that are learned from.

    groups: of each batch. tokens: number of tokens per batch and process, which the loss is divided by.
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
            metadata, tensors = file.metadata(), defaultdict(dict)
            for key in file.keys():
                step, number, name = key.split(".", 2)
                tensors[int(step), int(number)][name] = file.get_tensor(key)
            groups = [
                [
                    Group(PracticeScene(task, seed), **tensors[step, number])
                    for number, (task, seed) in enumerate(scenes)
                ]
                for step, scenes in enumerate(json.loads(metadata["scenes"]))
            ]
            return cls(groups, float(metadata["tokens"]))

"""Muon for hidden weights, with AdamW for all other parameters.

Muon treats a weight of shape (out, in, ...) as a matrix (out, in * ...). It replaces the momentum by the nearest
semi-orthogonal matrix (five Newton-Schulz steps), so that all directions of the matrix learn at the same speed; Adam
learns rare directions slowly. Biases, gains, and input and output layers of a network use AdamW. `torch.optim.Muon`
doesn't accept convolution kernels, and updates matrices one by one; this class batches matrices of the same shape.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw

# Quintic iteration of Jordan et al., "Muon" (2024): steep at 0, and all singular values end in 0.7 .. 1.2.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class MuonWithAdamW(torch.optim.Optimizer):
    """
    Args:
        matrices: parameters of at least two dimensions, for Muon.
        others: parameters for AdamW.
        lr: learning rate of `matrices`: the singular values of a square matrix's update.
        adam_lr: learning rate of `others`.
        momentum: decay of Muon's gradient average, with Nesterov momentum.
        betas, eps: of AdamW.
        weight_decay: of both, decoupled: a step shrinks a weight by lr * weight_decay.
        dtype: of the Newton-Schulz steps; bfloat16 is accurate enough, and several times faster on hardware with
            bfloat16 support.

    Raises:
        ValueError: for a parameter of `matrices` with fewer than two dimensions.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        others: Iterable[torch.nn.Parameter],
        lr: float = 0.02,
        adam_lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        groups = [
            {"params": list(matrices), "muon": True, "lr": lr},
            {"params": list(others), "muon": False, "lr": adam_lr},
        ]
        defaults = {"momentum": momentum, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults)
        self.dtype = dtype
        for parameter in self.param_groups[0]["params"]:
            if parameter.ndim < 2:
                raise ValueError(f"a parameter has shape {tuple(parameter.shape)}; expected 2 or more axes.")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
                    if not group["muon"]:
                        self.state[parameter]["variance"] = torch.zeros_like(parameter)
                        self.state[parameter]["step"] = torch.zeros(())
            if parameters:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                (self._muon if group["muon"] else self._adam)(parameters, group)

    def _muon(self, parameters: list[torch.nn.Parameter], group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, ...], list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}
        for parameter in parameters:
            average = self.state[parameter]["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            nesterov = parameter.grad.lerp(average, group["momentum"]).flatten(1)
            by_shape.setdefault(tuple(nesterov.shape), []).append((parameter, nesterov))
        for (rows, columns), entries in by_shape.items():
            updates = orthogonalize(torch.stack([nesterov for _, nesterov in entries]).to(self.dtype))
            scale = max(1.0, rows / columns) ** 0.5
            for (parameter, _), update in zip(entries, updates):
                parameter.add_(update.to(parameter.dtype).view_as(parameter), alpha=-group["lr"] * scale)

    def _adam(self, parameters: list[torch.nn.Parameter], group: dict[str, Any]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        means, variances, steps = ([state[name] for state in states] for name in ("momentum", "variance", "step"))
        gradients, (beta1, beta2) = [parameter.grad for parameter in parameters], group["betas"]
        options = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "eps": group["eps"], "weight_decay": 0.0}
        adamw(parameters, gradients, means, variances, [], steps, amsgrad=False, maximize=False, **options)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Approximately U V^T of the singular value decomposition of each matrix, (..., rows, columns)."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x

"""Muon for convolutions: momentum whose every step is an orthogonal matrix.

A weight of shape (out, in, ...) is taken as a matrix (out, in * ...). Its momentum is replaced by the nearest
semi-orthogonal matrix (five Newton-Schulz steps), so that all directions of the matrix learn at the same speed, where
Adam leaves the rare ones behind. `torch.optim.Muon` takes matrices only. The rest of a network, biases and gains, goes
to AdamW.
"""

import torch

# Of the quintic iteration in Jordan et al., "Muon" (2024): steep at 0, and every singular value ends in 0.7 .. 1.2.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """
    Args:
        params: tensors of at least two dimensions.
        lr: size of a step, as the singular values of a square matrix.
        momentum: decay of the averaged gradient, with Nesterov's look-ahead.

    Raises:
        ValueError: for a tensor of fewer dimensions.
    """

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ValueError(f"a parameter has shape {tuple(parameter.shape)}; expected 2 or more axes.")

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                average = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalize(parameter.grad.lerp(average, group["momentum"]).flatten(1))
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """(rows, columns) -> about U V^T of its singular value decomposition."""
    a, b, c = _NEWTON_SCHULZ
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x

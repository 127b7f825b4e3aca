"""Muon for matrices, AdamW for the rest, in one optimizer."""

import copy

import pytest
import torch

from aim_hf.training.muon import MuonWithAdamW, orthogonalize

from .test_stage1 import latents, pipe, train  # noqa: F401


def parameters_with_gradients(steps: int = 5):
    torch.manual_seed(0)
    shapes = ((8, 20), (8, 20), (20, 8), (6, 4, 3, 3), (7,), (5, 5))
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    return parameters, [[torch.randn(shape) for shape in shapes] for _ in range(steps)]


def descend(optimizer, parameters, gradients):
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonal_updates(dtype):
    torch.manual_seed(0)
    for shape in ((3, 8, 20), (20, 8)):
        singular_values = torch.linalg.svdvals(orthogonalize(torch.randn(shape).to(dtype)).float())
        assert ((singular_values > 0.6) & (singular_values < 1.3)).all()


def test_matrices_move_by_orthogonal_steps():
    """One by one as in a batch of equal shapes, kernels as matrices, and only along the direction of descent."""
    parameters, gradients = parameters_with_gradients(1)
    matrices = parameters[:4]
    before = copy.deepcopy(matrices)
    descend(MuonWithAdamW(matrices, parameters[4:], lr=0.1), parameters, gradients)
    for old, new, gradient in zip(before, matrices, gradients[0], strict=False):
        step = (old - new).detach().flatten(1) / 0.1 / max(1.0, len(old) / old[0].numel()) ** 0.5
        torch.testing.assert_close(step, orthogonalize(gradient.flatten(1)), rtol=1e-4, atol=1e-4)


def test_the_rest_is_adamw():
    parameters, gradients = parameters_with_gradients()
    others, twins = parameters[4:], copy.deepcopy(parameters[4:])
    settings = {"betas": (0.9, 0.97), "weight_decay": 0.1}
    descend(MuonWithAdamW(parameters[:4], others, adam_lr=0.01, **settings), parameters, gradients)
    descend(torch.optim.AdamW(twins, lr=0.01, **settings), twins, [step[4:] for step in gradients])
    torch.testing.assert_close(others, twins)


def test_it_takes_the_options_of_adamw(pipe, latents, tmp_path):  # noqa: F811
    options = {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-4, "weight_decay": 0.2}
    trainer = train(pipe, latents, tmp_path, 1, muon_learning_rate=0.02, **options)
    for group in trainer.optimizer.param_groups:
        assert (*group["betas"], group["eps"], group["weight_decay"]) == (0.8, 0.9, 1e-4, 0.2)


def test_its_state_can_be_saved_and_restored():
    parameters, gradients = parameters_with_gradients()
    optimizer = MuonWithAdamW(parameters[:4], parameters[4:])
    descend(optimizer, parameters, gradients[:2])
    twins, saved = copy.deepcopy(parameters), copy.deepcopy(optimizer.state_dict())
    descend(optimizer, parameters, gradients[2:])
    resumed = MuonWithAdamW(twins[:4], twins[4:])
    resumed.load_state_dict(saved)
    descend(resumed, twins, gradients[2:])
    assert all(torch.equal(a, b) for a, b in zip(parameters, twins, strict=True))


def test_a_vector_is_no_matrix():
    with pytest.raises(ValueError, match="2 or more axes"):
        MuonWithAdamW([torch.nn.Parameter(torch.zeros(3))], [torch.nn.Parameter(torch.zeros(3))])

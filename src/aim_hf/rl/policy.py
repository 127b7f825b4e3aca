"""The action head as a stochastic policy: denoising steps that are Gaussian and have a likelihood.

The SDE. Denoising solves the ODE dx = v dt from noise (t = 1) to actions (t = 0). Its result depends on the initial
noise alone, and the likelihood of that result is unknown. Flow-SDE (Flow-GRPO, arXiv 2505.05470; piRL, arXiv
2510.25889) adds noise to the denoising steps and corrects the drift, so that x_t keeps its distribution at every t:

    dx = [v + sigma_t^2 / (2t) * eps] dt + sigma_t dw,    eps = x + (1 - t) * v,    sigma_t = a * sqrt(t / (1 - t))

The step. Both papers take Euler steps of this SDE. These add too much noise in the last step and wherever sigma_t
is large: with 10 steps, samples of narrow data come out several times as wide as the data, and the robot shakes. The
step used here has the exact amount of noise. As in the ODE's Euler step, v is constant within a step, and so are the
two predictions that v stands for: the clean actions x_0 = x - t * v, and the noise eps. With x_0 constant, the noise
in x is an Ornstein-Uhlenbeck process, whose step from t to s is known in closed form:

    x_s = (1 - s) * x_0 + s * (rho * eps + sqrt(1 - rho^2) * z),    rho = [s * (1 - t) / (t * (1 - s))]^(a^2 / 2)

For small steps it equals the papers' step, and a = 0 gives the ODE's Euler step. With 10 steps, samples are
distributed as those of the ODE with 10 steps, so practice trains the sampler that is used afterwards.

Modes. Independent noise for each action mostly averages out over a chunk, and teaches little. The step may therefore
replace only the smoothest `noise_modes` cosine modes of the noise over the P actions; with one mode, the whole chunk
moves together. White noise of which a part is replaced stays white, so the distribution of x_t stays the same. The
likelihood is that of the replaced modes, given x_t.

The last step. The step to s = 0 has no noise, and hence no likelihood, unless `last_step_std` adds some. That noise
serves exploration: samples of the SDE are only as diverse as those of the ODE, so a policy that always misses by more
than its own spread never succeeds, and can't learn from success. Such noise would do harm in an earlier step: later
steps would see it, and practice would teach them to remove it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..model.cache import ActionContext
from ..model.modeling_aim import AIMForWorldAction
from ..utils.checks import check_number, check_whole

# Fields of a `Group` that the policy needs.
POLICY_INPUTS = (
    *("prompt_embeds", "first", "rgb", "value", "observed", "executed"),
    *("steps", "before", "after", "num_chunks"),
)
Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x (B, P, D), t (B,) -> (B, P, D)


@dataclass(frozen=True)
class FlowSDE:
    """
    noise_level: a, how much of the noise in a sample a step replaces; 0 for none.
    noise_modes: M, how many cosine modes of the noise over the P actions of a chunk are replaced, the smoothest ones;
        all if not given, and the actions then stand for themselves (M = P).
    last_step_std: standard deviation that the last step adds to each of the P actions, in its modes; 0 keeps the
        marginals.

    Raises:
        ValueError: if a number is negative, or there are fewer modes than one, or more than actions.
    """

    noise_level: float
    noise_modes: int | None = None
    last_step_std: float = 0.0

    def __post_init__(self):
        check_number("noise_level", self.noise_level, least=0)
        if self.noise_modes is not None:
            check_whole("noise_modes", self.noise_modes)
        check_number("last_step_std", self.last_step_std, least=0)

    def step(self, x: torch.Tensor, velocity: torch.Tensor, t: float, s: float) -> tuple[torch.Tensor, float]:
        """Mean of x_s and standard deviation of each of its modes, given x = x_t (..., P, D) and its velocity,
        0 <= s < t <= 1."""
        clean, noise = x - t * velocity, x + (1 - t) * velocity
        if s == 0:
            return clean, self.last_step_std * math.sqrt(x.shape[-2] / self.num_modes(x.shape[-2]))
        rho = (s * (1 - t) / (t * (1 - s))) ** (self.noise_level**2 / 2)
        kept = noise - (1 - rho) * self.from_modes(self.to_modes(noise), noise.shape[-2])
        return (1 - s) * clean + s * kept, s * math.sqrt(1 - rho**2)

    def num_modes(self, actions: int) -> int:
        return actions if self.noise_modes is None else self.noise_modes

    def to_modes(self, x: torch.Tensor) -> torch.Tensor:
        """(..., P, D) -> (..., M, D)."""
        return x if self.noise_modes is None else _product(self.basis(x.shape[-2]).to(x), x)

    def from_modes(self, modes: torch.Tensor, actions: int) -> torch.Tensor:
        """(..., M, D) -> (..., P, D)."""
        return modes if self.noise_modes is None else _product(self.basis(actions).T.to(modes), modes)

    def basis(self, actions: int) -> torch.Tensor:
        """(M, P), orthonormal rows: the actions themselves, or of the discrete cosine transform (DCT-II). Raises
        ValueError for more modes than actions."""
        if self.noise_modes is None:
            return torch.eye(actions, dtype=torch.float64)
        if self.noise_modes > actions:
            raise ValueError(
                f"noise_modes is {self.noise_modes}; expected at most {actions}, the actions of a prediction."
            )
        mode, action = (torch.arange(count, dtype=torch.float64) for count in (self.noise_modes, actions))
        mode = mode[:, None]
        waves = torch.cos(math.pi * mode * (action + 0.5) / actions) * math.sqrt(2 / actions)
        return torch.where(mode == 0, waves / math.sqrt(2), waves)


def _product(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """matrix @ x of small matrices in the precision of x; autocast would round a matrix product."""
    return (matrix[:, :, None] * x[..., None, :, :]).sum(dim=-2)


def log_density(x: torch.Tensor, mean: torch.Tensor, std: float) -> torch.Tensor:
    """Log-density of N(mean, std^2) at x, elementwise."""
    return -0.5 * ((x - mean) / std).square() - math.log(std) - 0.5 * math.log(2 * math.pi)


def kl_divergence(mean: torch.Tensor, reference: torch.Tensor, std: float) -> torch.Tensor:
    """KL(N(mean, std^2) || N(reference, std^2)), elementwise; exact."""
    return 0.5 * ((mean - reference) / std).square()


@dataclass(frozen=True)
class Decisions:
    """Random denoising steps of a batch of samples.

    steps: their S indices. before, after: (B, S, P, D), the samples before and after each step. log_probs: (B, S, M),
    log-densities of the results, of each mode, summed over the D numbers of an action.
    """

    steps: list[int]
    before: torch.Tensor
    after: torch.Tensor
    log_probs: torch.Tensor


@torch.no_grad()
def sample(
    velocity: Velocity,
    noise: torch.Tensor,
    times: list[float],
    sde: FlowSDE,
    steps: list[int],
    z: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Decisions]:
    """Denoises from `noise` (B, P, D) at times[0] = 1 to times[-1] = 0: `steps` by the SDE, other steps by the ODE.

    Args:
        times: K + 1 times in descending order.
        steps: indices of the random steps in ascending order, from 0 to K - 2, or to K - 1 if the last step has noise.
        z: (B, S, M, D), noise of the random steps.
        mask: over the last axis, 0 for numbers that the robot lacks; these don't count in the likelihood.

    Raises:
        ValueError: for no or unknown steps, or the last step if it has no noise and therefore no likelihood.
    """
    last = len(times) - (2 if sde.last_step_std else 3)
    if not steps or sorted(set(steps)) != steps or not 0 <= steps[0] <= steps[-1] <= last:
        raise ValueError(f"random steps are {steps}; expected some of 0 to {last}, in ascending order.")
    x, before, after, log_probs, ode = noise, [], [], [], FlowSDE(0.0)
    for index, (t, s) in enumerate(zip(times, times[1:])):
        v = velocity(x, x.new_full((len(x),), t)).to(x.dtype)
        if index not in steps:
            x, _ = ode.step(x, v, t, s)
            continue
        before.append(x)
        mean, std = sde.step(x, v, t, s)
        x = mean + std * sde.from_modes(z[:, steps.index(index)], x.shape[-2])
        after.append(x)
        log_probs.append(masked_sum(log_density(sde.to_modes(x), sde.to_modes(mean), std), mask))
    before, after, log_probs = (torch.stack(tensors, dim=1) for tensors in (before, after, log_probs))
    return x, Decisions(steps, before, after, log_probs)


def masked_sum(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Sum over the last axis, with an optional mask."""
    return (values if mask is None else values * mask).sum(dim=-1)


def action_velocity(model: AIMForWorldAction, context: ActionContext, reference: bool = False) -> Velocity:
    """Velocity of actions given `context`; `reference`: of the frozen reference policy."""

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model.action_velocity(context, x.to(model.dtype), t, reference).float()

    return velocity


class ActionPolicy(nn.Module):
    """The trained modules of stage 2: a model's action head and action experts.

    All other parameters of the model are frozen, and no part of this module. The frozen head and experts of
    [`AIMForWorldAction.separate_history_head`] encode executed actions, so that RGB and value maps don't change; they
    are also the reference policy of the KL divergence.
    """

    def __init__(self, model: AIMForWorldAction, times: list[float], sde: FlowSDE, mask: torch.Tensor):
        super().__init__()
        model.requires_grad_(False)
        model.separate_history_head()
        self.head = model.action_head.requires_grad_(True)
        self.experts = nn.ModuleList(layer.action.requires_grad_(True) for layer in model.blocks)
        self.times, self.sde, self.mask = times, sde, mask
        # Not registered as a submodule: the frozen model must not be moved, wrapped or saved with this module.
        self.__dict__["model"] = model

    def forward(
        self, groups: list[dict[str, torch.Tensor]]
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """Log-likelihoods of each group's random steps, and their KL divergence from the reference.

        Args:
            groups: the fields `POLICY_INPUTS` of each [`Group`].

        Returns:
            log-likelihoods and divergences of each group, (G, C, S, M) each; and a zero that depends on every
            parameter, so that a process without groups has gradients to reduce too.
        """
        zero = 0.0 * sum(parameter.sum() for parameter in self.parameters())
        return [self._evaluate(group) for group in groups], zero

    def _evaluate(self, group: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-likelihoods and divergences of one group.

        The context of each chunk is recomputed once, without gradients, and used for all of its random steps. As in
        the rollout, ended episodes are left out of the batch, so that numbers are the same; their results are zero.
        """
        before, after, log_probs, divergences = group["before"], group["after"], [], []
        for chunk, rows, context in self._states(group):
            # All steps of a chunk at once: (B * S, ...).
            x, results = before[rows, chunk].flatten(0, 1), after[rows, chunk]
            chosen = group["steps"][chunk].tolist()
            repeated = context.repeat_interleave(len(chosen))
            time = x.new_tensor([self.times[step] for step in chosen]).repeat(len(results))
            velocity = action_velocity(self.model, repeated)(x, time).view_as(results)
            with torch.no_grad():
                repeated = context.repeat_interleave(len(chosen))  # the gradient needs the other
                reference_velocity = action_velocity(self.model, repeated, reference=True)(x, time).view_as(results)
            for index, step in enumerate(chosen):
                x, t, s = before[rows, chunk, index], self.times[step], self.times[step + 1]
                mean, std = self.sde.step(x, velocity[:, index], t, s)
                reference_mean, _ = self.sde.step(x, reference_velocity[:, index], t, s)
                result, mean, reference_mean = map(self.sde.to_modes, (results[:, index], mean, reference_mean))
                log_prob = masked_sum(log_density(result, mean, std), self.mask)
                divergence = masked_sum(kl_divergence(mean, reference_mean, std), self.mask)
                for collected, of_rows in ((log_probs, log_prob), (divergences, divergence)):
                    collected.append(of_rows.new_zeros(len(before), *of_rows.shape[1:]).index_put((rows,), of_rows))
        shape = after.shape[1:3]  # chunks, steps
        log_probs, divergences = (torch.stack(parts, dim=1).unflatten(1, shape) for parts in (log_probs, divergences))
        return log_probs, divergences

    @torch.no_grad()
    def _states(self, group: dict[str, torch.Tensor]) -> Iterator[tuple[int, torch.Tensor, ActionContext]]:
        """Yields each chunk, the rows of episodes that haven't ended, and their actions' context, eq. (10)."""
        model, num_chunks = self.model, group["num_chunks"].cpu()
        names = ("prompt_embeds", "first", "rgb", "value", "observed", "executed")
        prompt_embeds, first, rgb, value, observed, executed = (group[name].to(model.dtype) for name in names)
        cache = model.new_cache(1, *first.shape[-2:])
        model.set_text(cache, prompt_embeds[None])
        model.append(cache, first[None])
        cache = cache.select(torch.zeros_like(num_chunks))  # the episodes' common history, computed once
        rows = torch.arange(len(num_chunks))
        for chunk in range(rgb.shape[1]):
            if chunk:
                running = num_chunks[rows] > chunk
                if not running.all():
                    rows, cache = rows[running], cache.select(running.nonzero()[:, 0])
                model.append(cache, observed[rows, chunk - 1], executed[rows, chunk - 1])
            yield chunk, rows, model.action_context(cache, rgb[rows, chunk], value[rows, chunk])

"""The action head as a policy with a likelihood.

The head solves the ODE dx = v dt from noise (t = 1) to actions (t = 0): given the noise nothing about it is random,
and nobody knows its likelihood. Flow-SDE (Flow-GRPO, arXiv 2505.05470; piRL, arXiv 2510.25889) puts noise into its
steps and corrects the drift, so that at every t the samples are distributed as before:

    dx = [v + sigma_t^2 / (2t) * eps] dt + sigma_t dw,    eps = x + (1 - t) * v,    sigma_t = a * sqrt(t / (1 - t))

Both papers take Euler's step of it, which adds too much noise where sigma_t is large or the step is the last: at 10
steps, samples of narrow data come out several times as wide as the data, and shake the robot. Here a step is exact in
its noise. The ODE's Euler step holds v, and so holds the two samples that it predicts, x_0 = x - t * v and eps. With
x_0 held, the noise in x is an Ornstein-Uhlenbeck process, which has a closed form: a step from t to s gives

    x_s = (1 - s) * x_0 + s * (rho * eps + sqrt(1 - rho^2) * z),    rho = [s * (1 - t) / (t * (1 - s))]^(a^2 / 2).

For small steps it is the papers'; a = 0 gives the ODE's Euler step; at 10 steps it samples what the ODE does at 10, so
that what is trained is what is used. The last step, to s = 0, has no noise, hence no likelihood, unless it is given
some.

Noise that is another for each action of a chunk mostly averages out on the way to where the chunk ends, and says
little about what to do better. So the renewed noise may be kept to the smoothest cosine modes of the noise over a
chunk's actions: with one mode, the whole chunk moves together. Renewing a part of white noise leaves it white, so the
marginals stay as they are. The likelihood is that of the modes that are random, given x_t.

Samples with the marginals of the ODE are no more diverse than what it makes: a policy that misses a place by more than
its own spread never hits it, and success can't teach it. Wider noise within the denoising is seen by the steps after
it, and what practice then teaches is to take it out again, which is worth nothing without it. So what explores beyond
the policy's spread comes after the last step, where no network sees it: `last_step_std`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..model.cache import ActionContext
from ..model.modeling_aim import AIMForWorldAction

# What of a group of rollouts the policy looks at.
POLICY_INPUTS = (
    *("prompt_embeds", "first", "rgb", "value", "observed", "executed"),
    *("steps", "before", "after", "num_chunks"),
)
Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of x (B, P, D) at t (B,)


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
        if not self.noise_level >= 0:
            raise ValueError(f"noise_level is {self.noise_level}; expected at least 0.")
        if self.noise_modes is not None and self.noise_modes < 1:
            raise ValueError(f"noise_modes is {self.noise_modes}; expected at least 1.")
        if not self.last_step_std >= 0:
            raise ValueError(f"last_step_std is {self.last_step_std}; expected at least 0.")

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
        """(M, P), orthonormal rows: the actions themselves, or of the discrete cosine transform (DCT-II)."""
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
    """matrix @ x, small, in x's own precision: autocast would round a matrix product."""
    return (matrix[:, :, None] * x[..., None, :, :]).sum(dim=-2)


def log_density(x: torch.Tensor, mean: torch.Tensor, std: float) -> torch.Tensor:
    """Of N(mean, std^2) at x, elementwise."""
    return -0.5 * ((x - mean) / std).square() - math.log(std) - 0.5 * math.log(2 * math.pi)


def kl_divergence(mean: torch.Tensor, reference: torch.Tensor, std: float) -> torch.Tensor:
    """KL(N(mean, std^2) || N(reference, std^2)), elementwise; exact."""
    return 0.5 * ((mean - reference) / std).square()


@dataclass(frozen=True)
class Decisions:
    """The random steps of a batch of samples, and where they led.

    steps: their indices, S of them. before, after: (B, S, P, D), the samples around each. log_probs: (B, S, M), the
    log-densities at which they were taken, of each mode, summed over the D numbers of an action.
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
    """Solves from `noise` (B, P, D) at times[0] = 1 to times[-1] = 0; the given `steps` by the SDE, others by the ODE.

    Args:
        times: K + 1 of them, falling.
        steps: indices of the random steps in ascending order, of 0 to K - 2, or to K - 1 if the last one has noise.
        z: (B, S, M, D), their noise.
        mask: over the last axis: 0 for numbers that are no part of the robot's actions, and of the likelihood.

    Raises:
        ValueError: for steps that are none, or the last one where it has no noise, and so no likelihood.
    """
    last = len(times) - (2 if sde.last_step_std else 3)
    if not steps or sorted(set(steps)) != steps or not 0 <= steps[0] <= steps[-1] <= last:
        raise ValueError(f"random steps are {steps}; expected some of 0 to {last}, in ascending order.")
    x, before, after, log_probs, still = noise, [], [], [], FlowSDE(0.0)
    for index, (t, s) in enumerate(zip(times, times[1:])):
        v = velocity(x, x.new_full((len(x),), t)).to(x.dtype)
        if index not in steps:
            x, _ = still.step(x, v, t, s)
            continue
        before.append(x)
        mean, std = sde.step(x, v, t, s)
        x = mean + std * sde.from_modes(z[:, steps.index(index)], x.shape[-2])
        after.append(x)
        log_probs.append(masked_sum(log_density(sde.to_modes(x), sde.to_modes(mean), std), mask))
    return x, Decisions(steps, *(torch.stack(parts, dim=1) for parts in (before, after, log_probs)))


def masked_sum(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Over the last axis."""
    return (values if mask is None else values * mask).sum(dim=-1)


def action_velocity(model: AIMForWorldAction, context: ActionContext, reference: bool = False) -> Velocity:
    """The velocity of actions that see `context`; by the reference, the frozen head, if asked for."""

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model.action_velocity(context, x.to(model.dtype), t, reference).float()

    return velocity


class ActionPolicy(nn.Module):
    """The action head and the action experts of a model as what is trained: all else is frozen, and no part of this
    module.

    Executed actions are encoded by head and experts as they were before
    ([`AIMForWorldAction.separate_history_head`]), so that RGB and value maps stay as they are. These copies are the
    reference of the divergence too.
    """

    def __init__(self, model: AIMForWorldAction, times: list[float], sde: FlowSDE, mask: torch.Tensor):
        super().__init__()
        model.requires_grad_(False)
        model.separate_history_head()
        self.head = model.action_head.requires_grad_(True)
        self.experts = nn.ModuleList(layer.action.requires_grad_(True) for layer in model.blocks)
        self.times, self.sde, self.mask = times, sde, mask
        # Set past torch's back: what is frozen shall be neither moved, nor wrapped, nor saved with this module.
        self.__dict__["model"] = model

    def forward(
        self, groups: list[dict[str, torch.Tensor]]
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """Of each group, `POLICY_INPUTS` of a [`Group`]: log-likelihoods of its random steps under the policy, and
        their KL divergence from the reference, (G, C, S, M) each, M modes of a prediction.

        Also a zero that depends on every parameter: where no group is left, there is still a gradient to share.
        """
        nothing = 0.0 * sum(parameter.sum() for parameter in self.parameters())
        return [self._evaluate(**group) for group in groups], nothing

    def _evaluate(self, prompt_embeds, first, rgb, value, observed, executed, steps, before, after, num_chunks):
        """Keys and values of each chunk's state are rebuilt once, without gradient, and serve all of its steps.
        Episodes that have ended are left out, as they were in the rollout, so that every number is the same as there;
        theirs are zero."""
        log_probs, divergences = [], []
        for chunk, rows, context in self._states(prompt_embeds, first, rgb, value, observed, executed, num_chunks):
            # All steps of a chunk at once: (B * S, ...).
            x, taken = before[rows, chunk].flatten(0, 1), after[rows, chunk]
            chosen = steps[chunk].tolist()
            context = context.repeat_interleave(len(chosen))
            policy, reference = (action_velocity(self.model, context, reference) for reference in (False, True))
            time = x.new_tensor([self.times[step] for step in chosen]).repeat(len(taken))
            velocity = policy(x, time).view_as(taken)
            with torch.no_grad():
                old = reference(x, time).view_as(taken)
            for index, step in enumerate(chosen):
                x, between = before[rows, chunk, index], self.times[step : step + 2]
                mean, std = self.sde.step(x, velocity[:, index], *between)
                reference_mean, _ = self.sde.step(x, old[:, index], *between)
                led_to, mean, reference_mean = map(self.sde.to_modes, (taken[:, index], mean, reference_mean))
                log_prob = masked_sum(log_density(led_to, mean, std), self.mask)
                divergence = masked_sum(kl_divergence(mean, reference_mean, std), self.mask)
                for of_all, of_rows in ((log_probs, log_prob), (divergences, divergence)):
                    of_all.append(of_rows.new_zeros(len(before), *of_rows.shape[1:]).index_put((rows,), of_rows))
        shape = after.shape[1:3]  # chunks, steps
        return tuple(torch.stack(parts, dim=1).unflatten(1, shape) for parts in (log_probs, divergences))

    @torch.no_grad()
    def _states(
        self, prompt_embeds, first, rgb, value, observed, executed, num_chunks
    ) -> Iterator[tuple[int, torch.Tensor, ActionContext]]:
        """Each chunk, the episodes that still run, and what their actions see, eq. (10)."""
        model, chunks = self.model, rgb.shape[1]
        dtype = model.dtype
        cache = model.new_cache(1, *first.shape[-2:])
        model.set_text(cache, prompt_embeds[None].to(dtype))
        model.append(cache, first[None].to(dtype))
        num_chunks = num_chunks.cpu()
        cache = cache.select(torch.zeros_like(num_chunks))  # the episodes' common past, computed once
        rows = torch.arange(len(num_chunks))
        for chunk in range(chunks):
            if chunk:
                going_on = num_chunks[rows] > chunk
                if not going_on.all():
                    rows, cache = rows[going_on], cache.select(going_on.nonzero()[:, 0])
                model.append(cache, observed[rows, chunk - 1].to(dtype), executed[rows, chunk - 1].to(dtype))
            yield chunk, rows, model.action_context(cache, rgb[rows, chunk].to(dtype), value[rows, chunk].to(dtype))

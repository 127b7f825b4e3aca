"""The loops over denoising steps as a CUDA graph needs them: no step waits for the host or sends to the device, and
each repeats the first one's operations on the same memory. The meta device, which has no values, stands for a GPU."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aim_hf.model.modeling_aim import AIMForWorldAction
from aim_hf.pipeline.sampling import denoise_actions, denoise_world, new_schedulers, prepare_latents
from aim_hf.pipeline.sampling_config import SamplingConfig

from ..model.test_modeling import B, C, H, S, W, make_model

CHUNKS = 6  # of history, so that the past is longer than everything that a step makes
GUIDED = SamplingConfig(num_inference_steps=3, num_action_inference_steps=3, guidance_scale=2.0)
HOST = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default)


def tensors_of(*trees) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(trees) if torch.is_tensor(leaf)]


class OnDevice(TorchDispatchMode):
    """Refuses operations that wait for the host, or that read or make a tensor outside of the meta device, from
    `watching` on. Counts the ones that it lets through."""

    def __init__(self):
        super().__init__()
        self.watching, self.count = False, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if self.watching:
            self.count += 1
            devices = {tensor.device.type for tensor in tensors_of(args, kwargs, result)}
            assert function not in HOST and devices <= {"meta"}, f"{function} on {devices}"
        return result

    def on_step_end(self, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        """Watches from the end of a loop's first step to the end of its last: a callback of the loop."""
        last = GUIDED.num_inference_steps, GUIDED.num_inference_steps + GUIDED.num_action_inference_steps
        self.watching = step + 1 not in last
        return tensors


def new_history(model: AIMForWorldAction, apart: bool = False):
    """A cache after `CHUNKS` chunks. apart: the second row is a chunk younger."""
    cache, config = model.new_cache(B, H, W), model.config

    def random(*shape):
        return torch.randn(shape, device=model.device, dtype=model.dtype)

    model.set_text(cache, random(B, S, config.text_dim))
    model.append(cache, random(B, C, 1, H, W))
    for chunk in range(CHUNKS):
        rows = torch.tensor([0]) if apart and chunk == 0 else torch.arange(B)
        latents = random(len(rows), C, config.chunk_latent_frames, H, W)
        model.append(cache, latents, random(len(rows), config.actions_per_chunk, config.action_dim), rows=rows)
    return cache


@torch.no_grad()
@pytest.mark.parametrize("apart", [False, True], ids=["", "rows of different age"])
def test_no_step_waits_for_the_host_or_sends_to_the_device(apart):
    model = make_model().to("meta")
    cache, unguided = new_history(model, apart), new_history(model, apart)
    *world, noise = prepare_latents(model.config, GUIDED, B, (H, W), device=torch.device("meta"))
    schedulers = new_schedulers(model.config)
    committed = torch.randn(B, 2, model.config.action_dim)  # from the robot, on the CPU
    with OnDevice() as watched:
        rgb, value = denoise_world(
            *(model, cache, *world, schedulers["scheduler"], GUIDED),
            unguided_cache=unguided,
            on_step_end=watched.on_step_end,
        )
        in_world = watched.count
        denoise_actions(
            *(model, cache, rgb, value, noise, schedulers["action_scheduler"], GUIDED),
            committed_actions=committed,
            on_step_end=watched.on_step_end,
        )
    assert in_world > 100 and watched.count > in_world + 100

    def refused(run):
        with OnDevice() as watched, pytest.raises((AssertionError, NotImplementedError, RuntimeError)):
            watched.watching = True
            run()

    refused(lambda: torch.ones(1).to("meta"))  # an upload
    refused(lambda: noise.sum().item())
    refused(lambda: (noise > 0).nonzero())


class Record(TorchDispatchMode):
    """Each operation with the form of its tensors, and the places of those that outlive a step."""

    def __init__(self, *lasting):
        super().__init__()
        self.places = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(lasting)}
        self.operations, self.made = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        forms = []
        for tensor in tensors_of(args, kwargs, result):
            lasts = tensor.untyped_storage().data_ptr() in self.places
            forms.append((tensor.shape, tensor.stride(), tensor.data_ptr() if lasts else None))
            if not lasts:
                self.made.append(tensor.untyped_storage().nbytes())
        self.operations.append((function, forms))
        return result


@torch.no_grad()
def test_each_step_repeats_the_first_one_in_the_same_memory():
    model = make_model()
    cache = new_history(model)
    *world, noise = (part.double() for part in prepare_latents(model.config, GUIDED, B, (H, W)))
    world_context, action_context = model.world_context(cache), model.action_context(cache, *world)
    times = torch.tensor([0.9, 0.3], dtype=torch.float64)
    world_times = model.condition_embedder.steps(times)
    action_times = model.action_head.condition_embedder.steps(times)
    for context, step in (
        (world_context, lambda i: model.world_velocity(world_context, *world, world_times[i])),
        (action_context, lambda i: model.action_velocity(action_context, noise, action_times[i])),
    ):
        records, past = [], context.past[0][0]
        for i in range(2):
            # The embedding of each time is a tensor of its own, of the same form: it isn't lasting.
            with Record(context.past, list(model.parameters()), world, noise, cache.text) as record:
                step(i)
            records.append(record)
        assert records[0].operations == records[1].operations and len(records[0].operations) > 100
        copy = past.numel() * past.element_size()
        assert copy > max(records[0].made), "a step copied the past"


@torch.no_grad()
def test_an_action_step_is_one_graph():
    """Traced without values: a branch on one, or a wait for one, would end the tracing."""

    class Step(nn.Module):
        def __init__(self, model, context, time):
            super().__init__()
            self.model, self.context, self.time = model, context, time

        def forward(self, noise):
            return self.model.action_velocity(self.context, noise, self.time)

    model = make_model(num_layers=1)
    cache = new_history(model)
    *world, noise = (part.double() for part in prepare_latents(model.config, GUIDED, B, (H, W)))
    context = model.action_context(cache, *world)
    (time,) = model.action_head.condition_embedder.steps(torch.tensor([0.4], dtype=torch.float64))
    want = model.action_velocity(context, noise, time)
    graph = torch.export.export(Step(model, context, time), (noise,), strict=False).module()
    torch.testing.assert_close(graph(noise), want, rtol=0, atol=1e-12)

"""GRPO end to end on a tiny random pipeline and the real simulator."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from transformers import TrainerCallback

from aim_hf import AIMPipeline
from aim_hf.commands import train_grpo
from aim_hf.envs import make_environment
from aim_hf.evaluation.comparison import ROUNDING, same_world
from aim_hf.pipeline.sampling import denoise_actions, with_steps
from aim_hf.pipeline.sampling_config import SamplingConfig
from aim_hf.rl import (
    AIMGRPOConfig,
    AIMGRPOTrainer,
    PracticeScene,
    Scenes,
    contact_reward,
    success_reward,
    value_map_reward,
)
from aim_hf.rl.collector import Collector
from aim_hf.rl.metrics import merged_metrics
from aim_hf.rl.policy import POLICY_INPUTS, ActionPolicy, FlowSDE
from aim_hf.rl.safety import Safety
from aim_hf.rl.scenes import RepeatSampler
from aim_hf.rollout.vector_env import VectorEnvironment
from aim_hf.utils.files import MADE_FROM

from ..rollout.fixtures_policy import make_policy
from .fixtures_worker import die

ROOT = Path(__file__).parents[2]

RL = 1_000_000


def make_pipeline():
    """A random one whose actions tremble above the table, where the head camera sees them."""
    pipe = make_policy(action_lookahead_frames=1).pipe
    statistics = {name: list(numbers) for name, numbers in pipe.processor.action_statistics.items()}
    for numbers in statistics.values():
        numbers[0] += 0.15
        numbers[8] -= 0.15
    pipe.processor.action_statistics = statistics
    return pipe


TIMES = [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.fixture(scope="module")
def environments():
    with VectorEnvironment("tabletop", "easy", num_workers=2, purpose="rl", discard_lost=True) as pool:
        yield pool


def make_collector(environments, num_generations=3, num_random_steps=2, max_completion_length=None, noise_modes=None):
    pipe = make_pipeline()
    mask = torch.ones(16, dtype=torch.bool)
    policy = ActionPolicy(pipe.model, TIMES, FlowSDE(0.7, noise_modes), mask)
    options = {"max_completion_length": max_completion_length, "seed": 0}
    steps, sampling = list(range(len(TIMES) - 2)), SamplingConfig(num_inference_steps=1)
    return Collector(pipe, policy, environments, sampling, num_generations, steps, num_random_steps, **options)


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    """They end after three chunks: the random policy would go on to the step limit."""
    step = VectorEnvironment.step

    def shortened(self, actions, mode):
        answers = step(self, actions, mode)
        return {row: replace(p, done=p.done or p.steps >= 24) for row, p in answers.items()}

    monkeypatch.setattr(VectorEnvironment, "step", shortened)


# Rollouts


def test_a_group_shares_all_but_its_random_steps(environments):
    collector = make_collector(environments)
    group, outcomes = collector.collect([PracticeScene("click_bell", RL)], generation=0)[0]
    assert group.num_chunks.tolist() == [3, 3, 3] and [len(o.targets) for o in outcomes] == [3, 3, 3]
    for row in (1, 2):
        assert torch.equal(group.rgb[row, 0], group.rgb[0, 0]) and torch.equal(group.value[row, 0], group.value[0, 0])
        assert not torch.equal(group.after[row, 0], group.after[0, 0])
        assert not torch.equal(group.executed[row, 0], group.executed[0, 0])
        assert not torch.equal(group.observed[row, 0], group.observed[0, 0])
    first = group.before[:, 0, 0]
    for row in (1, 2):  # the same noise, up to the first random step
        torch.testing.assert_close(first[row], first[0], rtol=0, atol=1e-5)
    assert collector.control_steps == 72 and collector.lost == 0
    # What was wanted of the tools is what was executed.
    last = collector.pipe.processor.unnormalize_actions(group.executed[0, 0].double(), _initial_pose(RL))[-1]
    np.testing.assert_allclose(outcomes[0].targets[0, -1], torch.stack([last[:3], last[8:11]]), atol=1e-5)


def test_random_steps_are_those_asked_for(environments):
    collector = make_collector(environments, num_random_steps=1)
    collector.random_steps = [1]
    group, _ = collector.collect([PracticeScene("click_bell", RL)], generation=0)[0]
    assert group.steps.tolist() == [[1], [1], [1]]


def test_practice_may_begin_without_noise_as_use_does(environments):
    """With `action_noise_scale` 0 the actions are those of the pipeline at that scale, but for the last step's."""
    collector = make_collector(environments, num_random_steps=1)
    pipe, count = collector.pipe, len(TIMES) - 1
    collector.random_steps = [count - 1]
    collector.sampling_config = SamplingConfig(1, count, action_noise_scale=0.0)
    collector.policy.sde = FlowSDE(0.7, noise_modes=1, last_step_std=1e-6)
    scheduler = with_steps(pipe.action_scheduler, count, "cpu")
    collector.policy.times = scheduler.sigmas.double().tolist()
    group, _ = collector.collect([PracticeScene("click_bell", RL)], generation=0)[0]
    cache = pipe.model.new_cache(1, *group.first.shape[-2:])
    pipe.model.set_text(cache, group.prompt_embeds[None])
    pipe.model.append(cache, group.first[None])
    noise = torch.zeros(1, *group.before.shape[-2:])
    world = group.rgb[:1, 0], group.value[:1, 0]
    actions = denoise_actions(pipe.model, cache, *world, noise, pipe.action_scheduler, collector.sampling_config)
    torch.testing.assert_close(group.after[:, 0, 0], actions.expand(3, -1, -1), rtol=0, atol=1e-4)


def test_episodes_may_be_cut_short(environments):
    collector = make_collector(environments, max_completion_length=12)
    group, outcomes = collector.collect([PracticeScene("click_bell", RL)], generation=0)[0]
    assert group.num_chunks.tolist() == [2, 2, 2] and {outcome.steps for outcome in outcomes} == {16}


def _initial_pose(seed):
    env = make_environment("tabletop", "click_bell")
    pose = make_pipeline().processor.initial_pose(env.reset(seed))
    env.close()
    return pose


def test_a_group_does_not_depend_on_what_runs_beside_it(environments):
    collector = make_collector(environments)
    scene, other = PracticeScene("click_bell", RL), PracticeScene("place_a2b_left", RL + 5)
    alone, outcomes = collector.collect([scene], generation=3)[0]
    (_, _), (beside, others) = collector.collect([other, scene], generation=3)
    for name, tensor in alone.tensors().items():
        assert torch.equal(tensor, getattr(beside, name)), name
    assert all(np.array_equal(a.targets, b.targets) for a, b in zip(outcomes, others))
    again, _ = collector.collect([scene], generation=4)[0]
    assert not torch.equal(again.rgb, alone.rgb)  # each generation has noise of its own


def test_with_one_mode_a_random_step_moves_all_actions_of_a_chunk_together(environments):
    collector = make_collector(environments, num_random_steps=1, noise_modes=1)
    group, _ = collector.collect([PracticeScene("click_bell", RL)], generation=0)[0]
    apart = group.after[1:, 0, 0] - group.after[:1, 0, 0]  # (2, P, D) of the first chunk
    torch.testing.assert_close(apart, apart[:, :1].expand_as(apart), rtol=0, atol=1e-5)
    assert apart.abs().max() > 0.01
    assert group.log_probs.shape == (3, 3, 1, 1)


@pytest.mark.parametrize(("noise_modes", "visibility"), [(None, "map_only"), (1, "map_only"), (None, "aim")])
def test_the_ratio_is_one_before_anything_is_learned(environments, monkeypatch, noise_modes, visibility):
    """In float32, the path of training against the one of the rollout, of episodes that end one after another. Actions
    that see imagined RGB have the same in both."""
    step = VectorEnvironment.step

    def shortened(self, actions, mode):
        answers = step(self, actions, mode)
        return {row: replace(p, done=p.steps >= 8 * (3, 1, 2)[row]) for row, p in answers.items()}

    monkeypatch.setattr(VectorEnvironment, "step", shortened)
    collector = make_collector(environments, noise_modes=noise_modes)
    collector.pipe.model.config.visibility = visibility
    group, outcomes = collector.collect([PracticeScene("click_bell", RL)], generation=0)[0]
    assert group.num_chunks.tolist() == [3, 1, 2] and [len(o.value_maps["head_camera"]) for o in outcomes] == [3, 1, 2]
    assert group.log_probs.dtype == torch.float32 and group.log_probs[0].std() > 0.1
    inputs = {name: tensor for name, tensor in group.tensors().items() if name in POLICY_INPUTS}
    ((log_probs, divergence),), _ = collector.policy([inputs])
    assert ((log_probs - group.log_probs).exp() - 1).abs().max() <= 1e-5
    assert divergence.max() == 0
    for row, chunks in enumerate(group.num_chunks):
        assert torch.all(group.log_probs[row, :chunks] != 0) and torch.all(group.log_probs[row, chunks:] == 0)
    ((others, _),), _ = collector.policy([inputs | {"rgb": inputs["rgb"].flip(1)}])
    assert torch.equal(others, log_probs) == (visibility == "map_only")


def test_a_killed_worker_costs_its_episodes_alone(environments, monkeypatch):
    collector = make_collector(environments, num_generations=4)
    step, killed = VectorEnvironment.step, []

    def killing(self, actions, mode):
        if not killed:
            killed.append(self.workers[1].process.pid)
            os.kill(killed[0], signal.SIGKILL)
        return step(self, actions, mode)

    monkeypatch.setattr(VectorEnvironment, "step", killing)
    group, outcomes = collector.collect([PracticeScene("click_bell", RL)], generation=0)[0]
    assert len(outcomes) == len(group.num_chunks) == len(group.before) == 2 and collector.lost == 2
    assert sorted(environments.lost) == [1, 3] and "died" in str(environments.lost[1])
    group, outcomes = collector.collect([PracticeScene("click_bell", RL)], generation=1)[0]
    assert len(outcomes) == 4 and collector.lost == 2


# Training


def make_trainer(tmp_path, reward_funcs=None, **options):
    pipe = make_pipeline()
    options = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "report_to": "none",
        "max_steps": 2,
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "num_inference_steps": 1,
        "num_action_inference_steps": 3,
        "num_env_workers": 1,
        "save_strategy": "no",
        "learning_rate": 1e-2,
    } | options
    return AIMGRPOTrainer(pipe, AIMGRPOConfig(**options), Scenes(["click_bell"], 8), reward_funcs)


def train(trainer, **kwargs):
    try:
        trainer.train(**kwargs)
    finally:
        trainer.close()
    return {name: tensor.clone() for name, tensor in trainer.pipe.model.state_dict().items()}


def acts(name):
    return name.startswith("action_head.") or ".action." in name


def test_training_changes_the_action_head_alone(tmp_path):
    rewards = [value_map_reward, success_reward, contact_reward]
    trainer = make_trainer(tmp_path, rewards, beta=0.1, num_iterations=2, num_random_steps=0, return_to_go=True)
    before = make_pipeline().model.state_dict()
    after = train(trainer)
    for name, tensor in before.items():
        if acts(name):
            frozen = name.replace("action_head.", "history_head.").replace(".action.", ".history.")
            assert torch.equal(after[frozen], tensor), name
        else:
            assert torch.equal(after[name], tensor), name
    changed = [name for name, tensor in before.items() if not torch.equal(after[name], tensor)]
    assert len(changed) > 10 and all(map(acts, changed))
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    for name in ("reward", "reward_std", "frac_reward_zero_std", "rollout/value_hit"):
        assert name in first, name
    assert all(f"rewards/{name}_reward/mean" in first for name in ("value_map", "success", "contact"))
    assert first["ratio_max"] == pytest.approx(1, abs=1e-5) and first["kl"] == pytest.approx(0, abs=1e-6)
    assert second["ratio_max"] != pytest.approx(1, abs=1e-5) and second["kl"] > 0  # the same episodes once more
    assert "reward" not in second and first["rollout/control_steps"] == 48

    # A whole pipeline comes of it, that samples the same world.
    trainer.pipe.save_pretrained(tmp_path / "pipeline")
    loaded = AIMPipeline.from_pretrained(tmp_path / "pipeline")
    assert loaded.model.config.separate_history_head
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, after[name]), name
    environment = make_environment("tabletop", "click_bell")
    observation = environment.reset(0)
    given = environment.instruction(), observation
    environment.close()
    world = same_world(make_pipeline(), loaded, *given)
    assert world["same_world"] and world["same_weights"] and world["largest_difference"] <= ROUNDING
    loaded.model.history_head.load_state_dict(loaded.model.action_head.state_dict())
    world = same_world(make_pipeline(), loaded, *given)  # what has been executed is seen in another way
    assert not world["same_world"] and not world["same_weights"] and world["largest_difference"] > ROUNDING


def test_small_updates_of_a_pipeline_in_bfloat16_are_kept(tmp_path):
    pipe = make_pipeline().to(torch.bfloat16)
    config = AIMGRPOConfig(str(tmp_path), use_cpu=True, report_to="none", learning_rate=1e-5, weight_decay=0.0)
    trainer = AIMGRPOTrainer(pipe, config, Scenes(["click_bell"], 8))
    before = {name: parameter.detach().double() for name, parameter in trainer.model.named_parameters()}
    for parameter in trainer.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.create_optimizer().step()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), before[name] - 1e-5, rtol=0, atol=5e-7, msg=name)
    assert torch.equal(pipe.model.action_head.proj_out.weight, trainer.model.head.proj_out.weight)


def test_it_resumes_in_the_middle_of_an_iteration(tmp_path):
    options = {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 6, "save_strategy": "steps"}
    once = train(make_trainer(tmp_path, save_steps=3, **options))
    shutil.rmtree(tmp_path / "checkpoint-6")
    trainer = make_trainer(tmp_path, save_steps=3, **options)
    resumed = train(trainer, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert all(torch.equal(once[name], resumed[name]) for name in once)
    rollouts = [entry for entry in trainer.state.log_history if "reward" in entry and "loss" in entry]
    assert [entry["step"] for entry in rollouts] == [1, 5]  # none was made again


def test_a_trainer_that_was_interrupted_resumes_as_a_new_one(tmp_path):
    """In the middle of an iteration, from a checkpoint of the one before."""
    options = {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 6, "save_strategy": "steps"}
    trainer = make_trainer(tmp_path, save_steps=3, logging_steps=2, **options)

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    trainer.add_callback(Interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(trainer)
    trainer.remove_callback(Interrupt)
    checkpoint = str(tmp_path / "checkpoint-3")
    again = train(trainer, resume_from_checkpoint=checkpoint)
    anew = make_trainer(tmp_path, save_steps=3, logging_steps=2, **options)
    resumed = train(anew, resume_from_checkpoint=checkpoint)
    assert all(torch.equal(again[name], resumed[name]) for name in again)
    logs = [[(e["step"], e["reward"]) for e in t.state.log_history if "reward" in e] for t in (trainer, anew)]
    assert [step for step, _ in logs[0]] == [2, 6] and logs[0] == logs[1]


def test_damaged_rollouts_of_a_checkpoint_are_told_by_name(tmp_path):
    train(make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1))
    path = tmp_path / "checkpoint-1" / "rollouts-0.safetensors"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(OSError, match=f"{path} (can't be read|is missing).*delete this checkpoint"):
            train(make_trainer(tmp_path), resume_from_checkpoint=str(path.parent))


def test_landing_points_count_alike_whichever_process_saw_them(tmp_path, monkeypatch):
    """Also where the process beside has lost all of its episodes."""
    counts = {"many": (9, 10), "one": (0, 1), "black": (0, 0)}
    monkeypatch.setattr("aim_hf.rl.trainer.value_hits", counts.get)
    trainer, joined = make_trainer(tmp_path), {}
    for outcomes in (["many"], ["one", "black"], []):
        trainer._metrics.clear()
        trainer._log_outcomes([_FakeOutcome(name) for name in outcomes])
        for name, values in trainer._metrics.items():
            joined.setdefault(name, []).extend(values)
    assert merged_metrics(joined, workers=1)["rollout/value_hit"] == pytest.approx(9 / 11)


class _FakeOutcome(str):
    success, steps = False, 8


def test_groups_without_spread_are_dropped_and_counted(tmp_path):
    trainer = make_trainer(tmp_path, reward_funcs=[success_reward], max_steps=1, weight_decay=0.0)
    before = {name: p.clone() for name, p in trainer.model.head.named_parameters()}
    train(trainer)
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.head.named_parameters())
    (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["frac_reward_zero_std"] == 1 and entry["loss"] == 0 and entry["rollout/success_rate"] == 0
    assert trainer._buffer.groups == [[]]


def test_advantages_of_an_episode_and_of_its_chunks(tmp_path):
    trainer = make_trainer(tmp_path, scale_rewards="none", reward_weights=[0.5, 2.0])
    group = _FakeGroup(num_chunks=torch.tensor([2, 1]))
    dense = [torch.tensor([0.2, 0.4]), torch.tensor([0.6])]
    sparse = [torch.tensor(1.0), torch.tensor(0.0)]
    trainer._score([(group, [[r.double() for r in dense], [r.double() for r in sparse]])])
    # Sparse: 2.0 * (1 - 0.5). Dense: 0.5 * (own - mean of the chunk's episodes).
    expected = torch.tensor([[1 + 0.5 * (0.2 - 0.4), 1 + 0.0], [-1 + 0.5 * (0.6 - 0.4), 0.0]])
    torch.testing.assert_close(group.advantages, expected / (1 + 1e-4))
    assert trainer._metrics["reward"] == [pytest.approx((0.5 * 0.3 + 2 + 0.5 * 0.6) / 2)]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_only_executed_actions_count(tmp_path, loss_type):
    trainer = make_trainer(tmp_path, loss_type=loss_type)
    executed, predicted = trainer.pipe.actions_per_chunk, trainer.pipe.model.config.action_horizon
    assert executed < predicted  # a lookahead, which the next chunk chooses again
    group = _FakeGroup(num_chunks=torch.tensor([2, 1]))
    group.log_probs = torch.zeros(2, 2, 3, predicted)
    weights = trainer._weights(group)
    counted = torch.zeros(2, 2, dtype=torch.bool)
    counted[0], counted[1, 0] = True, True
    assert torch.equal(weights[..., :executed] > 0, counted[:, :, None, None].expand(2, 2, 3, executed))
    assert torch.all(weights[..., executed:] == 0)
    if loss_type == "grpo":  # each episode counts the same
        torch.testing.assert_close(weights.sum(dim=(1, 2, 3)), torch.ones(2))
    # A mode of a whole prediction counts by how much of it is executed.
    trainer.model.sde, group.log_probs = FlowSDE(0.7, noise_modes=1), torch.zeros(2, 2, 3, 1)
    weight = 1 / 3 / group.num_chunks[:, None] if loss_type == "grpo" else executed / predicted
    torch.testing.assert_close(trainer._weights(group)[:, :, 1, 0], counted * weight)


class _FakeGroup:
    def __init__(self, num_chunks):
        self.num_chunks, self.advantages = num_chunks, None


def test_a_reward_that_is_not_finite_is_named(tmp_path):
    def broken_reward(outcomes):
        return [float("nan")] * len(outcomes)

    with pytest.raises(FloatingPointError, match=r"broken_reward is nan for click_bell, seed 1000000"):
        train(make_trainer(tmp_path, reward_funcs=[value_map_reward, broken_reward]))

    def short_reward(outcomes):
        return [0.0]

    with pytest.raises(ValueError, match="short_reward gave 1 rewards for 2 episodes"):
        train(make_trainer(tmp_path, reward_funcs=[short_reward]))


def test_evaluation_is_on_validation_scenes(tmp_path):
    trainer = make_trainer(tmp_path)
    metrics = trainer.evaluate(Scenes(["click_bell"], 2, "validation"))
    assert metrics["eval_success_rate"] == 0 and metrics["eval_episodes"] == 2
    assert metrics["eval_success/click_bell"] == 0 and metrics["eval_success_high"] > 0.5
    with pytest.raises(ValueError, match="train_dataset has scenes for evaluation; expected scenes for rl"):
        AIMGRPOTrainer(trainer.pipe, trainer.args, Scenes(["click_bell"], 8, "evaluation"))
    with pytest.raises(ValueError, match="eval_dataset has scenes for rl; expected scenes for validation"):
        AIMGRPOTrainer(trainer.pipe, trainer.args, Scenes(["click_bell"], 8), eval_dataset=Scenes(["click_bell"], 2))


@pytest.mark.parametrize(
    ("suite", "tasks", "told"),
    [
        ("tabletop", ["rubbish"], "no task rubbish in suite 'tabletop'; choose from click_bell"),
        (
            "tabletop",
            ["click_bell", "insertion", ""],
            "no task insertion,  in suite 'tabletop'; choose from click_bell",
        ),
        ("aloha", ["click_bell"], "no task click_bell in suite 'aloha'; choose from transfer_cube, insertion"),
        ("lab", ["click_bell"], "suite is 'lab'; expected one of tabletop, robotwin, aloha"),
    ],
)
def test_tasks_that_the_suite_lacks_are_refused_before_anything_is_simulated(
    tmp_path, monkeypatch, suite, tasks, told
):
    monkeypatch.setattr("aim_hf.rl.trainer.VectorEnvironment", None)
    trainer = make_trainer(tmp_path)
    args = AIMGRPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", suite=suite)
    for train_dataset, eval_dataset in (
        (Scenes(tasks, 4), None),
        (Scenes(["insertion" if suite == "aloha" else "lift_pot"], 4), Scenes(tasks, 4, "validation")),
    ):
        with pytest.raises(ValueError, match=f"^{told}"):
            AIMGRPOTrainer(trainer.pipe, args, train_dataset, eval_dataset=eval_dataset)
    trainer.args.suite = suite
    with pytest.raises(ValueError, match=f"^{told}"):
        trainer.evaluate(Scenes(tasks, 2, "validation"))


@pytest.mark.parametrize("reward_name", ["value_map_reward", "contact_reward"])
def test_it_stops_on_divergence_and_on_reward_without_success(tmp_path, reward_name):
    trainer = make_trainer(tmp_path, max_kl=0.5, hacking_patience=2)
    safety, control = Safety(trainer.log), trainer.control

    def evaluated(reward, success):
        trainer.log({f"rewards/{reward_name}/mean": reward})
        trainer.log({"eval_success_rate": success, "eval_success_high": success + 0.1})
        safety.on_evaluate(trainer.args, trainer.state, control)
        return [entry["eval_reward_hacking"] for entry in trainer.state.log_history if "eval_reward_hacking" in entry]

    assert evaluated(0.2, 0.6)[-1] == 0
    assert evaluated(0.4, 0.55)[-1] == 0  # within the interval
    assert evaluated(0.4, 0.3)[-1] == 1 and not control.should_training_stop
    assert evaluated(0.1, 0.3)[-1] == 0  # no reward gained
    assert evaluated(0.4, 0.3)[-1] == 1 and evaluated(0.5, 0.3)[-1] == 1
    assert control.should_training_stop
    control.should_training_stop = False
    safety.on_log(trainer.args, trainer.state, control, {"kl": 0.4})
    assert not control.should_training_stop
    safety.on_log(trainer.args, trainer.state, control, {"kl": 0.6})
    assert control.should_training_stop


def test_reward_hacking_is_told_from_where_the_run_began(tmp_path):
    trainer = make_trainer(tmp_path)
    for entry in (
        {"eval_success_rate": 0.6, "eval_success_high": 0.7},  # of stage 1, before its first rollouts
        {"rewards/value_map_reward/mean": 0.2},
        {"rewards/value_map_reward/mean": 0.6},
        {"eval_success_rate": 0.3, "eval_success_high": 0.4},
    ):
        trainer.log(entry)
        if "eval_success_rate" in entry:
            Safety(trainer.log).on_evaluate(trainer.args, trainer.state, trainer.control)
    assert [e["eval_reward_hacking"] for e in trainer.state.log_history if "eval_reward_hacking" in e] == [1]


def test_scenes_take_turns_and_processes_share_them():
    scenes = Scenes(["click_bell", "lift_pot"], 8)
    assert [scenes[i] for i in (0, 1, 2)] == [
        PracticeScene("click_bell", RL),
        PracticeScene("lift_pot", RL),
        PracticeScene("click_bell", RL + 1),
    ]
    with pytest.raises(IndexError):
        scenes[8]
    options = {"num_generations": 2, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True}

    def plan(processes, accumulation):
        args = AIMGRPOConfig(gradient_accumulation_steps=accumulation, num_iterations=2, **options)
        return [list(RepeatSampler(args, 16, rank, processes)) for rank in range(processes)]

    (alone,), (first, second) = plan(1, 2), plan(2, 1)
    assert alone == [[0, 1, 2, 3]] * 4 + [[4, 5, 6, 7]] * 4 + [[8, 9, 10, 11]] * 4 + [[12, 13, 14, 15]] * 4
    assert first == [[0, 1]] * 2 + [[6, 7]] * 2 + [[8, 9]] * 2 + [[14, 15]] * 2
    assert [sorted(ours + theirs) for ours, theirs in zip(first, second)] == alone[::2]
    # Two of each of six tasks make an iteration; each process has one of each.
    args = AIMGRPOConfig(steps_per_generation=6, **{**options, "per_device_train_batch_size": 2})
    for rank in range(2):
        mine = next(iter(RepeatSampler(args, 12, rank, 2)))
        assert sorted(index % 6 for index in mine) == list(range(6))
    args = AIMGRPOConfig(**options)
    for part in (scenes, RepeatSampler(args, 16, 0, 1)):  # workers of a loader may be spawned
        assert list(pickle.loads(pickle.dumps(part))) == list(part)
    with pytest.raises(ValueError, match="train_dataset has 3 scenes; expected at least the 4"):
        RepeatSampler(AIMGRPOConfig(gradient_accumulation_steps=2, **options), 3, 0, 1)


def test_random_steps_are_whole_numbers(tmp_path):
    args = AIMGRPOConfig(tmp_path, use_cpu=True, random_steps=[0.0, 3.0]).for_pipeline(SamplingConfig())
    assert args.random_steps == [0, 3] and all(type(step) is int for step in args.random_steps)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"per_device_train_batch_size": 6, "num_generations": 4}, "multiple of num_generations=4"),
        ({"num_generations": 1}, "at least 2"),
        ({"loss_type": "ppo"}, "loss_type is 'ppo'; expected one of grpo, dapo"),
        ({"num_random_steps": 10}, "num_random_steps is 10; expected 0 to 9"),
        ({"random_steps": [7], "num_random_steps": 2}, "num_random_steps is 2; expected 0 to 1"),
        ({"random_steps": [8, 9]}, r"random_steps is \[8, 9\]; expected some of \[0, .*, 8\], in ascending order"),
        ({"random_steps": []}, r"random_steps is \[\]; expected some of \[0, 1"),
        ({"random_steps": 8}, "random_steps is 8; expected a list of finite numbers"),
        ({"noise_level": 0.0}, "no denoising step is random with noise_level 0.0"),
        ({"noise_level": 0.0, "random_steps": [3], "last_step_std": 0.1}, r"expected some of \[9\], in ascending"),
        ({"noise_level": 1e-9, "random_steps": [3]}, r"expected some of \[0\], in ascending"),
        ({"num_action_inference_steps": 1}, "no denoising step is random .* num_action_inference_steps 1,"),
        ({"noise_level": -1.0}, "noise_level is -1.0; expected a finite number, at least 0"),
        ({"last_step_std": float("nan")}, "last_step_std is nan; expected a finite number, at least 0"),
        ({"beta": -0.1}, "beta is -0.1; expected a finite number, at least 0"),
        ({"epsilon": 0.0}, "epsilon is 0.0; expected a number above 0"),
        ({"epsilon_high": -0.2}, "epsilon_high is -0.2; expected a number above 0"),
        ({"noise_modes": 0}, "noise_modes is 0; expected a whole number, at least 1"),
        ({"steps_per_generation": 0}, "steps_per_generation is 0; expected a whole number, at least 1"),
        ({"num_env_workers": 0}, "num_env_workers is 0; expected a whole number, at least 1"),
        ({"max_completion_length": 0}, "max_completion_length is 0; expected a whole number, at least 1"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5; expected a whole number, at least 1"),
        ({"num_action_inference_steps": 2.5}, "num_action_inference_steps is 2.5; expected a whole number, at least"),
        ({"num_iterations": 1.5}, "num_iterations is 1.5; expected a whole number, at least 1"),
        ({"num_generations": 2.5}, "num_generations is 2.5; expected a whole number, at least 2"),
        ({"num_random_steps": 1.5}, "num_random_steps is 1.5; expected a whole number, at least 0"),
        ({"hacking_patience": 0}, "hacking_patience is 0; expected a whole number, at least 1"),
        ({"max_kl": float("nan")}, "max_kl is nan; expected a number above 0"),
        ({"env_timeout": "5"}, "env_timeout is '5'; expected a number above 0"),
        ({"action_noise_scale": 1.5}, "action_noise_scale is 1.5; expected 0 to 1"),
        (
            {"reward_weights": [float("nan"), 1.0]},
            r"reward_weights is \[nan, 1.0\]; expected a list of finite numbers",
        ),
        ({"reward_weights": [0.0, 0.0]}, r"reward_weights is \[0.0, 0.0\]; expected one that is not 0"),
        ({"reward_weights": 2.0}, "reward_weights is 2.0; expected a list of finite numbers"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 500},
            "metric_for_best_model is 'loss'; expected a metric of evaluations, such as success_rate",
        ),
        ({"metric_for_best_model": "eval_reward"}, "metric_for_best_model is 'eval_reward'; expected a metric of"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, "multiple of gradient_accumulation_steps=2"),
    ],
)
def test_settings_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AIMGRPOConfig(report_to="none", use_cpu=True, **options).for_pipeline(SamplingConfig())


def test_without_noise_in_its_steps_the_last_one_is_random():
    args = AIMGRPOConfig(report_to="none", use_cpu=True, noise_level=0.0, last_step_std=0.1)
    assert args.for_pipeline(SamplingConfig()).random_steps == [9]
    assert args.for_pipeline(SamplingConfig(1, 4)).random_steps == [3], "the same arguments, for another pipeline"


def test_rollouts_take_the_pipelines_steps_unless_others_are_given(tmp_path):
    def trainer(**given):
        pipe = make_pipeline()
        pipe.sampling_config = SamplingConfig(2, 4, guidance_scale=2.0)
        args = AIMGRPOConfig(str(tmp_path), use_cpu=True, report_to="none", max_steps=1, **given)
        return AIMGRPOTrainer(pipe, args, Scenes(["click_bell"], 8))

    own = trainer()
    assert own.sampling_config == own.pipe.sampling_config == SamplingConfig(2, 4, guidance_scale=2.0)
    assert own.args.random_steps == [0, 1, 2] and len(own.model.times) == 5
    assert own.args.made_from()["num_action_inference_steps"] == 4
    other = trainer(num_inference_steps=1, num_action_inference_steps=3)
    assert other.sampling_config == SamplingConfig(1, 3, guidance_scale=2.0)
    assert other.pipe.sampling_config == SamplingConfig(2, 4, guidance_scale=2.0)


@pytest.mark.parametrize("shift", [0.1, 0.2, 5.0])
def test_shifted_times_begin_at_noise_to_the_last_bit(tmp_path, shift):
    """A first step from another time than 1 has no likelihood if it is above, and keeps noise if it is below."""
    pipe = make_pipeline()
    pipe.register_modules(action_scheduler=FlowMatchEulerDiscreteScheduler(shift=shift))
    args = AIMGRPOConfig(str(tmp_path), use_cpu=True, report_to="none", max_steps=1, num_action_inference_steps=4)
    policy = AIMGRPOTrainer(pipe, args, Scenes(["click_bell"], 8)).model
    x = torch.ones(1, 8, 16)
    _, std = policy.sde.step(x, x, *policy.times[:2])
    assert std == policy.times[1], "all of the noise is renewed"


def test_no_scenes_are_refused():
    for tasks, count in (([], 8), (["click_bell"], 0)):
        with pytest.raises(ValueError, match="expected at least one task and one scene"):
            Scenes(tasks, count)


def test_a_task_is_practised_and_evaluated_once():
    with pytest.raises(ValueError, match=r"tasks are \['click_bell', 'lift_pot', 'click_bell'\]; expected each once"):
        Scenes(["click_bell", "lift_pot", "click_bell"], 8)


def test_an_evaluation_needs_scenes(tmp_path):
    with pytest.raises(ValueError, match="eval_dataset is of type NoneType; expected Scenes"):
        make_trainer(tmp_path).evaluate()


def test_an_iteration_without_any_episode_is_an_error(tmp_path, monkeypatch):
    """Every environment dies as it starts: nothing was learned, and no pipeline comes of it."""
    monkeypatch.setattr("aim_hf.rollout.vector_env._serve", die)
    trainer = make_trainer(tmp_path, steps_per_generation=2)
    with pytest.raises(
        RuntimeError, match="every episode of iteration 0 was lost: the environment worker died in the"
    ):
        train(trainer)
    assert trainer.state.global_step == 0


def test_a_pipeline_is_used_as_it_has_practised(tmp_path):
    last = {"random_steps": [2], "last_step_std": 0.05}
    trainer = make_trainer(tmp_path, action_noise_scale=0.0, **last)
    assert trainer.pipe.sampling_config == SamplingConfig(action_noise_scale=0.0)
    assert trainer.sampling_config == SamplingConfig(1, 3, action_noise_scale=0.0)
    trainer.pipe.save_pretrained(tmp_path / "pipeline")
    assert AIMPipeline.from_pretrained(tmp_path / "pipeline").sampling_config.action_noise_scale == 0
    assert make_trainer(tmp_path, **last).pipe.sampling_config.action_noise_scale == 1  # the given one's own
    with pytest.raises(ValueError, match=r"action_noise_scale is 0.5 and random_steps \[0, 1\].*random_steps=\[2\]"):
        make_trainer(tmp_path, action_noise_scale=0.5)
    with pytest.raises(ValueError, match="action_noise_scale is 2; expected 0 to 1"):
        make_trainer(tmp_path, action_noise_scale=2, **last)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pipe", None, "pipe is of type NoneType; expected AIMPipeline"),
        ("pipe", "runs/aim/pipeline", "pipe is of type str; expected AIMPipeline"),
        ("args", None, "args is of type NoneType; expected AIMGRPOConfig"),
        ("train_dataset", None, "train_dataset is of type NoneType; expected Scenes"),
        ("train_dataset", ["click_bell"], "train_dataset is of type list; expected Scenes"),
    ],
)
def test_arguments_of_another_kind_are_named(name, value, message):
    given = {"args": AIMGRPOConfig(report_to="none", use_cpu=True), "train_dataset": Scenes(["click_bell"], 8)}
    with pytest.raises(ValueError, match=message):
        AIMGRPOTrainer(**{"pipe": make_pipeline(), **given, name: value})


def test_more_modes_than_actions_are_refused_before_any_rollout(tmp_path):
    with pytest.raises(ValueError, match="noise_modes is 99; expected at most"):
        make_trainer(tmp_path, noise_modes=99)


def test_settings_that_the_trainer_refuses_claim_no_folder(tmp_path):
    make_pipeline().save_pretrained(tmp_path / "pipeline")
    given = ["--policy", str(tmp_path / "pipeline"), "--output_dir", str(tmp_path / "run"), "--max_steps", "1"]
    with pytest.raises(ValueError, match="1 reward_weights for 2 reward_funcs"):
        train_grpo.main([*given, "--use_cpu", "--report_to", "none", "--reward_weights", "1"])
    assert not (tmp_path / "run" / MADE_FROM).exists()


def test_one_and_two_processes_learn_the_same(tmp_path, python):
    make_pipeline().save_pretrained(tmp_path / "pipeline")

    def run(name, launch, **options):
        options = {
            "policy": tmp_path / "pipeline",
            "output_dir": tmp_path / name,
            "tasks": "click_bell",
            "max_steps": 1,
            "num_generations": 2,
            "per_device_train_batch_size": 2,
            "num_inference_steps": 1,
            "num_action_inference_steps": 3,
            "reward_funcs": "value_map",
            "optim": "sgd",
            "learning_rate": 1.0,
            "max_grad_norm": 0,
            "num_env_workers": 1,
            "save_steps": 1,
            "report_to": "none",
        } | options
        given = (part for key, value in options.items() for part in (f"--{key}", str(value)))
        launch = ["--main_process_port", "0", *launch]  # other tests launch at the same time
        command = [python, "-m", "accelerate.commands.launch", *launch, "-m", "aim_hf", "train-grpo"]
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "--use_cpu", *given], check=True, timeout=300, env=environ)
        folder = tmp_path / name / "checkpoint-1"
        return load_file(folder / "model.safetensors"), folder

    cpu = ["--config_file", str(ROOT / "pipelines" / "accelerate" / "cpu.yaml")]
    alone, one = run("one", cpu, gradient_accumulation_steps=2)
    together, two = run("two", ["--multi_gpu", "--num_processes", "2"])
    rollouts = load_file(one / "rollouts-0.safetensors")
    for step in (0, 1):
        of_process = load_file(two / f"rollouts-{step}.safetensors")
        assert of_process and all(torch.equal(rollouts[f"{step}.{k[2:]}"], v) for k, v in of_process.items())
    start, moved = load_file(tmp_path / "pipeline" / "model" / "model.safetensors"), 0
    for name, tensor in alone.items():
        of_start = start[re.sub(r"^experts\.(\d+)", r"blocks.\1.action", re.sub("^head", "action_head", name))]
        gradient = of_start - tensor
        torch.testing.assert_close(of_start - together[name], gradient, rtol=1e-5, atol=1e-5, msg=name)
        moved += (gradient.abs().max() > 1e-3).item()
    assert moved
    assert json.loads((tmp_path / "two" / "training.json").read_text())["tasks"] == ["click_bell"]
    assert (tmp_path / "two" / "training.png").exists()

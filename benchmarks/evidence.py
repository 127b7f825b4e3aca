"""Compares ways in which the imagined future reaches the actions: training arms, judged on fresh scenes.

    RUNS=runs/evidence
    python benchmarks/evidence.py train --arm map_only --seed 1 --latents $RUNS/latents --output_dir $RUNS -- --use_cpu
    python benchmarks/evidence.py judge --arm map_only --seed 1 --output_dir $RUNS
    python benchmarks/evidence.py report

An arm is a variant of the visibility table (src/aim_hf/model/visibility.py); all arms have the same data, samples,
network and seeds. `judge` evaluates episodes of each task under each of `CONDITIONS`, on scenes that were never used
before. `report` writes evidence.json and prints its tables. Every step goes on where it was stopped.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from arms import (
    STAGE1,
    add_holm,
    as_arguments,
    launch,
    paired_gain,
    rates_table,
    read_judged,
    study,
    successes_of,
    summarize_runs,
    tests_table,
    write_judged,
)

from aim_hf.commands import PathParser

TASKS = ["click_bell", "place_a2b_left", "place_a2b_right", "stack_blocks_two", "lift_pot", "handover_block"]
# Decided before any result was looked at.
GROUPS = {
    "contact": ["click_bell"],
    "placing": ["place_a2b_left", "place_a2b_right"],
    "staging": ["stack_blocks_two", "handover_block"],
    "two arms": ["lift_pot", "handover_block"],
}
# Name -> fields of AIMConfig. The first four and the last are meant for three training seeds, the others for one.
ARMS = {
    "aim": {"visibility": "aim"},
    "map_only": {"visibility": "map_only"},
    "rgb": {"visibility": "rgb"},
    "observations": {"visibility": "observations"},
    "both": {"visibility": "both"},
    "no_value_loss": {"visibility": "observations", "value_loss_weight": 0.0},
    "map_only_imagined": {"visibility": "map_only"},
}
# Arm -> what differs in its training: half of its windows act on the maps that the model itself imagines.
TRAINING = {"map_only_imagined": {"imagined_value_probability": 0.5}}
# The questions: an arm, and the one that it is compared with. Decided before a second arm was judged.
PAIRS = [
    ("aim", "map_only"),  # does RGB help through the map's hidden states?
    ("rgb", "aim"),  # is the map better than RGB?
    ("rgb", "map_only"),
    ("observations", "aim"),  # is a future better than none?
    ("observations", "map_only"),
    ("observations", "rgb"),
    ("aim", "both"),  # does RGB add to the map?
    ("no_value_loss", "observations"),  # does the map help as an auxiliary loss?
    ("map_only", "map_only_imagined"),  # does it help to learn from imagined maps?
]
RESULTS = Path(__file__).parent / "results" / "evidence"
STEPS = 2667  # a third of what the checkpoint of version 0.1 was trained for
START_SEED = 20_000  # the scenes from here on are used for nothing else
# Name -> split, noise of the actions, the part of the imagined future that is another scene's, and episodes of a task.
CONDITIONS = {
    "easy": ("easy", 0.0, None, 100),
    "hard": ("hard", 0.0, None, 100),
    "hard, noise 1": ("hard", 1.0, None, 100),
    "hard, other RGB": ("hard", 0.0, "rgb", 32),
    "hard, other map": ("hard", 0.0, "value", 32),
}


def train(args: argparse.Namespace) -> None:
    config = json.dumps(ARMS[args.arm] | {"action_lookahead_frames": 1})
    options = STAGE1 | {
        "latents": args.latents,
        "policy": args.policy,
        "output_dir": args.output_dir / f"{args.arm}-{args.seed}",
        "preset": "tiny",
        "config": config,
        "seed": args.seed,
        "max_steps": STEPS,
        "per_device_train_batch_size": 16 // args.processes,
        "muon_learning_rate": 0.03,
        "learning_rate": 1.5e-3,
        "warmup_steps": 60,
        "sample_steps": 250,
    }
    launch(["train", *as_arguments(options | TRAINING.get(args.arm, {})), *args.options], args.processes)


def judge(args: argparse.Namespace) -> None:
    # Imported here: the environments' worker processes import this file too, and need none of it.
    import torch
    from accelerate import PartialState

    from aim_hf.evaluation.evaluate import Protocol, evaluate
    from aim_hf.rollout.policies import AIMPolicy
    from aim_hf.rollout.rows import ROWS

    state = PartialState(cpu=not torch.cuda.is_available())
    run = args.output_dir / f"{args.arm}-{args.seed}"
    for condition, (split, noise, part, episodes) in CONDITIONS.items():
        policy = AIMPolicy.from_pretrained(run / "pipeline", state.device, action_noise_scale=noise)
        batch_size = 32
        if part is not None:
            exchange(policy.pipe, part)
            policy.settings |= {"exchanged": part}
            policy, batch_size = KeepsAllRows(policy), ROWS  # so that each call has rows of several scenes
        protocol = Protocol(split=split, start_seed=START_SEED)
        folder = run / "judged" / condition
        if part is not None and state.is_main_process:
            forget_parts(folder, episodes)
        evaluate(policy, protocol, folder, episodes, TASKS, batch_size, videos=0, state=state)
    if state.is_main_process:
        about = {"arm": args.arm, "seed": args.seed, "start_seed": START_SEED}
        write_judged(args.results_dir / f"{args.arm}-{args.seed}.json", run, CONDITIONS, TASKS, about)


def exchange(pipe, part: str) -> None:
    """Lets a pipeline act on the RGB ("rgb"), or on the value map ("value"), that it has imagined for the row before:
    another scene of the same task."""
    imagine = pipe.denoise_world

    def denoise_world(*inputs, **options):
        latents, value_latents = imagine(*inputs, **options)
        if part == "rgb":
            return latents.roll(1, dims=0), value_latents
        return latents, value_latents.roll(1, dims=0)

    pipe.denoise_world = denoise_world


def forget_parts(folder: Path, episodes: int) -> None:
    """Deletes the records of tasks that were stopped halfway. The scene whose future a row gets depends on the other
    rows of its batch, and a single missing row would be alone, with its own future."""
    for path in folder.glob("episodes/*.jsonl"):
        if path.read_bytes().count(b"\n") < episodes:
            path.unlink()


class KeepsAllRows:
    """A policy in which episodes that have ended go on, seeing their last observation: each row has another scene,
    whose future it can be given. Raises RuntimeError for a row alone, as after the loss of a worker."""

    def __init__(self, policy):
        self.policy = policy

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def start(self, instructions, seeds):
        if len(seeds) < 2:
            raise RuntimeError(f"seed {seeds[0]} is alone, and has no other scene's future; judge this arm again.")
        self.running = list(range(len(seeds)))
        self.policy.start(instructions, seeds)

    def keep(self, rows):
        self.running = [self.running[row] for row in rows]

    def predict(self, observations, executed_actions=None, value_maps=None, pictures="none"):
        if executed_actions is None:
            self.observations, self.actions = observations, None
        else:
            self.observations = [[seen[-1]] * len(observations[0]) for seen in self.observations]
            for row, seen in zip(self.running, observations, strict=True):
                self.observations[row] = seen
        prediction = self.policy.predict(self.observations, self.actions, None, pictures)
        self.actions = prediction.actions
        maps = prediction.value_maps and {name: clips[self.running] for name, clips in prediction.value_maps.items()}
        return replace(prediction, actions=prediction.actions[self.running], value_maps=maps)


def report(args: argparse.Namespace) -> None:
    import torch

    from aim_hf.utils.files import write_json
    from aim_hf.utils.provenance import provenance

    records = read_judged(args.results_dir, ARMS)
    content = study(records, CONDITIONS, TASKS, PAIRS, summary)
    content["tests"] = [test for test in content["tests"] if CONDITIONS[test["condition"]][2] is None]
    content["interventions"] = interventions(records)
    add_holm([*content["tests"], *content["interventions"]])
    content["peaks"] = {arm: [record["peaks"] for record in of_arm] for arm, of_arm in records.items()}
    content["judged"] = {arm: [origin_of(record) for record in of_arm] for arm, of_arm in records.items()}
    content |= {"groups": GROUPS, "start_seed": START_SEED, "steps": STEPS}
    write_json(args.results_dir / "evidence.json", content | provenance(torch.device("cpu")))
    print(table(content))


def interventions(records: dict[str, list[dict]]) -> list[dict]:
    """Paired tests of each arm against itself: acting on another scene's part of the future, or on its own."""
    tests = []
    for condition, (split, noise, part, episodes) in CONDITIONS.items():
        if part is None:
            continue
        (own,) = (name for name, of in CONDITIONS.items() if of[:3] == (split, noise, None))
        before, after = (successes_of(records, name, TASKS) for name in (own, condition))
        for arm in records:
            own_scenes = {seed: of[:, :episodes] for seed, of in before[arm].items()}
            tests.append({"arm": arm, "condition": condition} | paired_gain(own_scenes, after[arm]))
    return tests


def origin_of(record: dict) -> dict:
    """The training seed of a judged arm, and where and how it was judged."""
    return {name: record[name] for name in ("seed", "command", "commit", "hardware")}


def summary(runs: np.ndarray, tasks: list[str]) -> dict:
    """As `summarize_runs`, with the rate of each group."""
    of = summarize_runs(runs, tasks)
    return of | {
        "groups": {name: float(np.mean([of["tasks"][task] for task in group])) for name, group in GROUPS.items()}
    }


def table(content: dict) -> str:
    lines = [*rates_table(list(ARMS), content["arms"]), "", *tests_table(content["tests"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = PathParser(description=__doc__)
    steps = parser.add_subparsers(required=True)
    for step in (train, judge, report):
        of_step = steps.add_parser(step.__name__)
        of_step.set_defaults(run=step)
        if step is not train:
            of_step.add_argument("--results_dir", type=Path, default=RESULTS, help="records of judged arms")
        if step is not report:
            of_step.add_argument("--output_dir", type=Path, required=True, help="holds a folder for each arm and seed")
            of_step.add_argument("--arm", choices=list(ARMS), required=True)
            of_step.add_argument("--seed", type=int, default=0, help="of the training")
        if step is train:
            of_step.add_argument("--latents", type=Path, required=True, help="of `aim-hf encode-latents`")
            of_step.add_argument(
                "--policy", type=Path, default=Path("checkpoints/aim-tiny"), help="its VAE and encoder"
            )
            of_step.add_argument("--processes", type=int, default=2, choices=(1, 2, 4, 8, 16), help="share 16 windows")
            of_step.add_argument("options", nargs="*", help="more of `aim-hf train`, behind --, such as -- --use_cpu")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()

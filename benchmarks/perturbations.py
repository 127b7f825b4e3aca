"""Where a policy holds under shift: its success on Easy, on Hard, and on every perturbation of the tabletop simulator.

    python benchmarks/perturbations.py --policy checkpoints/aim-tiny --episodes 50 --output_dir runs/perturbations
    python benchmarks/perturbations.py --policy A --policy B --tasks click_bell --axes camera light --episodes 50 \\
        --output_dir runs/two_policies

Scenes of a perturbation are those of Easy with one thing changed, so each is compared with Easy seed by seed: by
McNemar's exact test on the episodes in which only one of the two succeeded, under Holm's correction for a policy's
perturbations. With several policies, each later one is compared with the first on the same scenes, again under Holm's
correction. Scenes of Hard are others than those of Easy, so they have no paired difference.

Writes perturbations.json and perturbations.md, and goes on where it was stopped.
"""

import argparse
from pathlib import Path

from arms import add_holm

from aim_hf.commands import PathParser
from aim_hf.commands.policy_options import add_sampling_arguments, given_options
from aim_hf.envs.base import SPLITS
from aim_hf.envs.names import AXES, STRENGTHS, TABLETOP
from aim_hf.envs.seeds import episode_seeds
from aim_hf.evaluation.statistics import paired_difference, rate_of
from aim_hf.pipeline.sampling_config import SamplingConfig

START_SEED = 30_000  # the scenes from here on are used for nothing else

Outcomes = dict[tuple[str, int], bool]  # (task, seed) -> success


def splits_of(axes: list[str]) -> list[str]:
    return [*SPLITS, *(f"{axis}-{strength}" for axis in axes for strength in STRENGTHS)]


def folder_of(args: argparse.Namespace, place: int, split: str) -> Path:
    """The evaluation of the `place`-th policy on a split."""
    return args.output_dir / f"policy-{place + 1}" / split


def judge(args: argparse.Namespace) -> bool:
    """Runs the missing episodes. Returns whether this is the main process."""
    # Imported here: the environments' worker processes import this file too, and need none of it.
    import torch
    from accelerate import PartialState

    from aim_hf.evaluation.evaluate import Protocol, evaluate
    from aim_hf.rollout.policies import AIMPolicy

    state = PartialState(cpu=not torch.cuda.is_available())
    for place, name in enumerate(args.policy):
        policy = AIMPolicy.from_pretrained(name, state.device, **given_options(args, SamplingConfig))
        for split in splits_of(args.axes):
            protocol = Protocol(split=split, start_seed=args.start_seed)
            folder = folder_of(args, place, split)
            evaluate(policy, protocol, folder, args.episodes, args.tasks, args.batch_size, videos=0, state=state)
    return state.is_main_process


def outcomes(args: argparse.Namespace, place: int, split: str) -> Outcomes:
    from aim_hf.evaluation.evaluate import read_records

    seeds = set(episode_seeds("evaluation", args.start_seed, args.episodes))
    records = [(task, record) for task in args.tasks for record in read_records(folder_of(args, place, split), task)]
    return {(task, record["seed"]): record["success"] for task, record in records if record["seed"] in seeds}


def summary(found: Outcomes) -> dict:
    of_task = {task: [success for (name, _), success in found.items() if name == task] for task, _ in found}
    return {
        "episodes": len(found),
        **rate_of(sum(found.values()), len(found)),
        "tasks": {task: sum(of) / len(of) for task, of in of_task.items()},
    }


def difference(before: Outcomes, after: Outcomes) -> dict:
    """The paired difference on the same tasks and seeds."""
    return paired_difference(list(before.values()), [after[key] for key in before])


def report(args: argparse.Namespace) -> dict:
    splits = splits_of(args.axes)
    found = [{split: outcomes(args, place, split) for split in splits} for place in range(len(args.policy))]
    policies = [
        {
            "policy": name,
            "splits": {split: summary(of[split]) for split in splits},
            "to_easy": {split: difference(of["easy"], of[split]) for split in splits[len(SPLITS) :]},
            "to_first": {split: difference(found[0][split], of[split]) for split in splits if place},
        }
        for place, (name, of) in enumerate(zip(args.policy, found))
    ]
    for of in policies:
        add_holm(of["to_easy"].values())
        add_holm(of["to_first"].values())
    settings = {name: getattr(args, name) for name in ("tasks", "episodes", "start_seed")}
    return settings | {"policies": policies}


def table(content: dict) -> str:
    """The report in Markdown, a row for each split."""
    policies = content["policies"]
    letters = [chr(ord("A") + place) for place in range(len(policies))]
    tasks = ", ".join(f"`{task}`" for task in content["tasks"])
    legend = "; ".join(f"{letter} is `{of['policy']}`" for letter, of in zip(letters, policies))
    head = ["split"]
    for letter in letters:
        head += [f"success of {letter}", f"{letter}, points to Easy", "Holm's p"]
        head += [f"{letter} - A, points", "Holm's p"] if letter != "A" else []
    rows = []
    for split in policies[0]["splits"]:
        row = [split]
        for letter, of in zip(letters, policies):
            rate = of["splits"][split]
            low, high = (round(100 * bound) for bound in rate["wilson"])
            row.append(f"{rate['rate']:.1%} ({rate['successes']}/{rate['episodes']}; {low} to {high})")
            row += _cells(of["to_easy"].get(split))
            row += _cells(of["to_first"][split]) if letter != "A" else []
        rows.append(row)
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    told = f"{content['episodes']} episodes of each of {tasks}, from held-out seed {content['start_seed']:,} on."
    return f"{legend}. {told}\n\n" + "\n".join(lines) + "\n"


def _cells(of: dict | None) -> list[str]:
    return [f"{of['gain_points']:+.1f}", f"{of['holm_p']:.2g}"] if of else ["", ""]


def main() -> None:
    parser = PathParser(description=__doc__)
    parser.add_argument(
        "--policy", action="append", required=True, help="pipeline's folder or repo id; may be repeated"
    )
    parser.add_argument("--tasks", nargs="+", choices=TABLETOP, default=TABLETOP)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--episodes", type=int, default=50, help="of each task and split")
    parser.add_argument("--start_seed", type=int, default=START_SEED, help="offset into the seeds kept for evaluation")
    parser.add_argument("--batch_size", type=int, default=32, help="episodes that a process runs at a time")
    parser.add_argument("--output_dir", type=Path, required=True)
    add_sampling_arguments(parser)
    args = parser.parse_args()
    if not judge(args):
        return

    import torch

    from aim_hf.utils.files import write_json, write_text
    from aim_hf.utils.provenance import provenance

    content = report(args)
    write_json(args.output_dir / "perturbations.json", content | provenance(torch.device("cpu")))
    write_text(args.output_dir / "perturbations.md", table(content))
    print(table(content))


if __name__ == "__main__":
    main()

"""Compares two policies on the same held-out scenes, such as stage 1 with stage 2:

    aim-hf evaluate --policy before --episodes 100 --output_dir runs/before
    aim-hf evaluate --policy after --episodes 100 --output_dir runs/after
    aim-hf compare --before runs/before --after runs/after --output_dir runs/comparison --videos 6

Writes `comparison.json` (rates, gains, McNemar's exact test), `comparison.md`, `comparison.png`, and videos of both
policies in up to `--videos` episodes in which only one of them succeeds. The report says so if the two were sampled
differently, because part of the gain then doesn't come from training. With `--training` of stage 2 it also checks that
both policies predict the same RGB and value maps: the same stored weights, and outputs equal up to rounding. Videos
and that check need both policies as they were evaluated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..envs.robotwin import add_robotwin_arguments
from . import Parser, check_options


def main(argv: list[str]) -> None:
    parser = Parser("compare", __doc__)
    parser.add_argument("--before", type=Path, required=True, help="output folder of `aim-hf evaluate`")
    parser.add_argument(
        "--after", type=Path, required=True, help="output folder of the other policy, on the same scenes"
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--training", type=Path, help="training.json of the stage 2 run between them, which the report quotes"
    )
    parser.add_argument("--videos", type=int, default=0, help="episodes with different outcomes to film")
    add_robotwin_arguments(parser)
    args = parser.parse_args(argv)
    check_options(args, "videos", least=0)

    from .. import AIMPipeline
    from ..envs import make_environment
    from ..evaluation.comparison import check_weights, compare, format_comparison, same_world, training_summary
    from ..evaluation.evaluate import read_records, read_results
    from ..training.curve import plot_comparison
    from ..utils.files import claim, read_json, reading, write_json, write_text
    from ..utils.provenance import command

    comparison = compare(args.before, args.after)
    if args.videos or args.training is not None:
        check_weights(comparison)
    comparison["command"] = command()
    folders = {"before": args.before, "after": args.after}
    results_of = {side: read_results(folder) for side, folder in folders.items()}
    mend = "evaluate into another folder"
    settings_of = {side: read_json(folder / "settings.json", mend) for side, folder in folders.items()}
    made_from = {f"{side} {name}": value for side, of in settings_of.items() for name, value in of.items()}
    claim(args.output_dir, made_from, "comparison.json")  # videos of other policies may be there
    if args.training is not None:
        expected = "give the training.json that `aim-hf train-grpo` wrote"
        record = read_json(args.training, expected)
        results = results_of["before"]  # both have the same settings of the scenes
        with reading(args.training, expected):
            comparison["training"] = training_summary(record)
        task = next(iter(comparison["tasks"]))
        environment = make_environment(results["suite"], task, results["split"])
        observation = environment.reset(min(record["seed"] for record in read_records(args.before, task)))
        pipelines = [AIMPipeline.from_pretrained(comparison[side]["policy"]) for side in settings_of]
        comparison |= same_world(*pipelines, environment.instruction(results["instructions"]), observation)
        environment.close()
    write_json(args.output_dir / "comparison.json", comparison)
    write_text(args.output_dir / "comparison.md", format_comparison(comparison))
    plot_comparison(comparison, args.output_dir / "comparison.png")
    print(format_comparison(comparison))

    changed = [(task, seed) for task, of in comparison["tasks"].items() for seed in of["won"] + of["lost"]]
    chosen = changed[:: max(len(changed) // max(args.videos, 1), 1)][: args.videos]
    if chosen:
        film(results_of, chosen, args.output_dir / "videos")
        print(f"Videos of {len(chosen)} of {len(changed)} changed episodes: {args.output_dir / 'videos'}")


def film(results_of: dict[str, dict[str, Any]], scenes: list[tuple[str, int]], folder: Path) -> None:
    """Writes videos of both policies in `scenes`, (task, seed) each. `results_of`: side -> results.json."""
    from tqdm import tqdm

    from ..envs.base import SeedRejected
    from ..rollout.policies import OPTIONS, AIMPolicy
    from ..rollout.run import run_episodes
    from ..rollout.storyboard import write_video
    from ..rollout.vector_env import VectorEnvironment

    scene = results_of["before"]  # both have the same settings of the scenes
    with VectorEnvironment(scene["suite"], scene["split"], num_workers=1) as environments:
        for side, results in results_of.items():
            options = {name: results[name] for name in OPTIONS if name in results}
            policy = AIMPolicy.from_pretrained(results["policy"], **options)
            for task, seed in tqdm(scenes, unit="episode", desc=f"films {side}"):
                (result,) = run_episodes(
                    policy, environments, task, [seed], scene["instructions"], scene["value_maps"], {seed}
                )
                if isinstance(result, SeedRejected):  # it wasn't when both were evaluated
                    raise ValueError(f"seed {seed} of {task} can't be filmed: the suite rejects it ({result.reason}).")
                write_video(folder / f"{task}-{seed}-{side}.mp4", result.storyboard)

"""Stage 2: GRPO (eq. 12 and 13) on the action head of a stage 1 pipeline, in the simulator:

    accelerate launch -m aim_hf train-grpo --policy checkpoints/aim-tiny --output_dir runs/grpo \\
        --tasks click_bell stack_blocks_two --max_steps 40 --per_device_train_batch_size 8 \\
        --gradient_accumulation_steps 12

Every option of transformers' `TrainingArguments` and of `AIMGRPOConfig` works. A run that finds checkpoints in its
output folder resumes from the last one, also in the middle of an iteration. At the end `output_dir/pipeline` is the
complete pipeline with the new action head, `output_dir/training.json` holds the metrics, the command, the commit and
the hardware, and `output_dir/training.png` plots the metrics.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.hf_argparser import HfArg

from ..envs.names import TASKS, check_split
from ..envs.robotwin import add_robotwin_arguments, chosen_settings
from ..utils.checks import check_choice
from ..utils.files import write_json
from . import check_options, check_outside, check_robotwin_options

if TYPE_CHECKING:
    from ..rl import AIMGRPOConfig, AIMGRPOTrainer

# Set before SAPIEN loads its renderer: each process renders on one core, since processes share the machine.
os.environ.setdefault("LP_NUM_THREADS", "1")

# name -> function of `aim_hf.rl`
REWARDS = {"value_map": "value_map_reward", "contact": "contact_reward", "success": "success_reward"}


@dataclass
class ScriptArguments:
    policy: str = HfArg(help="folder or repo id of the pipeline that stage 1 trained")
    tasks: list[str] = HfArg(default_factory=list, help="default: all tasks of the suite")
    reward_funcs: list[str] = HfArg(
        default_factory=lambda: ["value_map", "success"], help=f"some of {', '.join(REWARDS)}"
    )
    eval_scenes: int = HfArg(default=48, help="scenes of an evaluation, all tasks together")


def parse(argv: list[str]) -> tuple[ScriptArguments, AIMGRPOConfig]:
    """The options, checked; `tasks` are all tasks of the suite where none is given.

    Raises:
        ValueError: for an unknown suite, split, task or reward, a task or reward that is given twice, no scene of an
            evaluation, or without `--max_steps`.
    """
    from transformers import HfArgumentParser

    from ..rl import AIMGRPOConfig, Scenes
    from ..utils.versions import with_installed_names

    parser = HfArgumentParser((ScriptArguments, AIMGRPOConfig), prog="aim-hf train-grpo", description=__doc__)
    add_robotwin_arguments(parser)
    script, args = parser.parse_args_into_dataclasses(with_installed_names(argv))
    check_choice("--suite", args.suite, TASKS)
    check_robotwin_options(args.suite, argv)
    check_split(args.suite, args.split)
    check_outside(Path(args.output_dir), script.policy)
    for name, known in (("tasks", TASKS[args.suite]), ("reward_funcs", REWARDS)):
        if unknown := set(getattr(script, name)) - set(known):
            raise ValueError(f"--{name} has {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    if len(set(script.reward_funcs)) < len(script.reward_funcs):
        raise ValueError(
            f"reward_funcs are {script.reward_funcs}; expected each once. Weigh them by --reward_weights."
        )
    if args.max_steps < 1:
        raise ValueError("--max_steps is missing: how many optimizer steps to take")
    check_options(script, "eval_scenes")
    script.tasks = script.tasks or list(TASKS[args.suite])
    check_watched(script, args)
    Scenes(script.tasks, script.eval_scenes, "validation")  # refuses tasks and counts without scenes
    return script, args


def check_watched(script: ScriptArguments, args: AIMGRPOConfig) -> None:
    """Raises ValueError for limits that would never stop the run, and for evaluations of some of the tasks alone."""
    evaluated, logged = args.eval_strategy != "no", args.logging_strategy != "no"
    if args.max_kl is not None and not logged:
        raise ValueError(
            f"--max_kl is {args.max_kl} and --logging_strategy no; the KL divergence is checked as it is logged"
        )
    if args.hacking_patience is not None and not (
        evaluated and logged and {"value_map", "contact"} & set(script.reward_funcs)
    ):
        raise ValueError(
            f"--hacking_patience is {args.hacking_patience}; expected evaluations, such as by --eval_strategy steps, "
            "logs, and value_map or contact among the --reward_funcs: it compares their rewards with success"
        )
    if evaluated and script.eval_scenes < len(script.tasks):
        raise ValueError(
            f"--eval_scenes is {script.eval_scenes}; expected at least one for each of {len(script.tasks)} tasks"
        )


def main(argv: list[str]) -> None:
    script, args = parse(argv)

    from .. import AIMPipeline, rl
    from ..model.checkpoint import fingerprint, local_folder
    from ..rollout.policies import check_fits, interface_of
    from ..training.checkpoints import claim_run

    policy = local_folder(script.policy)
    pipe = AIMPipeline.from_pretrained(policy)
    check_fits(interface_of(pipe), args.suite, args.split)
    batches = -(-args.max_steps * args.gradient_accumulation_steps // args.num_iterations)
    generations = -(-batches // args.steps_per_generation)
    groups = args.per_device_train_batch_size // args.num_generations * args.world_size
    trainer = rl.AIMGRPOTrainer(
        pipe,
        args,
        train_dataset=rl.Scenes(script.tasks, generations * args.steps_per_generation * groups),
        reward_funcs=[getattr(rl, REWARDS[name]) for name in script.reward_funcs],
        eval_dataset=rl.Scenes(script.tasks, script.eval_scenes, "validation"),
    )
    settings = {"policy": fingerprint(policy), "tasks": script.tasks, "reward_funcs": script.reward_funcs}
    settings |= chosen_settings(args.suite)
    # Not before the trainer has checked its settings: once corrected, they may have the same folder.
    resume = claim_run(trainer.args, settings)
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        trainer.close()
    if trainer.is_world_process_zero():
        export(trainer, script.tasks)


def export(trainer: AIMGRPOTrainer, tasks: list[str]) -> None:
    """Writes the pipeline, the record of the training and its plot to the output folder."""
    from ..pipeline.card import write_card
    from ..training.curve import plot_grpo
    from ..utils.provenance import provenance

    args, output = trainer.args, Path(trainer.args.output_dir)
    trainer.pipe.save_pretrained(output / "pipeline")
    write_card(output / "pipeline", output.resolve().name, trainer.pipe.processor)
    seeds = {name: [scenes[0].seed, scenes[len(scenes) - 1].seed] for name, scenes in trainer.scenes.items()}
    record = {"steps": trainer.state.global_step, "processes": args.world_size, "tasks": tasks, "seeds": seeds}
    record |= {"log_history": trainer.state.log_history} | provenance(args.device)
    write_json(output / "training.json", record)
    plot_grpo(trainer.state.log_history, output / "training.png")
    print(f"The pipeline with the new action head is {output / 'pipeline'}")

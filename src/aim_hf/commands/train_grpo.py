"""Stage 2: GRPO (eq. 12 and 13) on the action head of a stage 1 pipeline, in the simulator:

    accelerate launch -m aim_hf train-grpo --policy checkpoints/aim-tiny --output_dir runs/grpo \
        --tasks click_bell stack_blocks_two --max_steps 40 --per_device_train_batch_size 8 \
        --gradient_accumulation_steps 12

Every option of transformers' `TrainingArguments` works, and those of `AIMGRPOConfig`. A run that finds checkpoints in
its output folder continues from the last one, in the middle of an iteration too. At the end `output_dir/pipeline` is
the whole pipeline with the new action head, `output_dir/training.json` holds the numbers, the command, the commit and
the hardware, and `output_dir/training.png` shows them.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..envs.names import TASKS
from ..utils.files import claim, write_text

# Set before the simulator loads its renderer: a process renders on one core, and processes share the machine.
os.environ.setdefault("LP_NUM_THREADS", "1")


def main(argv: list[str]) -> None:
    from transformers import HfArgumentParser

    from ..rl import AIMGRPOConfig, success_reward, value_map_reward

    rewards = {"value_map": value_map_reward, "success": success_reward}

    @dataclass
    class ScriptArguments:
        policy: str = field(metadata={"help": "folder or repo id of the pipeline that stage 1 left"})
        tasks: list[str] = field(default_factory=list, metadata={"help": "default: all tasks of the suite"})
        reward_funcs: list[str] = field(
            default_factory=lambda: ["value_map", "success"], metadata={"help": f"some of {', '.join(rewards)}"}
        )
        eval_scenes: int = field(default=48, metadata={"help": "scenes of an evaluation, all tasks together"})

    parser = HfArgumentParser((ScriptArguments, AIMGRPOConfig), prog="aim-hf train-grpo", description=__doc__)
    own, args = parser.parse_args_into_dataclasses(argv)
    if args.suite not in TASKS:
        raise ValueError(f"--suite is {args.suite!r}; choose from {', '.join(TASKS)}")
    for name, given, known in (("tasks", own.tasks, TASKS[args.suite]), ("reward_funcs", own.reward_funcs, rewards)):
        if unknown := set(given) - set(known):
            raise ValueError(f"--{name} has {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    if args.max_steps < 1:
        raise ValueError("--max_steps is missing: how many optimizer steps to take")

    from .. import AIMPipeline
    from ..model.checkpoint import fingerprint, local_folder
    from ..rl import AIMGRPOTrainer, Scenes
    from ..rollout.policies import check_fits, interface_of
    from ..training.checkpoints import checkpoint_to_resume
    from ..training.curve import plot_grpo
    from ..utils.provenance import provenance

    policy, output = local_folder(own.policy), Path(args.output_dir)
    tasks = own.tasks or list(TASKS[args.suite])
    pipe = AIMPipeline.from_pretrained(policy)
    check_fits(interface_of(pipe), args.suite, args.split)
    settings = {"policy": fingerprint(policy), "tasks": tasks, "reward_funcs": own.reward_funcs}
    with args.main_process_first():
        claim(output, args.made_from() | settings, outputs="checkpoint-*")
    resume = checkpoint_to_resume(output, args.resume_from_checkpoint)
    batches = -(-args.max_steps * args.gradient_accumulation_steps // args.num_iterations)
    generations = -(-batches // args.steps_per_generation)
    groups = args.per_device_train_batch_size // args.num_generations * args.world_size
    trainer = AIMGRPOTrainer(
        pipe,
        args,
        train_dataset=Scenes(tasks, generations * args.steps_per_generation * groups),
        reward_funcs=[rewards[name] for name in own.reward_funcs],
        eval_dataset=Scenes(tasks, own.eval_scenes, "validation"),
    )
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        trainer.close()
    if trainer.is_world_process_zero():
        trainer.pipe.save_pretrained(output / "pipeline")
        seeds = {name: [scenes[0].seed, scenes[len(scenes) - 1].seed] for name, scenes in trainer.scenes.items()}
        record = {"steps": trainer.state.global_step, "processes": args.world_size, "tasks": tasks, "seeds": seeds}
        record |= {"log_history": trainer.state.log_history} | provenance(args.device)
        write_text(output / "training.json", json.dumps(record, indent=1) + "\n")
        plot_grpo(trainer.state.log_history, output / "training.png")
        print(f"The pipeline with the new action head is {output / 'pipeline'}")

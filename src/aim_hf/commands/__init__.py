"""The command `aim-hf`: each of its subcommands is a module here with a function `main(argv)`.

    aim-hf evaluate --policy DIR ...
    accelerate launch -m aim_hf evaluate --policy DIR ...    # the same in several processes

Options are spelled as those of transformers, diffusers and LeRobot are: `--output_dir`; `--output-dir` is the same.
One name stands for one thing in all of them: `--policy` is a checkpoint, the folder of an `AIMPipeline` (or of the
parts of one that are there yet) or a repo id; `--output_dir` is the folder that a command writes.

Each `main` parses first and imports what is heavy afterwards, so that help and wrong arguments are answered at once.
Processes of environments import this module too, and need none of that. The options of `train` and `train-grpo` are
fields of transformers' `TrainingArguments`, so these two import transformers and torch to parse.
"""

import argparse
import os
import re
import sys
from importlib import import_module

from ..utils.extras import MissingExtra, SimulatorFailed

COMMANDS = {
    "demo": "run a few held-out episodes of a policy, and make pictures of them",
    "app": "a page to watch a policy act",
    "evaluate": "success rates in closed loop",
    "compare": "two policies on the same scenes",
    "report": "a report over evaluations, beside published numbers",
    "serve": "serve a policy to robots, in openpi's protocol",
    "publish": "publish a pipeline, adapters, a dataset or a Space on the Hub",
    "collect": "record expert episodes with value maps",
    "validate": "check a folder of episodes",
    "preview": "a contact sheet of episodes",
    "import-lerobot": "make episodes of a LeRobot dataset",
    "export-lerobot": "make a LeRobot dataset of episodes",
    "encode-latents": "compute the latents that stage 1 trains on, once",
    "train-text-encoder": "train the tiny tokenizer and text encoder",
    "train-vae": "train the tiny video codec",
    "train": "stage 1: flow matching on RGB, value maps and actions",
    "train-grpo": "stage 2: GRPO on the action head",
    "check": "whether this machine can render and decode video",
}
RENAMED = {"--base": "--policy", "--pipeline": "--policy"}


class Parser(argparse.ArgumentParser):
    """The options of a subcommand; its description is the module's docstring."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            f"aim-hf {command}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )


def spelled(argv: list[str]) -> list[str]:
    """The arguments with options as they are declared: underscores, and the names of today."""

    def option(text: str) -> str:
        match = re.match(r"--[A-Za-z][\w-]*", text)
        if match is None:
            return text
        name = "--" + match[0][2:].replace("-", "_")
        if name in RENAMED:
            print(f"{name} is called {RENAMED[name]} now.", file=sys.stderr)
        return RENAMED.get(name, name) + text[match.end() :]

    return [option(text) for text in argv]


def run(argv: list[str] | None = None) -> None:
    """Runs a subcommand. Its errors about input, which name what is wrong and the mend, are one line and exit code 2;
    AIM_HF_TRACEBACK=1 shows where they come from."""
    command, *options = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        listed = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
        print(f"usage: aim-hf COMMAND [options]\n\n{listed}\n\naim-hf COMMAND --help tells its options.")
        return
    if command not in COMMANDS:
        fail(f"there is no command {command!r}; choose one of {', '.join(COMMANDS)}")
    try:
        import_module(f".{command.replace('-', '_')}", __name__).main(spelled(options))
    except (OSError, ValueError, FloatingPointError, MissingExtra, SimulatorFailed) as error:
        if os.environ.get("AIM_HF_TRACEBACK"):
            raise
        fail(f"{command}: {error}")


def fail(message: str) -> None:
    print(f"aim-hf {message}", file=sys.stderr)
    raise SystemExit(2)

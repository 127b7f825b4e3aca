"""Options that are the fields of a configuration."""

import argparse
import inspect
import re
from dataclasses import fields
from typing import Any, get_args

from ..pipeline.loading_config import LoadingConfig
from ..pipeline.sampling_config import SamplingConfig


def add_options(
    parser: argparse.ArgumentParser,
    title: str,
    config: type,
    description: str | None = None,
    with_defaults: bool = True,
) -> None:
    """Adds a group of options, one for each field of a dataclass, which are None unless they are given.

    As for transformers' `HfArgumentParser`, a field's metadata are arguments of `add_argument`, and a bool that is
    True by default has the option `--no_NAME`. The help is the field's text in the docstring, and, `with_defaults`,
    the default of numbers.
    """
    group = parser.add_argument_group(title, description)
    texts = dict(re.findall(r"^(\w+): (.*(?:\n    .*)*)", inspect.getdoc(config), re.MULTILINE))
    for field in fields(config):
        text = " ".join(texts[field.name].split()).replace("%", "%%")
        if field.type is bool:
            text = f"turn off {field.name}, {text}"
            group.add_argument(f"--no_{field.name}", dest=field.name, action="store_const", const=False, help=text)
        else:
            kind = (*get_args(field.type), field.type)[0]  # int of `int | None`
            if with_defaults and field.default is not None:
                text += f" Default: {field.default}."
            group.add_argument(f"--{field.name}", type=kind, help=text, **field.metadata)


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, "loading", LoadingConfig, "of the policy")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, "sampling", SamplingConfig, "defaults: the values saved with the policy", with_defaults=False)


def given_options(args: argparse.Namespace, *configurations: type) -> dict[str, Any]:
    """The options for fields of these dataclasses that were given."""
    options = {field.name: getattr(args, field.name) for kind in configurations for field in fields(kind)}
    return {name: value for name, value in options.items() if value is not None}

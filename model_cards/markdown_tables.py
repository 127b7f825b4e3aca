"""Result files, Markdown tables and origins, of which the tables of README.md, docs/ and the cards are made."""

import json
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

from aim_hf.utils.provenance import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def table(columns: dict[str, Callable[[Any], object]], rows: Iterable[Any]) -> str:
    """A Markdown table. `columns`: header -> the cell of a row, in that column."""
    cells = [list(columns), ["---"] * len(columns), *([str(cell(row)) for cell in columns.values()] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def pairs(rows: dict[str, str]) -> str:
    """A Markdown table of what was measured -> its value."""
    return table({"what": itemgetter(0), "measured": itemgetter(1)}, rows.items())


def measured(name: str) -> bool:
    """Whether benchmarks/results/NAME.json exists."""
    return (RESULTS / f"{name}.json").exists()


def read(name: str) -> dict[str, Any]:
    """benchmarks/results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def origin(result: dict[str, Any]) -> str:
    """The command, commit and hardware of a result."""
    return f"`{result['command']}` (commit {(result['commit'] or 'unknown')[:10]}, {machine(result['hardware'])})"


def bullets(results: dict[str, dict[str, Any]]) -> str:
    """The origin of each named result."""
    return "".join(f"- {name}: {origin(result)}\n" for name, result in results.items())

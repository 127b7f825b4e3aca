"""Kills collections at random moments: python kill_collect.py REFERENCE SCRATCH ARGUMENTS...

Runs are forked from a process that has imported everything, so that a kill costs no start-up. A run that gets through
is compared with the reference folder, and the next one starts in a new folder.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import accelerate  # noqa: F401
import pyarrow.parquet as pq

import aim_hf.data.card  # noqa: F401  as this and the next ones, what a collection imports
import aim_hf.data.collection  # noqa: F401
import aim_hf.data.preview  # noqa: F401
import aim_hf.envs.tabletop  # noqa: F401
from aim_hf.commands import collect
from aim_hf.data.shards import read_rows

KILLS = 8
LONGEST = 1.0  # seconds


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def safe_seeds(folder: Path) -> set[int]:
    """The seeds of the episodes that are there, in shards or in pieces."""
    seeds = {int(path.stem) for path in folder.glob(".unfinished/*/[0-9]*.parquet")}
    for path in folder.glob("data/[!.]*.parquet"):
        seeds |= set(pq.read_table(path, columns=["seed"])["seed"].to_pylist())
    return seeds


def main(reference: Path, scratch: Path, *arguments: str) -> None:
    moments = random.Random(0)
    kills = runs = 0
    while kills < KILLS or runs == 0:
        output, before = scratch / str(runs), safe_seeds(scratch / str(runs))
        shards = {path: path.stat().st_mtime_ns for path in output.glob("data/[!.]*.parquet")}
        child = os.fork()
        if child == 0:
            collect.main([*arguments, "--output_dir", str(output)])
            os._exit(0)
        # Longer and longer, so that slow machines get through, too.
        time.sleep(moments.uniform(0, LONGEST) * (1 + kills // KILLS))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert safe_seeds(output) >= before, "at most the episode in flight is lost"
        for path, time_written in shards.items():
            assert path.stat().st_mtime_ns == time_written, "what was done is not made again"
        for path in output.glob("data/[!.]*.parquet"):
            list(read_rows(path))
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            assert contents(output) == contents(reference), "the same folder as without kills"
            runs += 1
        else:
            assert os.WIFSIGNALED(status), status
            kills += 1
    print(f"{kills} kills, {runs} runs got through")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])

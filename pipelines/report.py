"""One report over evaluations, in Markdown and HTML, with RoboTwin's published numbers beside ours:

    python pipelines/report.py --results runs/easy runs/hard --output runs/report

Each of `--results` is an output folder of evaluate.py; all are of one suite. Where a run deviates from RoboTwin's own
protocol, the report's head says so.
"""

import argparse
from pathlib import Path

from aim_hf.evaluation.report import write_report

PUBLISHED = Path(__file__).parents[1] / "model_cards" / "published"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", nargs="+", type=Path, required=True, help="output folders of evaluate.py")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    try:
        write_report(args.results, PUBLISHED, args.output)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"{args.output / 'report.md'}\n{args.output / 'report.html'}")


if __name__ == "__main__":
    main()

"""Writes one report over evaluations, in Markdown and HTML, beside RoboTwin's published numbers:

    aim-hf report --results runs/easy runs/hard --output_dir runs/report

Each of `--results` is an output folder of `aim-hf evaluate`; all must be of one suite. The head of the report names
each deviation from RoboTwin's own protocol.
"""

from pathlib import Path

from . import Parser

PUBLISHED = Path(__file__).parents[1] / "evaluation" / "published"


def main(argv: list[str]) -> None:
    parser = Parser("report", __doc__)
    parser.add_argument("--results", nargs="+", type=Path, required=True, help="output folders of `aim-hf evaluate`")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args(argv)

    from ..evaluation.report import write_report

    write_report(args.results, PUBLISHED, args.output_dir)
    print(f"{args.output_dir / 'report.md'}\n{args.output_dir / 'report.html'}")

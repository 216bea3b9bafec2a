# SPDX-License-Identifier: Apache-2.0
"""README's table and pictures and the pages of experiments/results, made from the files there.

    python experiments/tables.py            rewrite README.md and experiments/results/*.md
    python experiments/tables.py --plots    and draw experiments/results/plots/*.svg
    python experiments/tables.py --check    exit code 1 if that would change anything

Files that are read: results.json of runs (`<any name>.json`, or results.json in a folder of its
own), tables of experiments/bench.py, what the slow tests leave, and the curve of a kept run. In
README the blocks between the comments `<!-- NAME:begin -->` and `<!-- NAME:end -->` are filled,
with NAME one of `BLOCKS`; the pages are written whole. A number in no file cannot get there.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __package__ in (None, ""):  # run as a script: the checkout, not this folder, is the root
    sys.path[0:0] = [str(ROOT)]

from experiments.runner import result_files, result_pages, result_rows, result_series  # noqa: E402
from experiments.runner.errors import UserError  # noqa: E402
from experiments.runner.writer import read_metrics  # noqa: E402

RESULTS = ROOT / "experiments" / "results"
README = ROOT / "README.md"
BLOCKS = ("pictures", "results")
FOLDER = "experiments/results/"


def read_series(found: result_files.Found, results: Path) -> dict[str, Mapping[str, Any]]:
    """Data of all plots."""
    logs = sorted(results.glob("*/metrics.jsonl"))
    lines = {path.relative_to(results).as_posix(): read_metrics(path) for path in logs}
    return result_series.all_series(found, lines)


def fill(readme: str, texts: Mapping[str, str]) -> str:
    """README with its blocks replaced.

    Raises:
        UserError: a block is missing or there twice.
    """
    for name, text in texts.items():
        begin = f"<!-- {name}:begin -->\n"
        end = f"<!-- {name}:end -->\n"
        if readme.count(begin) != 1 or readme.count(end) != 1:
            raise UserError(f"README.md needs one block {begin.strip()} ... {end.strip()}")
        before, rest = readme.split(begin)
        after = rest.split(end)
        if len(after) != 2:
            raise UserError(f"README.md: {end.strip()} comes before {begin.strip()}")
        readme = f"{before}{begin}{text}{end}{after[1]}"
    return readme


def texts_of(readme: Path, results: Path) -> dict[Path, str]:
    """{file: its text as the result files have it}."""
    found = result_files.read(results)
    series = read_series(found, results)
    blocks = {
        "pictures": result_pages.readme_strip(series, FOLDER),
        "results": result_rows.results_table(found, FOLDER),
    }
    pages = result_pages.pages(found, series)
    texts = {results / name: text for name, text in pages.items()}
    return {readme: fill(readme.read_text(encoding="utf-8"), blocks), **texts}


def stale(texts: Mapping[Path, str]) -> list[Path]:
    """Files that are missing or hold something else."""
    return [
        path
        for path, text in texts.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def stale_plots(results: Path) -> list[Path]:
    """Pictures that are missing or show other numbers than the files hold."""
    found = result_files.read(results)
    wrong = []
    for name, data in read_series(found, results).items():
        path = results / "plots" / f"{name}.svg"
        if not path.is_file() or result_series.data_in(path.read_text(encoding="utf-8")) != data:
            wrong.append(path)
    return wrong


def draw_plots(results: Path) -> list[Path]:
    """Draws every picture and returns those that changed."""
    from experiments.runner import result_plots  # matplotlib is wanted here only

    series = read_series(result_files.read(results), results)
    drawn = {
        results / "plots" / f"{plot.name}.svg": result_plots.svg(plot, series[plot.name])
        for plot in result_series.PLOTS
    }
    return write(drawn)


def write(texts: Mapping[Path, str]) -> list[Path]:
    """Writes what differs and returns it."""
    changed = stale(texts)
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path], encoding="utf-8")
    return changed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    parser.add_argument("--plots", action="store_true", help="draw the pictures too")
    args = parser.parse_args(argv)
    try:
        if not README.is_file():
            raise UserError(f"no {README}: the tables belong to a checkout")
        texts = texts_of(README, RESULTS)
        if args.check:
            wrong = [*stale(texts), *stale_plots(RESULTS)]
            print("\n".join(f"not up to date: {path}" for path in wrong) or "all up to date")
            return int(bool(wrong))
        changed = write(texts)
        changed += draw_plots(RESULTS) if args.plots else []
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"rewritten: {path}" for path in changed) or "all was up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())

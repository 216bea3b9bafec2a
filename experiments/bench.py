# SPDX-License-Identifier: Apache-2.0
"""Side-by-side speed tables.

    python experiments/bench.py banyan [--json=FILE] [--repeats=7]
    python experiments/bench.py loop
    python experiments/bench.py attention
    python experiments/bench.py decode
    python experiments/bench.py peers
    python experiments/bench.py rec
    python experiments/bench.py sampler

Printed are ratios first, then medians over interleaved repeats with their spread (interquartile
range / median). A lone absolute number says little: read the ratios.

The JSON has one shape for all benches: {"bench", "device", "versions", "commit", "rows": [{"row",
"envs", "steps_per_s", "spread", "first_call_s", "repeats", ...}], "ratios", "peak_rss_mb",
"not_measured": {row: reason}}; a case may add columns of its own to its row, and one with "flop"
per step gets "tflops" per second.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: the checkout, not this folder, is the root
    sys.path[0:0] = [str(Path(__file__).resolve().parent.parent)]

from experiments.runner import bench, folder, memory

BENCHES = ("attention", "banyan", "decode", "loop", "peers", "rec", "sampler")
MIN_REPEATS = 5


def run(name: str, repeats: int) -> dict[str, Any]:
    """Measures one bench."""
    module = importlib.import_module(f"experiments.benches.{name}")
    rows, missing = bench.measure(module.cases(), repeats)
    env = folder.environment()
    return {
        "bench": name,
        "device": folder.device_name(env),
        "versions": {"python": env["python"], **env["versions"]},
        "commit": env["commit"],
        "rows": rows,
        "ratios": module.ratios(rows),
        "peak_rss_mb": memory.peak_rss_mb(),
        "not_measured": missing,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=BENCHES)
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    parser.add_argument("--repeats", type=int, default=7, help=f"at least {MIN_REPEATS}")
    parser.add_argument("--no_malloc_tuning", action="store_true", help="see runner/memory.py")
    args = parser.parse_args(argv)
    if args.repeats < MIN_REPEATS:
        parser.error(f"--repeats={args.repeats}: must be at least {MIN_REPEATS}")
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json={args.json}: no folder {args.json.parent}")
    if not args.no_malloc_tuning:
        memory.use_one_heap()
        memory.keep_scratch()
    result = run(args.name, args.repeats)
    print("\n" + bench.table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

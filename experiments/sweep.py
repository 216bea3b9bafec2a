# SPDX-License-Identifier: Apache-2.0
"""Runs a grid: every combination of config values and seeds, a folder each, then their comparison.

    python experiments/sweep.py --config=banyan:tiny --config.agent.lr=1e-4,1e-3 --seeds=0-4 \\
        --out=DIR

The same command again runs only what is missing; a run that was stopped resumes. A run that fails
does not stop the others: it is listed at the end, with its log, and the exit code is 1. Values
separated by commas are tried one after the other; a value that is a tuple stands in parentheses.

    --jobs=N     runs at once (default 1)
    --dry        print the commands, run nothing
    --index=I    run only member I, from 0: a job array, --index=$SLURM_ARRAY_TASK_ID
"""

import argparse
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
if __package__ in (None, ""):  # run as a script: the checkout, not this folder, is the root
    sys.path[0:0] = [str(ROOT)]

from experiments.runner import grid, shadowing  # noqa: E402
from experiments.runner.errors import UserError  # noqa: E402
from experiments.runner.grid import Member  # noqa: E402
from experiments.runner.writer import short  # noqa: E402

LOGS = "logs"


class Outcome(NamedTuple):
    """How a member ended: "finished", "failed" or "stopped"."""

    member: Member
    state: str


class Sweep:
    """Members started one after the other, and the signals that end them all."""

    def __init__(self, members: Sequence[Member], out: Path) -> None:
        self.members = members
        self.out = out
        self.stopping = threading.Event()
        self._running: set[subprocess.Popen[bytes]] = set()

    def command(self, member: Member) -> list[str]:
        """The command of one member, from the root of the checkout or elsewhere."""
        run = Path(__file__).with_name("run.py")
        return [sys.executable, str(run), *member.words, f"--workdir={self.out / member.name}"]

    def log(self, member: Member) -> Path:
        return self.out / LOGS / f"{member.name}.log"

    def run(self, member: Member) -> Outcome:
        """Runs one member in a process of its own, everything it prints in its log."""
        if self.stopping.is_set():
            return Outcome(member, "stopped")
        began = time.monotonic()
        with self.log(member).open("ab") as log:
            process = subprocess.Popen(self.command(member), stdout=log, stderr=log)
            self._running.add(process)
            code = process.wait()
            self._running.discard(process)
        if code != 0:
            state = "failed"
        elif grid.is_finished(self.out / member.name, member):
            state = "finished"
        else:
            state = "stopped"  # a signal: it saved, and the same command resumes it
        print(f"{state:<9} {member.name}  {short(time.monotonic() - began)}", flush=True)
        return Outcome(member, state)

    def stop(self, *_: object) -> None:
        """Starts no more members and asks the running ones to save and stop."""
        self.stopping.set()
        for process in list(self._running):
            process.send_signal(signal.SIGTERM)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Flags of the command line; --config.KEY=VALUES are left in `overrides`.

    Raises:
        UserError: a word that is no flag of this command.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--config", help="SYSTEM, SYSTEM:VARIANT or a file")
    parser.add_argument("--seeds", default="0", help='"0-4" or "0,3,7-9"; default 0')
    parser.add_argument("--out", type=Path, help="folder of all runs")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--index", type=int)
    overrides = [word for word in argv if word.startswith("--config.")]
    try:
        args, rest = parser.parse_known_args([word for word in argv if word not in overrides])
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    if rest:
        hint = "; did you mean --seeds?" if rest[0].startswith("--seed") else ""
        raise UserError(
            f"unexpected word {rest[0]!r}{hint}, see python experiments/sweep.py --help"
        )
    for name in ("config", "out"):
        if getattr(args, name) is None:
            raise UserError(f"--{name} is missing, see python experiments/sweep.py --help")
    if args.jobs < 1:
        raise UserError(f"--jobs={args.jobs} must be at least 1")
    args.overrides = overrides
    return args


def select(members: Sequence[Member], index: int | None) -> Sequence[Member]:
    """All members, or the one that --index names.

    Raises:
        UserError: there is no such member.
    """
    if index is None:
        return members
    if not 0 <= index < len(members):
        raise UserError(f"--index={index}: this grid has members 0 to {len(members) - 1}")
    return members[index : index + 1]


def run_all(sweep: Sweep, jobs: int) -> list[Outcome]:
    """Runs what is not finished; returns the outcome of every member."""
    (sweep.out / LOGS).mkdir(parents=True, exist_ok=True)
    finished = [m for m in sweep.members if grid.is_finished(sweep.out / m.name, m)]
    missing = [member for member in sweep.members if member not in finished]
    print(f"{len(sweep.members)} runs, {len(finished)} finished before", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(sweep.run, missing))
    return [Outcome(member, "finished") for member in finished] + outcomes


def summarize(sweep: Sweep, outcomes: Sequence[Outcome]) -> int:
    """Prints the comparison and what is missing; the exit code."""
    complete = {outcome.member.name for outcome in outcomes if outcome.state == "finished"}
    folders = [sweep.out / m.name for m in sweep.members if m.name in complete]
    if folders:
        from experiments.runner import compare

        print(compare.write_comparison(folders, sweep.out))
    incomplete = [outcome for outcome in outcomes if outcome.state != "finished"]
    for outcome in incomplete:
        print(f"{outcome.state}: {outcome.member.name}, see {sweep.log(outcome.member)}")
    return int(bool(incomplete))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 all finished, 1 a run failed or was stopped, 2 misuse."""
    try:
        shadowing.refuse_foreign_packages(ROOT)
        args = parse(sys.argv[1:] if argv is None else argv)
        members = grid.members(args.config, args.overrides, grid.parse_seeds(args.seeds))
        sweep = Sweep(select(members, args.index), args.out)
        if args.dry:
            for member in sweep.members:
                print(shlex.join(sweep.command(member)))
            return 0
        before = {n: signal.signal(n, sweep.stop) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            outcomes = run_all(sweep, args.jobs)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if args.index is not None:
            return int(outcomes[0].state != "finished")
        return summarize(sweep, outcomes)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

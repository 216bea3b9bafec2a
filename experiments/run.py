# SPDX-License-Identifier: Apache-2.0
"""Trains, resumes, evaluates, checks and asks every system of the stack.

what there is; one system, its keys and their ranges
    python experiments/run.py --list
    python experiments/run.py --config=banyan --help
train (or resume: the same command again)
    python experiments/run.py --config=banyan:tiny
change any number of the config
    python experiments/run.py --config=banyan --config.seed=1
evaluate a run's last checkpoint; check every claimed number again; compare runs; take the weights
    python experiments/run.py --mode=eval --workdir=DIR
    python experiments/run.py --mode=check --workdir=DIR
    python experiments/run.py --mode=report DIR [DIR ...]
    python experiments/run.py --mode=export --workdir=DIR --out=FILE.safetensors
ask a trained system something, where it offers an action
    python experiments/run.py --mode=ACTION --workdir=DIR --query=TEXT
    (or --query=@FILE, --query=all; --top=K; --out=FILE)
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Packages of this checkout come before anything of the same name that is installed.
sys.path[0:0] = [str(ROOT)]

from absl import app, flags, logging  # noqa: E402

from experiments.runner import (  # noqa: E402
    answers,
    backend,
    command_line,
    folder,
    listing,
    queries,
    shadowing,
)
from experiments.runner.errors import UserError  # noqa: E402


def runs_folder() -> Path:
    """Where runs and comparisons go that are given no place of their own."""
    # Installed from a wheel, ROOT is no place for results: take the folder the user stands in.
    return (ROOT if (ROOT / "pyproject.toml").is_file() else Path.cwd()) / "runs"


def train(values: flags.FlagValues) -> None:
    """Validates before JAX is imported, then hands over to the loop."""
    from experiments.runner import settings

    config = values.config
    settings.groups(config)
    name = f"{config.system}-{config.variant}-s{config.seed}"
    workdir = Path(values.workdir or runs_folder() / name)
    backend.start_jax(values)
    from experiments.runner import loop

    loop.train(config, workdir, overwrite=values.overwrite, profile=values.profile)


def inspect(values: flags.FlagValues) -> int:
    """Modes that read a run folder."""
    mode = values.mode
    workdir = Path(values.workdir)
    out = None if values.out is None else Path(values.out)
    query = queries.read_query(values.query or "", values.top)
    command_line.check_folder(values)
    backend.start_jax(values)
    from experiments.runner import export, reopen

    if mode == "eval":
        for key, value in sorted(reopen.evaluate_last(workdir).items()):
            print(f"{key} = {value}")
        return 0
    if mode == "check":
        outcome = reopen.recheck(workdir)
        print(reopen.recheck_text(workdir, outcome))
        return 1 if outcome.differences else 0
    if mode == "export":
        answer: queries.Answer = {"params": export.export(workdir)}
    else:
        answer = reopen.act(workdir, mode, query)
    if out is None:
        answers.show(answer)
    else:
        print(answers.write(answer, out))
    return 0


def dispatch(values: flags.FlagValues, words: list[str]) -> int:
    """Exit code: 0 fine, 1 a metric differs (check), 2 misuse."""
    logging.set_verbosity(logging.ERROR)  # orbax and JAX remark on things users cannot change
    try:
        shadowing.refuse_foreign_packages(ROOT)
        if values.list or values.mode == "list":
            print(listing.list_text())
            return 0
        command_line.check_flags(values, words)
        if values.mode == "report":
            for path in words or [values.workdir]:
                folder.read_results(Path(path))  # before JAX is imported
            from experiments.runner import compare

            folders = [Path(w) for w in words] or [Path(values.workdir)]
            print(compare.write_comparison(folders, Path(values.workdir or runs_folder())))
            return 0
        if values.mode == "train":
            train(values)
            return 0
        return inspect(values)
    except BrokenPipeError:  # whoever read the output has seen enough, as in "... | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as error:  # an OSError names the file and what is wrong with it
        print(f"error: {error}", file=sys.stderr)
        return 2


def main(argv: list[str]) -> int:
    return dispatch(flags.FLAGS, argv[1:])


if __name__ == "__main__":
    command_line.define_flags(flags.FLAGS)
    app.run(main, flags_parser=command_line.parse)

# SPDX-License-Identifier: Apache-2.0
"""The raw files the experiments read: what there is, where it lies, whether it is whole.

    python experiments/data.py list                    what exists, its terms, what is here
    python experiments/data.py download NAME           fetch, resume, check, then rename
    python experiments/data.py verify NAME             SHA-256 of every file
    python experiments/data.py where NAME              the folder, for scripts

Files lie under --root, else $BANYAN_DATA, else the download folder in the user's cache.
"""

import argparse
import os
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout, not this folder, is the root
    sys.path[0:0] = [str(Path(__file__).resolve().parent.parent)]

from experiments.runner import data
from experiments.runner.transfer import DataError


def _list(datasets: data.Datasets, config_root: str) -> int:
    base = data.root(config_root)
    origin = "--root" if config_root else "$BANYAN_DATA"
    if not config_root and not os.environ.get("BANYAN_DATA"):
        origin = "default; set $BANYAN_DATA to choose another"
    print(f"data folder: {base} ({origin})")
    for name in sorted(datasets):
        checks = data.verify(name, config_root, datasets)
        files = datasets[name]["files"]
        own = [item for item in checks if item.path in files]
        present = sum(item.state != "missing" for item in own)
        print(f"\n{name}: {present} of {len(own)} files present")
        print(f"  {datasets[name]['about']}\n  terms: {datasets[name]['terms']}")
        for item in checks:
            print(f"  {item.state:<9} {item.path}")
            if item.path in files:
                print(f"            from {files[item.path][1] or 'no public address'}")
        if present < len(own):
            print(f"  fetch it: python experiments/data.py download {name}")
    return 0


def _verify(name: str, datasets: data.Datasets, config_root: str) -> int:
    checks = data.verify(name, config_root, datasets)
    for item in checks:
        print(f"{item.state:<9} {item.path}  {item.sha256 or '-'}")
        if item.state == "mismatch":
            print(f"          {item.detail}")
    bad = [item for item in checks if item.state in ("mismatch", "missing")]
    if bad:
        print(f"{len(bad)} file(s) not usable: python experiments/data.py download {name}")
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python experiments/data.py",
        description="The raw files the experiments read. Nothing is fetched unless asked for.",
        epilog="Files lie under --root, else $BANYAN_DATA, else the user's cache folder.",
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--root", default="", metavar="DIR", help="data folder to use")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, text in {
        "list": "every dataset: what it is, its terms, its source, what is here",
        "download": "fetch the files of a dataset; goes on where it broke off",
        "verify": "compare every file of a dataset with its SHA-256",
        "where": "print the folder of a dataset",
    }.items():
        sub = commands.add_parser(command, help=text, description=text, parents=[shared])
        if command != "list":
            sub.add_argument("name", metavar="NAME", help="a dataset, see: list")
    return parser


def main(argv: list[str] | None = None, datasets: data.Datasets | None = None) -> int:
    """The command line; returns the exit code. `datasets` replaces the declared ones."""
    flags = _parser().parse_args(argv)
    try:
        known = data.declared(datasets)
        if flags.command == "list":
            return _list(known, flags.root)
        data.dataset(flags.name, known, None if flags.command == "download" else flags.root)
        if flags.command == "verify":
            return _verify(flags.name, known, flags.root)
        if flags.command == "download":
            data.download(flags.name, flags.root, known)
        else:
            print(data.locate(flags.name, flags.root, known))
        return 0
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

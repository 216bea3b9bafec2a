# SPDX-License-Identifier: Apache-2.0
"""README's paths, its commands typed as they stand there: a run and its check, recommendations from
a CSV of one's own, a system of one's own."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

pytestmark = pytest.mark.deep


def commands(heading: str) -> list[list[str]]:
    """The indented commands of a section of README, lines joined, comments left out."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.M)[1].split("\n#")[0]
    lines = re.findall(r"^    (\S.*)$", section.replace("\\\n", " "), flags=re.M)
    return [shlex.split(line, comments=True) for line in lines]


def walk(heading: str, work: Path) -> list[subprocess.CompletedProcess[str]]:
    """Runs the commands of a section one after the other in a folder that links to the checkout."""
    for name in ("experiments", "banyan", "rec", "graph", "attention"):
        if not (work / name).exists():
            (work / name).symlink_to(ROOT / name)
    said = []
    for words in commands(heading):
        assert words[0] == "python"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{' '.join(words)}: {ran.stdout}{ran.stderr}"
        said.append(ran)
    return said


def test_a_finished_run_and_its_check_in_four_commands(tmp_path: Path) -> None:
    said = walk("Train, resume, check", tmp_path)
    assert len(said) <= 3  # and the installation
    assert (tmp_path / "runs" / "demo" / "results.json").is_file()
    assert "is complete" in said[1].stdout and "holds" in said[-1].stdout


def test_recommendations_from_a_csv_in_three_commands(tmp_path: Path) -> None:
    assert len(walk("Your own CSV", tmp_path)) <= 2  # and the installation
    with (tmp_path / "recommendations.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with (ROOT / "experiments/examples/ratings.csv").open(encoding="utf-8", newline="") as file:
        rated = list(csv.DictReader(file))
    users = {row["user_id"] for row in rated}
    seen = {(row["user_id"], row["item_id"]) for row in rated}
    assert {row["user"] for row in rows} == users and len(rows) == 10 * len(users)
    assert not {(row["user"], row["item"]) for row in rows} & seen


def test_a_system_of_ones_own(tmp_path: Path) -> None:
    """The file README says to copy is a system under another name once that name is changed."""
    source = ROOT / "experiments" / "examples" / "minimal_system.py"
    text = source.read_text(encoding="utf-8").replace('"minimal_system"', '"own"')
    (tmp_path / "own.py").write_text(text, encoding="utf-8")
    (words,) = commands("Add a system")
    given = [word.replace("PATH/own.py", str(tmp_path / "own.py:tiny")) for word in words]
    workdir = tmp_path / "run"
    given = [word for word in given if not word.startswith("--workdir")]
    ran = subprocess.run(
        [sys.executable, *given[1:], f"--workdir={workdir}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads((workdir / "results.json").read_text())["system"] == "own"


def test_the_kept_runs_hold() -> None:
    """README's check commands, as a reviewer types them."""
    kept = [words for words in commands("Commands") if "--mode=check" in words]
    assert len(kept) >= 4
    for words in kept:
        ran = subprocess.run(
            [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0 and "holds" in ran.stdout, ran.stdout + ran.stderr

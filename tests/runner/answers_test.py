# SPDX-License-Identifier: Apache-2.0
"""Answers as files: equal whatever the form, whole or not there, and nowhere in a run folder."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.runner import answers
from experiments.runner.errors import UserError
from experiments.runner.queries import Query, read_query, text_of


def tables() -> Iterator[dict[str, Any]]:
    """Five rows in two tables; a comma, a quote, a line break and letters beyond ASCII."""
    yield {"user": ["a", 'b "x", y'], "rank": np.array([1, 2]), "score": np.float32([0.1, 2.5])}
    yield {
        "user": ["ä\nö", "", "z"],
        "rank": np.array([3, 4, 5]),
        "score": np.float32([1e-9, -3.0, 7.0]),
    }


USERS = ["a", 'b "x", y', "ä\nö", "", "z"]
SCORES = [0.1, 2.5, 1e-9, -3.0, 7.0]


def test_three_forms_hold_the_same_table(tmp_path: Path) -> None:
    for suffix in answers.TABLES:
        said = answers.write(tables(), tmp_path / f"out{suffix}")
        assert said.endswith("5 rows")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        from_csv = list(csv.DictReader(file))
    assert list(from_csv[0]) == ["user", "rank", "score"]
    assert [row["user"] for row in from_csv] == USERS
    assert [float(row["score"]) for row in from_csv] == SCORES
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    from_jsonl = [json.loads(line) for line in lines]
    from_parquet = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert from_parquet == from_jsonl
    assert [row["rank"] for row in from_jsonl] == [1, 2, 3, 4, 5]
    assert [row["user"] for row in from_jsonl] == USERS
    assert [row["score"] for row in from_jsonl] == SCORES
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv", "out.parquet", "out.jsonl"}


def test_a_table_is_whole_or_not_there(tmp_path: Path) -> None:
    """What fails half-way leaves the former file and nothing else."""

    def breaks() -> Iterator[dict[str, Any]]:
        yield {"user": ["a"]}
        raise UserError("no more")

    for suffix in answers.TABLES:
        out = tmp_path / f"out{suffix}"
        out.write_text("before")
        with pytest.raises(UserError, match="no more"):
            answers.write(breaks(), out)
        assert out.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 3


def test_text_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers.write("hällo", tmp_path / "said.txt")
    assert (tmp_path / "said.txt").read_text(encoding="utf-8") == "hällo"
    two = {"a.png": b"1", "b.json": b"2"}
    answers.write(two, tmp_path / "folder")
    assert {p.name: p.read_bytes() for p in (tmp_path / "folder").iterdir()} == two
    answers.write({"a.png": b"3"}, tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes() == b"3"
    with pytest.raises(UserError, match=r"a\.png, b\.json.*--out=DIR"):
        answers.show(two)
    with pytest.raises(UserError, match="is a file; the answer has 2"):
        answers.write(two, tmp_path / "one.png")
    with pytest.raises(ValueError, match="no name of a file"):
        answers.write({"../x": b""}, tmp_path / "folder")
    answers.show("hello")
    answers.show(tables())
    printed = capsys.readouterr().out
    assert printed.startswith("hello\n") and printed.count("score") == 1
    assert "2.5000" in printed and "7.0000" in printed


def test_places_that_do_not_do(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    for out, part in (
        (run / "out.csv", "lies in the run folder"),
        (run / "checkpoints" / "out.csv", "lies in the run folder"),
        (tmp_path / "none" / "out.csv", "does not exist"),
        (tmp_path / "out.xlsx", r"\.csv, \.parquet, \.jsonl"),
    ):
        with pytest.raises(UserError, match=part):
            answers.write(tables(), out)
    with pytest.raises(UserError, match="is a folder"):
        (tmp_path / "folder.csv").mkdir()
        answers.write(tables(), tmp_path / "folder.csv")
    assert {path.name for path in run.iterdir()} == {"checkpoints", "config.json"}


def test_queries(tmp_path: Path) -> None:
    (tmp_path / "q").write_text("from a file", encoding="utf-8")
    (tmp_path / "q.csv").write_text("user,item\n")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe")
    assert read_query("a b", 3) == Query("a b", None, 3)
    assert read_query("all").is_all and not read_query("all of it").is_all
    assert read_query(f"@{tmp_path / 'q'}").text == "from a file"
    table = read_query(f"@{tmp_path / 'q.csv'}")
    assert table == Query("", tmp_path / "q.csv") and not table.is_all
    assert read_query(f"@{tmp_path}").path == tmp_path
    for query, top, part in (
        (f"@{tmp_path / 'none'}", None, "no such file"),
        (f"@{tmp_path / 'latin.txt'}", None, "decode"),
        ("x", 0, "at least 1"),
    ):
        with pytest.raises(UserError, match=part):
            read_query(query, top)
    with pytest.raises(UserError, match="give one name"):
        text_of(table, "one name")

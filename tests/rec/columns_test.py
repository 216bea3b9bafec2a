# SPDX-License-Identifier: Apache-2.0
"""Own tables: columns recognized or named, dates, kinds of files; rec and graph alike."""

import datetime
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from graph.data import columns as graph_columns
from graph.data import edgelist
from rec.data import columns, own

ROWS = [("u1", "007", "2026-01-02T03:04:05"), ("u2", "b", "2026-01-01"), ("u1", "b", "2025-06-30")]


def text_table(header: str, delimiter: str = ",") -> str:
    lines = [header, *(",".join(row) for row in ROWS)]
    return "\n".join(lines).replace(",", delimiter) + "\n"


def rows_of(path: Path, **named: str) -> dict[str, Any]:
    corpus = own.read(path, None, None, named)
    sequences = corpus.sequences
    items = {
        user: [corpus.items[i] for i in sequences.of(u)] for u, user in enumerate(corpus.users)
    }
    return {"items": items, "times": sequences.times.tolist(), "texts": corpus.texts}


def stamp(text: str) -> int:
    """UTC seconds, by the standard library's own calendar."""
    moment = datetime.datetime.fromisoformat(text)
    return int(moment.replace(tzinfo=datetime.UTC).timestamp())


def test_every_kind_of_file_gives_the_same_corpus(tmp_path: Path) -> None:
    """Names in any case, named by a flag, CSV, TSV, gzip and Parquet; zeros of names stay."""
    wanted = {
        "items": {"u1": ["b", "007"], "u2": ["b"]},
        "times": [stamp(ROWS[2][2]), stamp(ROWS[0][2]), stamp(ROWS[1][2])],
        "texts": ["", ""],
    }
    for name, header in (("a", "userId,movieId,ts"), ("b", "USER_ID,asin,Date"),
                         ("c", "user,item,time")):  # fmt: skip
        path = tmp_path / f"{name}.csv"
        path.write_text(text_table(header))
        assert rows_of(path) == wanted, header
    odd = tmp_path / "odd.tsv"
    odd.write_text(text_table("who,what,when", "\t"))
    assert rows_of(odd, user="who", item="what", time="when") == wanted
    packed = tmp_path / "packed.tsv.gz"
    packed.write_bytes(gzip.compress(text_table("user,item,time", "\t").encode()))
    assert rows_of(packed) == wanted
    table = pa.table({n: [row[i] for row in ROWS] for i, n in enumerate(("user", "item", "time"))})
    parquet.write_table(table, tmp_path / "p.parquet")
    assert rows_of(tmp_path / "p.parquet") == wanted


@pytest.mark.parametrize(
    "text",
    ["2026-01-02", "2026-01-02T03:04:05", "2026-01-02 03:04:05.5", "2026-01-02T03:04:05+02:00"],
)
def test_dates_are_utc_seconds(text: str) -> None:
    moment = datetime.datetime.fromisoformat(text)
    zone = moment.tzinfo or datetime.UTC
    since = moment.replace(tzinfo=zone) - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert columns.seconds(text) == since.total_seconds()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "customer,item,time",
            r"no column is known as the user.*user=customer,item=item,",
        ),
        ("user,user_id,item,time", r"several columns may be the user \(user, user_id\)"),
        ("user,item,rating", r"no column is known as the time.*time=rating"),
    ],
)
def test_an_unclear_header_prints_the_flag_to_type(
    header: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(header + "\n" + ",".join("1" for _ in header.split(",")) + "\n")
    with pytest.raises(ValueError, match=message) as error:
        own.read(path, None)
    flag = str(error.value).split('columns="')[1].split('"')[0]
    chosen = columns.parse(flag)
    assert set(chosen) == {"user", "item", "time"} and set(chosen.values()) <= set(
        header.split(",")
    )


@pytest.mark.parametrize("module", [columns, graph_columns])
@pytest.mark.parametrize("flag", ["user", "user=", "=x", "nobody=x", "time=a,time=b", "time=a,"])
def test_flags_that_are_none(module: Any, flag: str) -> None:
    with pytest.raises(ValueError, match="columns="):
        module.parse(flag)
    assert module.parse("") == {} and module.parse("time = a b") == {"time": "a b"}


def test_a_named_column_must_be_there_and_others_are_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("user,item,time,stars,note\nu,a,1,5,x\n")
    with pytest.raises(ValueError, match="no column 'when' for time"):
        own.read(path, None, None, {"time": "when"})
    own.read(path, None)
    assert "not read: stars, note" in capsys.readouterr().err


def test_names_may_not_be_empty_and_tables_may_differ(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('user,sku,time\nu,a,1\n"",a,2\n')
    with pytest.raises(ValueError, match="column 'user' is empty in row 2"):
        own.read(path, None, None, {"item": "sku"})
    path.write_text("user,sku,time\nu,a,1\n")
    items = tmp_path / "i.csv"
    items.write_text("item_id,title\na,red tea\n")
    assert own.read(path, items, None, {"item": "sku"}).texts == ["red tea"]
    fine = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    parquet.write_table(
        pa.table({"user": ["u"], "item": ["a"], "time": fine}), tmp_path / "n.parquet"
    )
    times = own.read(tmp_path / "n.parquet", None).sequences.times
    assert times.tolist() == [1_700_000_000]


def test_edges_alike(tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    kinds = {
        "a.csv": ("from,to", ","),
        "b.csv": ("SRC,dst", ","),
        "c.tsv": ("source\ttarget", "\t"),
    }
    for name, (header, delimiter) in kinds.items():
        lines = [header, *(delimiter.join(pair) for pair in (("n1", "n2"), ("n2", "n3")))]
        (folder / name).write_text("\n".join(lines) + "\n")
        raw = edgelist.read_own(name.partition(".")[0], tmp_path)
        assert np.array(raw.names)[raw.edges].tolist() == [["n1", "n2"], ["n2", "n3"]]
    (folder / "d.csv").write_text("a,b\nn1,n2\nn2,n3\n")
    with pytest.raises(ValueError, match='columns="source=a,target=b"'):
        edgelist.read_own("d", tmp_path)
    raw = edgelist.read_own("d", tmp_path, {"source": "a", "target": "b"})
    assert len(raw.edges) == 2
    pairs = edgelist.read_pairs(folder / "d.csv", {"source": "b", "target": "a"})
    assert pairs == [["n2", "n1"], ["n3", "n2"]]


def test_histories_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text("user,item,time\nu1,c,3\nu2,a,1\nu1,a,1\nu1,b,2\n")
    assert own.read_histories(path) == (["u1", "u2"], [["a", "b", "c"], ["a"]])
    path.write_text("user,item\nu1,c\nu2,a\nu1,a\n")
    assert own.read_histories(path) == (["u1", "u2"], [["c", "a"], ["a"]])

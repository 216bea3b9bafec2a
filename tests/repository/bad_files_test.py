# SPDX-License-Identifier: Apache-2.0
"""Every reader of every library against every way its files can be wrong: one line that names the
file, never a traceback, never memory that a small file only claims."""

import gzip
import io
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from attention import data as attention_texts
from attention.lm import loading
from attention.lm.config import LMConfig
from banyan import layouts
from experiments.runner import data, inputs
from experiments.runner.errors import UserError
from experiments.runner.transfer import DataError
from experiments.systems.attention import lm
from experiments.systems.banyan import banyan
from experiments.systems.rec.recommenders import wiring
from graph.data import arrays, edgelist
from graph.data import npz as graph_npz
from graph.data import reading as graphs
from graph.data import text as graph_text
from rec.data import amazon2014, amazon2018, letter, own
from rec.data import files as rec_text
from rec.data import reading as corpora
from tests.graph.files import RING, put, whole
from tests.rec import readers_test as rec_files
from tests.repository import damaged_files as damaged
from tests.repository.damaged_files import Reader, read_graph
from tests.tiny_systems import tiny

LIMIT = 1 << 20
"""Bytes that a file may inflate to here, so that a small one can go beyond."""


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (graph_text, edgelist, arrays, rec_text, own, attention_texts, data):
        monkeypatch.setattr(module, "MOST_INFLATED", LIMIT)
    monkeypatch.setattr(layouts, "_MOST_INFLATED", LIMIT)


class Case(NamedTuple):
    """One damage to the file of one reader: `damage` makes its new content of the old one, `words`
    are looked for in the message."""

    name: str
    reader: Reader
    damage: Callable[[bytes], bytes]
    words: str


def unzipped(content: bytes) -> bytes:
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


# ------------------------------------------------------------------------------------- the table


def text_cases() -> list[Case]:
    return [
        Case(f"{reader.name}: {name}", reader, damage, words)
        for reader in damaged.TEXT_READERS
        for name, (damage, words) in damaged.TEXT_DAMAGES.items()
        if not (reader.takes_any_bytes and name == "not UTF-8")
    ]


def array_cases() -> list[Case]:
    write = lambda root: put(root, "mine.npz", damaged.npz())
    links = Reader("npz", "graph/mine.npz", write, read_graph("npz"))
    dated = links._replace(name="times", read=read_graph("npz", split="temporal"))
    cases = [
        Case(f"npz: {name}", links, lambda _, make=make: make(), words)
        for name, (make, words) in damaged.NPZ_DAMAGES.items()
    ]
    for name, (times, words) in damaged.TIMES_DAMAGES.items():
        file = io.BytesIO()
        np.savez(file, edges=RING, num_nodes=12, times=np.array(times))
        made = file.getvalue()
        cases.append(Case(f"times: {name}", dated, lambda _, made=made: made, words))
    for reader in damaged.NPY_READERS:
        cases += [
            Case(f"{reader.name}: {name}", reader, lambda _, make=make: make(), words)
            for name, (make, words) in damaged.NPY_DAMAGES.items()
        ]
    return cases


def in_parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def doubled_parquet(names: list[str]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays([pa.array([1, 2])] * len(names), names=names), file)
    return file.getvalue()


def put_parquet(root: Path, folder: str, items: bool) -> None:
    path = root / folder / "mine.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    if items:
        rec_files.put(root / "mine_items.csv", rec_files.OWN_ITEMS)


DEEP = b"[" * 100_000
LONG_NUMBER = b"1" * 5_000
VALUES: dict[str, list[tuple[str, bytes, str]]] = {
    "snap": [
        ("NaN time", b"0 1 5\n1 2 nan\n", r"mine\.txt:2: time 'nan' is not finite"),
        ("infinite time", b"0 1 inf\n", ":1: time 'inf' is not finite"),
    ],
    "own edges": [
        ("NaN time", b"source,target,time\nn0,n1,nan\n", "column 'time' is empty in row 1"),
        ("infinite time", b"source,target,time\nn0,n1,4\nn2,n1,inf\n", "'time' is inf in row 2"),
        ("doubled column", b"source,target,source\nn0,n1,n2\n", "two columns are named 'source'"),
        ("another encoding", b"source,target\n\xff\xfe,n1\n", "invalid UTF8"),
        ("another encoding of the header", b"source,target,\xe9\nn0,n1,2\n", ":1: not utf-8 text"),
        ("repeated rows", damaged.repeated("source,target", "n0,n1"), "inflates to more than"),
        ("doubled column of no use", b"source,target,x,x\nn0,n1,1,1\n", "columns are named 'x'"),
    ],
    "own nodes": [
        ("doubled column", b"node,x,x\nn0,1,2\n", "two columns are named 'x'"),
        ("infinite feature", b"node,x\n" + b"".join(b"n%d,inf\n" % i for i in range(12)), "finite"),
        ("repeated rows", damaged.repeated("node,x", "n0,1"), "inflates to more than"),
        ("node twice", b"node,x\n" + b"n0,1\n" * 13, "two nodes have the name 'n0'"),
    ],
    "user_sequence.txt": [("doubled user", b"u1 B C A\nu1 A B C\n", ":2: user u1 has a second")],
    "sequences_int.txt": [
        ("2^40", b"1 1099511627776 2\n", ":1: 'user 1 2 3' is expected"),
        ("2^80", b"1 1208925819614629174706176\n", ":1: 'user 1 2 3' is expected"),
    ],
    "item_attributes.json": [
        ("deep JSON", DEEP, "JSON that cannot be read"),
        ("infinity", b'{"1": [Infinity]}', "lists of integers"),
        ("text", b'{"1": ["x"]}', "lists of integers"),
        ("long number", b'{"1": ' + LONG_NUMBER + b"}", "JSON that cannot be read"),
    ],
    "reviews_Beauty_5.json.gz": [
        (name, b'{"reviewerID": "u", "asin": "A1", "unixReviewTime": %s}' % time, words)
        for name, time, words in (
            ("NaN time", b"NaN", ":1: .*unixReviewTime .seconds. are expected"),
            ("infinite time", b"Infinity", ":1: .*unixReviewTime .seconds. are expected"),
            ("time 1e300", b"1e300", ":1: .*unixReviewTime .seconds. are expected"),
            ("list as time", b"[1]", ":1: .*unixReviewTime .seconds. are expected"),
            ("long number", LONG_NUMBER, ":1: a JSON object a line is expected"),
        )
    ]
    + [("deep JSON", DEEP, ":1: a JSON object a line is expected")],
    "meta_Beauty.json.gz": [
        ("deep literal", DEEP, ":1: a Python literal a line is expected"),
    ],
    "Baby.train.csv": [
        (name, b"user_id,parent_asin,timestamp\nu,A1," + field + b"\n", words)
        for name, field, words in (
            ("NaN time", b"nan", ":2: timestamp 'nan' is not a number"),
            ("infinite time", b"inf", ":2: timestamp 'inf' is not a number"),
            ("time 1e300", b"1e300", ":2: timestamp '1e300': a time between"),
            ("long field", b'"' + b"7" * 200_000 + b'"', ":2: no fields of a CSV file"),
        )
    ]
    + [
        ("doubled column", b"user_id,parent_asin,timestamp,user_id\nu,A1,5,v\n", "named 'user_id'"),
        ("no header", b"", "is empty"),
    ],
    "ml-100k u.data": [
        ("NaN time", b"1\t9\t3\tnan\n", ":1: timestamp 'nan' is not a number"),
        ("time 1e300", b"1\t9\t3\t1e300\n", ":1: timestamp '1e300': a time between"),
    ],
    "ml-20m ratings.csv": [
        ("doubled column", b"userId,movieId,timestamp,movieId\n1,2,3,4\n", "named 'movieId'"),
        ("NaN time", b"userId,movieId,timestamp\n1,2,nan\n", ":2: timestamp 'nan' is not a"),
    ],
    "recbole ml-100k.inter.gz": [
        ("doubled column", b"user_id:a\titem_id:b\ttimestamp:c\tuser_id:d\n", "named 'user_id'"),
    ],
    "inter.json": [
        ("deep JSON", DEEP, "JSON that cannot be read"),
        ("rows of no lists", b'{"0": 3}', "an object from user"),
    ],
    "letter index": [
        ("tokens a number", b'{"0": 5, "1": 5, "2": 5}', "item 0 has 5, a list of tokens"),
        ("code beyond int32", b'{"0": ["<a_99999999999>"]}', "item 0 has"),
        ("deep JSON", DEEP, "JSON that cannot be read"),
    ],
    "item.json": [
        ("deep JSON", DEEP, "JSON that cannot be read"),
        ("a list", b"[1]", "items 0 to 0 are expected"),
    ],
    "own events": [
        ("doubled column", b"user,item,time,time\na,b,3,4\n", "two columns are named 'time'"),
        ("infinite time", b"user,item,time\n7,a,1\n7,b,inf\n", "column 'time' is inf in row 2"),
        ("another encoding", b"user,item,time\n\xff\xfe,a,1\n", "invalid UTF8"),
        ("repeated rows", damaged.repeated("user,item,time", "7,a,1"), "inflates to more than"),
        ("time 1e300", b"user,item,time\n7,a,1e300\n", "column 'time' is 1e.300 in row 1"),
    ],
    "own items": [
        ("another encoding", b"item,text\na,Caf\xe9\nb,x\n", "column 'text' is not utf-8 text"),
        ("another encoding of the header", b"item,text,\xe9\na,b,c\n", ":1: not utf-8 text"),
        ("doubled column", b"item,text,text\na,b,c\n", "two columns are named 'text'"),
        ("repeated rows", damaged.repeated("item,text", "a,b"), "inflates to more than"),
    ],
    "levels": [("no level", b"words\n", "levels.txt")],
}
"""Content that is no damage to a file but makes no sense, by the name of its reader."""


def value_cases() -> list[Case]:
    readers = {reader.name: reader for reader in damaged.TEXT_READERS}
    cases = [
        Case(f"{name}: {what}", readers[name], lambda _, content=content: content, words)
        for name, contents in VALUES.items()
        for what, content, words in contents
    ]
    edges = Reader(
        "edges", "graph/mine.parquet", lambda root: put_parquet(root, "graph", False),
        readers["own edges"].read,
    )  # fmt: skip
    events = Reader(
        "events",
        "mine.parquet",
        lambda root: put_parquet(root, "", True),
        readers["own events"].read,
    )
    rows = LIMIT // 8
    many = pa.array(np.zeros(rows, np.int64))
    for reader, names in ((edges, ("source", "target")), (events, ("user", "item"))):
        pair = dict.fromkeys(names, pa.array([1, 2]))
        contents = (
            (
                "NaN time",
                in_parquet(**pair, time=pa.array([1.0, np.nan])),
                "'time' is nan in row 2",
            ),
            ("doubled column", doubled_parquet([*names, "time", "time"]), "are named 'time'"),
            ("torn", in_parquet(**pair)[:-20], "cannot be read"),
            ("too many rows", in_parquet(**dict.fromkeys((*names, "time"), many)), "cells in"),
        )
        for what, content, words in contents:
            name = f"{reader.name} in Parquet: {what}"
            cases.append(Case(name, reader, lambda _, content=content: content, words))
    return cases


CASES = [*text_cases(), *array_cases(), *value_cases()]
NUMBER_OF_CASES = 271


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_file_gets_one_line(tmp_path: Path, small_limits: None, case: Case) -> None:
    case.reader.write(tmp_path)
    path = tmp_path / case.reader.file
    path.write_bytes(case.damage(unzipped(path.read_bytes())))
    with pytest.raises(UserError) as caught, inputs.explain_failures():
        case.reader.read(tmp_path)
    message = str(caught.value).removesuffix(f"\n{inputs.NO_FILES}")  # a hint of the runner
    assert "\n" not in message and path.name in message, message
    assert re.search(case.words, message), message
    assert len(message) < 700, "a line, not the content of a file"


def test_no_case_is_lost() -> None:
    """All names differ, every reader of text stands in the table, and so many cases there are."""
    assert len({case.name for case in CASES}) == len(CASES)
    print(f"{len(CASES)} cases")
    assert len(CASES) == NUMBER_OF_CASES


@pytest.mark.parametrize("reader", damaged.TEXT_READERS, ids=lambda reader: reader.name)
def test_a_byte_order_mark_is_dropped(tmp_path: Path, reader: Reader) -> None:
    """Plain and zipped files read the same with and without one: each case is fit to be read."""
    reader.write(tmp_path)
    path = tmp_path / reader.file
    content = unzipped(path.read_bytes())
    expected = repr(reader.read(tmp_path))
    for marked in (b"\xef\xbb\xbf" + content, gzip.compress(b"\xef\xbb\xbf" + content)):
        path.write_bytes(marked)
        assert repr(reader.read(tmp_path)) == expected


def test_items_that_are_no_names_have_no_text(tmp_path: Path) -> None:
    rec_files.reviews_2014(tmp_path, "{'asin': ['A1'], 'title': 'x'}\n")
    with pytest.raises(ValueError, match="3 items have no text"):
        corpora.read("reviews2014", "Beauty", tmp_path)


@pytest.mark.parametrize("reader", damaged.NPY_READERS, ids=lambda reader: reader.name)
def test_whole_arrays_are_read(tmp_path: Path, reader: Reader) -> None:
    reader.write(tmp_path)
    reader.read(tmp_path)


def test_arrays_come_back_as_numpy_reads_them(tmp_path: Path) -> None:
    """Every kind of array that is allowed, both ways of writing, without one shared byte."""
    values = {
        "ints": RING, "none": np.zeros((0, 2), np.int32), "number": np.array(7),
        "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)), "empty": np.zeros((3, 0)),
        "words": np.array(["a", "bcd"]), "flag": np.array(True), "big": np.arange(3, dtype=">i8"),
    }  # fmt: skip
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **values)
        found = graph_npz.load(tmp_path / "x.npz")
        assert found.keys() == values.keys()
        for name, value in values.items():
            assert found[name].dtype == value.dtype and found[name].shape == value.shape
            np.testing.assert_array_equal(found[name], value)
            assert found[name].flags.writeable


# ----------------------------------------------------------------------------------------- memory


def test_a_file_of_2_mb_never_takes_gigabytes(tmp_path: Path) -> None:
    """2.4 GB in 2.3 MB, with the limits as shipped."""
    path = tmp_path / "bomb.txt"
    path.write_bytes(damaged.inflating(2_400_000_000))
    assert 2_200_000 < path.stat().st_size < 2_400_000
    claims = tmp_path / "graph" / "claims.npz"
    put(tmp_path, "claims.npz", damaged.patched(damaged.npz(), 22, 24, "<I", 2_400_000_000))
    readers: list[Callable[[], Any]] = [
        lambda: list(graph_text.lines(path)),
        lambda: list(rec_text.lines(path)),
        lambda: attention_texts.read_text(path),
        lambda: layouts.read_text(path),
        lambda: data.digest(path, True),
        lambda: graph_npz.load(claims),
    ]
    for read in readers:
        tracemalloc.start()
        with pytest.raises((ValueError, DataError), match="inflate"):
            read()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 300e6


def test_a_damaged_cache_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    make = lambda: {"x": RING}
    data.packed("toy", 1, make)
    (path,) = (tmp_path / "banyan-stack" / "packed").glob("*.npz")
    for name, (damage, _) in damaged.NPZ_DAMAGES.items():
        path.write_bytes(damage())
        np.testing.assert_array_equal(data.packed("toy", 1, make)["x"], RING)
        assert "is damaged" in capsys.readouterr().err, name


# ------------------------------------------------------------------------------------------ names

NAMES = ("../..", "../mine", "sub/../../mine", "/etc/passwd", "a\0b", "..\\mine")


def read_text_of_lm(name: str, root: Path) -> Any:
    return lm.read(tiny("lm", data__text=name, data__root=str(root)))


NAMED_READERS: dict[str, Callable[[str, Path], Any]] = {
    **{f"graph {f}": lambda n, r, f=f: graphs.read(f, n, r) for f in graphs.FORMATS},
    **{
        f"graph {f} at random": lambda n, r, f=f: graphs.read(f, n, r, split="random")
        for f in graphs.FORMATS
    },
    "graph npz alone": graph_npz.read_graph,
    "graph npz split": lambda n, r: graph_npz.read_split(n, r, 0),
    "graph snap alone": edgelist.read_snap,
    "graph own alone": edgelist.read_own,
    **{f"rec {f}": lambda n, r, f=f: corpora.read(f, n, r) for f in corpora.FORMATS},
    "rec integers": amazon2014.integer_rows,
    "rec amazon2018 texts": amazon2018.texts,
    "rec amazon2018 SIDs": amazon2018.sids,
    "rec letter alone": letter.read,
    "attention text": read_text_of_lm,
    "banyan levels": lambda n, r: layouts.read_levels(banyan.find_levels(n, str(r))),
    "any file": lambda n, r: data.locate(n, r),
    "any dataset": lambda n, r: data.dataset(n, None, r),
}
"""(name, root) -> what is read, for every format of every library."""
OWN_PATHS = ("attention text", "banyan levels")
"""Take paths of yours too, absolute or from where the command is run: those that exist."""


@pytest.mark.parametrize("reader", NAMED_READERS)
def test_names_stay_in_the_data_folder(tmp_path: Path, reader: str) -> None:
    """Files lie where the names lead, so that only the refusal keeps them from being read."""
    root = tmp_path / "data"
    put(root, "mine.npz", whole())
    put(tmp_path, "mine.npz", whole())
    put(tmp_path, "../mine.npz", whole())
    for name in NAMES:
        if reader in OWN_PATHS and name in ("/etc/passwd", "../.."):
            continue
        with pytest.raises(UserError) as caught, inputs.explain_failures():
            NAMED_READERS[reader](name, root)
        words = "leaves the data folder|named by its path under the data folder"
        assert re.search(words, str(caught.value)), (name, str(caught.value))
        assert "\0" not in str(caught.value)


def test_names_inside_a_file_stay_in_its_folder(tmp_path: Path) -> None:
    """The index of a model's weights names the files beside it; the one elsewhere is there."""
    pytest.importorskip("safetensors")
    sizes = {"vocab_size": 6, "layers": 1, "width": 8, "heads": 1, "kv_heads": 1, "mlp_width": 8}
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "x.safetensors").write_bytes(b"")
    for name in ("../x.safetensors", str(tmp_path / "x.safetensors"), "a\0b", ".."):
        index = json.dumps({"weight_map": {"w": name}})
        (folder / "model.safetensors.index.json").write_text(index)
        with pytest.raises(ValueError, match="is no name of a file beside it"):
            loading.load(folder, cfg=LMConfig(head_dim=8, **sizes))


def test_a_name_may_hold_folders(tmp_path: Path) -> None:
    put(tmp_path, "sub/mine.npz", whole())
    assert graphs.read("npz", "sub/mine", tmp_path).num_nodes == 13


def test_files_of_your_own_are_named_by_their_path(tmp_path: Path) -> None:
    """config.data.interactions is a path of yours, or one below the data folder."""
    put(tmp_path, "mine.csv", rec_files.OWN)
    root = str(tmp_path / "graph" / "data")
    for path, words in (("../mine.csv", "under the data folder"), ("/no/mine.csv", "missing file")):
        changes = {"data__interactions": path, "data__item_text": path, "data__root": root}
        with pytest.raises(UserError, match=words):
            wiring.load(tiny("rec_baselines", data__format="own", **changes))


# ------------------------------------------------------------------ two readers of text, one table

CONTENT = "first line\nsecond \u00e9\n"
SAME: dict[str, bytes] = {
    "plain": CONTENT.encode(),
    "zipped": gzip.compress(CONTENT.encode()),
    "two members": gzip.compress(b"first line\n") + gzip.compress("second \u00e9\n".encode()),
    "byte-order mark": b"\xef\xbb\xbf" + CONTENT.encode(),
    "zipped byte-order mark": gzip.compress(b"\xef\xbb\xbf" + CONTENT.encode()),
    "Windows": CONTENT.replace("\n", "\r\n").encode(),
    "blank lines": b"\n \nfirst line\n\n" + "second \u00e9".encode() + b"\n\n",
    "empty": b"",
    "empty, zipped": gzip.compress(b""),
    "one byte": b"\x1f",
    "no more than a magic number": b"\x1f\x8b",
    "UTF-16": b"\xff\xfe" + CONTENT.encode("utf-16-le"),
    "latin-1": CONTENT.encode("latin-1"),
    "NUL": b"first\0line\n",
    **{name: damage(CONTENT.encode()) for name, (damage, _) in damaged.TEXT_DAMAGES.items()},
}


def lines_or_message(lines: Callable[[Path], Any], path: Path) -> Any:
    try:
        return list(lines(path))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", SAME)
def test_libraries_read_text_alike(tmp_path: Path, small_limits: None, name: str) -> None:
    path = tmp_path / "some.txt"
    path.write_bytes(SAME[name])
    found = lines_or_message(graph_text.lines, path)
    assert found == lines_or_message(rec_text.lines, path)
    if name in ("plain", "zipped", "two members", "byte-order mark", "Windows"):
        assert found == [(1, "first line"), (2, "second \u00e9")]
    if name in damaged.TEXT_DAMAGES:
        assert str(path) in found


def test_libraries_refuse_alike(tmp_path: Path) -> None:
    for name in ("MOST_INFLATED", "MOST_RATIO", "CHUNK"):
        assert getattr(graph_text, name) == getattr(rec_text, name)
    assert (attention_texts.MOST_INFLATED, data.MOST_INFLATED) == (graph_text.MOST_INFLATED,) * 2
    assert (attention_texts.MOST_RATIO, data.MOST_RATIO) == (graph_text.MOST_RATIO,) * 2
    for name in (*NAMES, "mine", "sub/mine"):
        said = [
            lines_or_message(lambda path, name=name, m=module: [m.inside(path, name)], tmp_path)
            for module in (graph_text, rec_text)
        ]
        assert said[0] == said[1] and isinstance(said[0], str) == (name in NAMES)
    for columns in (["a", "b"], ["a", "b", "b"]):
        said = [
            lines_or_message(
                lambda path, m=module, c=columns: [m.refuse_doubled(path, c)], tmp_path
            )
            for module in (graph_text, rec_text)
        ]
        assert said[0] == said[1] and isinstance(said[0], str) == (len(columns) == 3)

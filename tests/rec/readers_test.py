# SPDX-License-Identifier: Apache-2.0
"""Every reader on files written here, and every way those can be wrong."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rec.data import amazon2014, amazon2018, files, letter, own, reading, reviews
from rec.data.events import Policy
from rec.data.sequences import Corpus, pack, temporal


def rows_of(corpus: Corpus) -> dict[str, list[str]]:
    sequences = corpus.sequences
    return {
        user: [corpus.items[i] for i in sequences.of(number)]
        for number, user in enumerate(corpus.users)
    }


def put(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode(encoding)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


# ----------------------------------------------------------------------------------- amazon2014

ROWS = {"u1": "B C A", "u2": "D C B A", "u3": "E A D B"}
ASINS = "ABCDE"


def amazon_folder(tmp_path: Path, ending: str = ".gz", **changes: str) -> Path:
    """A category laid out as the real ones; `changes` replace the content of a file."""
    numbers = {asin: str(1 + at) for at, asin in enumerate("BCADE")}  # first appearance
    content = {
        "user_sequence.txt": "".join(f"{user} {row}\n" for user, row in ROWS.items()),
        "item_text_tag.txt": "".join(f"{a} tag of {a.lower()}\n" for a in ASINS),
        "item_keyword_path.txt": "".join(f"{a} |\u2581key|{a.lower()}|\u2581word\n" for a in ASINS),
        "sequences_int.txt": "".join(
            f"{u + 1} {' '.join(numbers[a] for a in row.split())}\n"
            for u, row in enumerate(ROWS.values())
        ),
        "item_attributes.json": json.dumps({numbers[a]: [ord(a), 7] for a in "ABCD"}),
    } | {name.replace("__", "."): text for name, text in changes.items()}
    for name, text in content.items():
        put(tmp_path / "amazon2014" / "toys" / (name + ending), text)
    return tmp_path


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_category_never_seen_is_read(tmp_path: Path, ending: str) -> None:
    root = amazon_folder(tmp_path, ending)
    corpus = reading.read("amazon2014", "toys", root)
    assert corpus.name == "toys" and corpus.users == ["u1", "u2", "u3"]
    assert rows_of(corpus) == {user: row.split() for user, row in ROWS.items()}
    assert corpus.items == ["B", "C", "A", "D", "E"]
    assert corpus.texts[2] == "tag of a key a word"
    assert corpus.sequences.items[:3].tolist() == [0, 1, 2] and not len(corpus.sequences.times)
    other = amazon2014.integer_rows("toys", root)
    assert amazon2014.renumbering(corpus.sequences, other).tolist() == [0, 1, 2, 3, 4]
    found = amazon2014.attributes("toys", root, corpus)
    assert found == [[ord("B"), 7], [ord("C"), 7], [ord("A"), 7], [ord("D"), 7], []]


def test_the_optional_files_are_optional(tmp_path: Path) -> None:
    root = amazon_folder(tmp_path)
    for name in ("sequences_int.txt.gz", "item_attributes.json.gz"):
        (root / "amazon2014" / "toys" / name).unlink()
    corpus = amazon2014.read("toys", root)
    with pytest.raises(ValueError, match=r"missing file .*item_attributes\.json"):
        amazon2014.attributes("toys", root, corpus)


def test_renumbering_tells_equal_sources_from_different_ones() -> None:
    one = pack([[0, 1, 2], [1, 0, 3]], 4)
    assert amazon2014.renumbering(one, pack([[3, 0, 1], [0, 3, 2]], 4)).tolist() == [3, 0, 1, 2]
    for rows, message in (
        ([[3, 0, 1], [3, 0, 2]], "different numbers"),
        ([[3, 0, 1], [0, 3, 3]], "different numbers"),
        ([[3, 0], [0, 3]], "different lengths|different numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            amazon2014.renumbering(one, pack(rows, 4))
    with pytest.raises(ValueError, match="another order"):
        amazon2014.renumbering(pack([[0, 1], [1]], 2), pack([[1], [0, 1]], 2))


def test_a_file_sorted_by_item_is_refused(tmp_path: Path) -> None:
    """IDGenRec's Toys and Sports: half the lines and more in ASIN order."""
    rng = random.Random(0)
    rows = [rng.sample([f"B{i:03}" for i in range(50)], 6) for _ in range(200)]
    text = lambda rows: "".join(f"u{u} {' '.join(row)}\n" for u, row in enumerate(rows))
    tags = "".join(f"B{i:03} tag\n" for i in range(50))
    write = lambda rows: amazon_folder(
        tmp_path, user_sequence__txt=text(rows), item_text_tag__txt=tags
    )
    assert amazon2014.read("toys", write(rows)).sequences.num_users == 200
    assert amazon2014.sorted_share(rows) < 0.05
    part = [sorted(row) if u < 95 else row for u, row in enumerate(rows)]
    assert amazon2014.read("toys", write(part)).sequences.num_users == 200
    for share in (110, 200):
        broken = [sorted(row) if u < share else row for u, row in enumerate(rows)]
        with pytest.raises(ValueError, match="sorted by item instead of by time"):
            amazon2014.read("toys", write(broken))


BAD_AMAZON: list[tuple[dict[str, str], str]] = [
    (
        {"user_sequence__txt": "u1 B C A\nu2 A B\n"},
        r"user_sequence\.txt\.gz:2: user u2 has 2 items",
    ),
    ({"user_sequence__txt": "u1 B C A\n\nu1 A B C\n"}, r"txt\.gz:3: user u1 has a second line"),
    ({"user_sequence__txt": "u1 B C B A\n"}, r"txt\.gz: user 'u1' has item 'B' twice"),
    ({"user_sequence__txt": ""}, "no interactions"),
    ({"user_sequence__txt": "u1 C B X\n"}, "1 items have no text, the first one is 'X'"),
    ({"item_text_tag__txt": "A x\nA y\n"}, r"item_text_tag\.txt\.gz:2: a second line of item A"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_AMAZON)
def test_bad_amazon_folders(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        amazon2014.read("toys", amazon_folder(tmp_path, **changes))


def test_bad_integer_rows(tmp_path: Path) -> None:
    for text, message in (
        ("1 2 x\n", r"sequences_int\.txt\.gz:1: 'user 1 2 3'"),
        ("1 0\n", ":1: it"),
    ):
        root = amazon_folder(tmp_path, sequences_int__txt=text)
        with pytest.raises(ValueError, match=message):
            amazon2014.integer_rows("toys", root)


@pytest.mark.parametrize(
    "name", ["user_sequence.txt", "item_text_tag.txt", "item_keyword_path.txt"]
)
def test_missing_and_truncated_files_are_named(tmp_path: Path, name: str) -> None:
    path = amazon_folder(tmp_path) / "amazon2014" / "toys" / f"{name}.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-12])
    with pytest.raises(ValueError, match=rf"{name}\.gz is a truncated or damaged gzip"):
        amazon2014.read("toys", tmp_path)
    path.write_bytes(whole[:40] + bytes(10) + whole[50:])
    with pytest.raises(ValueError, match=rf"{name}"):
        amazon2014.read("toys", tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=rf"missing file .*{name}"):
        amazon2014.read("toys", tmp_path)
    put(path.with_suffix(""), "u \xe9\n", "latin-1")
    with pytest.raises(ValueError, match=rf"{name}:1: not utf-8 text"):
        amazon2014.read("toys", tmp_path)


# -------------------------------------------------------------------------------------- reviews

REVIEWS = [("u", "A1", 30), ("u", "A3", 10), ("u", "A2", 10), ("v", "A2", 5), ("v", "A1", 6)]


def reviews_2014(tmp_path: Path, meta: str = "", extra: str = "") -> Path:
    lines = [
        json.dumps({"reviewerID": u, "asin": i, "unixReviewTime": t, "overall": 5.0})
        for u, i, t in REVIEWS
    ]
    put(tmp_path / "reviews_Beauty_5.json.gz", "\n".join([*lines, extra]) + "\n")
    records = [
        {"asin": "A1", "title": "Nail's  file", "brand": "Opi", "price": 2.5,
         "categories": [["Beauty", "Nails"], ["Beauty", "Tools"]], "description": "a\nfile"},
        {"asin": "A2", "title": "Lip", "categories": []},
        {"asin": "A3", "brand": "Zed"},
        {"asin": "NOT-REVIEWED", "title": "x"},
    ]  # fmt: skip
    put(tmp_path / "meta_Beauty.json.gz", meta or "".join(f"{r!r}\n" for r in records))
    return tmp_path


def test_reviews_of_2014(tmp_path: Path) -> None:
    corpus = reading.read("reviews2014", "Beauty", reviews_2014(tmp_path))
    assert rows_of(corpus) == {"u": ["A3", "A2", "A1"], "v": ["A2", "A1"]}
    assert corpus.sequences.times.tolist() == [10, 10, 30, 5, 6]
    assert dict(zip(corpus.items, corpus.texts, strict=True)) == {
        "A1": "Title: Nail's file; Brand: Opi; Categories: Beauty, Nails, Beauty, Tools; "
        "Price: 2.5; Description: a file",
        "A2": "Title: Lip",
        "A3": "Brand: Zed",
    }
    by_item = reviews.read_2014("Beauty", tmp_path, Policy(ties="item"))
    assert rows_of(by_item)["u"] == ["A2", "A3", "A1"]
    orders = {
        tuple(rows_of(reviews.read_2014("Beauty", tmp_path, Policy("shuffle", seed)))["u"])
        for seed in range(20)
    }
    assert orders == {("A2", "A3", "A1"), ("A3", "A2", "A1")}


def test_bad_reviews_of_2014(tmp_path: Path) -> None:
    for extra, message in (
        ('{"reviewerID": "u"', r"reviews_Beauty_5\.json\.gz:6: a JSON object a line"),
        ('{"reviewerID": "u", "asin": "A1"}', ":6: reviewerID, asin and unixReviewTime"),
        ('{"reviewerID": "u", "asin": "A1", "unixReviewTime": "x"}', ":6: .*seconds"),
        ("[1]", r":6: a JSON object with fields is expected, found \[1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            reviews.read_2014("Beauty", reviews_2014(tmp_path, extra=extra))
    danger = "__import__('os').system('touch " + str(tmp_path / "run") + "')\n"
    for meta, message in (
        (danger, r"meta_Beauty\.json\.gz:1: a Python literal"),
        ("{'asin': 'A1', 'title': 'x'\n", ":1: a Python literal a line is expected"),
        ("{'asin': 'A1', 'title': 'x'}\n", "2 items have no text"),
        ("{'asin': 'A1', 'title': 'x'}\n{'asin': 'A2'}\n{'asin': 'A3'}\n", "2 items have no text"),
    ):
        with pytest.raises(ValueError, match=message):
            reviews.read_2014("Beauty", reviews_2014(tmp_path, meta))
    assert not (tmp_path / "run").exists(), "nothing of the file is executed"
    dropped = reviews.read_2014("Beauty", tmp_path, Policy(textless="drop"))
    assert rows_of(dropped) == {"u": ["A1"], "v": ["A1"]}
    with pytest.raises(ValueError, match=r"missing file .*reviews_Toys_5\.json"):
        reviews.read_2014("Toys", tmp_path)


def reviews_2023(tmp_path: Path, whole: bool, history: bool = False) -> Path:
    rows = [("u", "A1", 3000), ("u", "A2", 1999), ("v", "A3", 7000), ("u", "A3", 1999)]
    last = {"valid": [("u", "A4", 2500), ("v", "A1", 8000)], "test": [("v", "A2", 9000)]}
    last["test"].append(("u", "A5", 3000))
    header = "user_id,parent_asin,rating,timestamp" + (",history" if history else "")
    line = lambda u, i, t: f"{u},{i},5.0,{t}" + (",A1 A2" if history else "")
    parts = {"train": rows, **last}
    if whole:
        parts = {"": [row for part in parts.values() for row in part]}
    for part, chosen in parts.items():
        name = f"Baby.{part}.csv" if part else "Baby.csv.gz"
        put(tmp_path / name, "\n".join([header, *(line(*row) for row in chosen)]) + "\n")
    records = [
        {"parent_asin": f"A{i}", "title": f"T{i}", "store": "S", "categories": ["C", "D"],
         "description": ["one", "two"], "price": None, "features": []}
        for i in range(1, 6)
    ]  # fmt: skip
    put(tmp_path / "meta_Baby.jsonl.gz", "".join(json.dumps(r) + "\n" for r in records))
    return tmp_path


@pytest.mark.parametrize("history", [False, True])
def test_reviews_of_2023(tmp_path: Path, history: bool) -> None:
    corpus = reading.read("reviews2023", "Baby", reviews_2023(tmp_path, False, history))
    rows = {"u": ["A2", "A3", "A1", "A4", "A5"], "v": ["A3", "A1", "A2"]}
    assert rows_of(corpus) == rows, "parts in order, then time, then file"
    assert corpus.sequences.times[:5].tolist() == [1, 1, 3, 2, 3]
    assert corpus.texts[0] == "Title: T2; Brand: S; Categories: C, D; Description: one, two"
    mixed = {
        tuple(rows_of(reviews.read_2023("Baby", tmp_path, Policy("shuffle", seed)))["u"])
        for seed in range(20)
    }
    assert mixed == {("A2", "A3", "A1", "A4", "A5"), ("A3", "A2", "A1", "A4", "A5")}


def test_parts_divided_by_time_are_never_left_one_out(tmp_path: Path) -> None:
    """A timestamp folder is refused until the split is temporal; the flags it proposes give back
    the parts of the folder. One training event later than a test event, and it is a last_out one.
    """
    events = {
        "train": [("u", "A1", 1000), ("v", "A2", 2000), ("u", "A3", 3999)],
        "valid": [("u", "A4", 5000), ("v", "A5", 6000)],
        "test": [("v", "A1", 8000), ("u", "A2", 9000)],
    }
    header = "user_id,parent_asin,rating,timestamp\n"

    def write(late: int) -> None:
        rec_rows = {**events, "train": [*events["train"], ("w", "A5", late)]}
        for part, rows in rec_rows.items():
            text = "".join(f"{u},{i},5.0,{t}\n" for u, i, t in rows)
            put(tmp_path / f"Baby.{part}.csv", header + text)

    reviews_2023(tmp_path, False)  # for the texts
    write(late=4000)
    message = (
        r"Baby\.train\.csv: no training event is later than any test event.*"
        r"--config\.data\.split=temporal --config\.data\.valid_from=5 --config\.data\.test_from=8 "
    )
    for policy in (None, Policy()):
        with pytest.raises(ValueError, match=message):
            reviews.read_2023("Baby", tmp_path, policy)
    corpus = reading.read("reviews2023", "Baby", tmp_path, Policy(dated_parts="read"))
    split = temporal(corpus.sequences, 5, 8)
    assert split.train.lengths.tolist() == [2, 1, 1]
    assert [corpus.items[i] for i in split.valid.targets] == ["A4", "A5"]
    assert [corpus.items[i] for i in split.test.targets] == ["A2", "A1"]
    write(late=8001)
    assert reading.read("reviews2023", "Baby", tmp_path).sequences.num_users == 3


def test_reviews_of_2023_in_one_file_and_bad_ones(tmp_path: Path) -> None:
    corpus = reviews.read_2023("Baby", reviews_2023(tmp_path, True))
    assert rows_of(corpus)["v"] == ["A3", "A1", "A2"]
    for text, message in (
        ("user_id,asin,timestamp\nu,A1,5\n", r"Baby\.csv\.gz:1: no column 'parent_asin'"),
        ("user_id,parent_asin,timestamp\nu,A1\n", ":2: 2 fields where the header has 3"),
        ("user_id,parent_asin,timestamp\nu,A1,soon\n", ":2: timestamp 'soon' is not a number"),
        ("", "is empty: a header line"),
    ):
        put(tmp_path / "Baby.csv.gz", text)
        with pytest.raises(ValueError, match=message):
            reviews.read_2023("Baby", tmp_path)
    (tmp_path / "Baby.csv.gz").unlink()
    with pytest.raises(ValueError, match=r"missing file .*Baby\.train\.csv"):
        reviews.read_2023("Baby", tmp_path)


# ------------------------------------------------------------------------------------ movielens

RATINGS = [("1", "9", 30), ("1", "8", 10), ("2", "9", 5)]
LAYOUTS: dict[str, dict[str, str]] = {
    "ml-100k": {
        "u.data": "".join(f"{u}\t{i}\t3\t{t}\n" for u, i, t in RATINGS),
        "u.item": "".join(
            f"{i}|Caf\xe9 {i} (1995)|01-Jan-1995||http://x|" + "|".join("01000100000000000000"[:19])
            + "\n" for i in (8, 9)
        ),
    },
    "recbole": {
        "ml-100k.inter.gz": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join(f"{u}\t{i}\t3\t{t}\n" for u, i, t in RATINGS),
        "ml-100k.item.gz": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:x\n"
        + "".join(f"{i}\tCaf\xe9 {i}\t1995\tAction Comedy\n" for i in (8, 9)),
    },
    "ml-1m": {
        "ratings.dat": "".join(f"{u}::{i}::3::{t}\n" for u, i, t in RATINGS),
        "movies.dat": "".join(f"{i}::Caf\xe9 {i} (1995)::Action|Comedy\n" for i in (8, 9)),
    },
    "ml-20m": {
        "ratings.csv": "userId,movieId,rating,timestamp\n"
        + "".join(f"{u},{i},3.5,{t}\n" for u, i, t in RATINGS),
        "movies.csv": "movieId,title,genres\n"
        + "".join(f'{i},"Caf\xe9, {i} (1995)",Action|Comedy\n' for i in (8, 9)),
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_movielens_layouts(tmp_path: Path, layout: str) -> None:
    latin = layout in ("ml-100k", "ml-1m")
    for name, text in LAYOUTS[layout].items():
        put(tmp_path / layout / name, text, "latin-1" if latin else "utf-8")
    corpus = reading.read("movielens", layout, tmp_path)
    assert rows_of(corpus) == {"1": ["8", "9"], "2": ["9"]}
    assert corpus.sequences.times.tolist() == [10, 30, 5]
    title = {"recbole": "Caf\xe9 8; Year: 1995", "ml-20m": "Caf\xe9, 8 (1995)"}.get(
        layout, "Caf\xe9 8 (1995)"
    )
    assert corpus.texts[0] == f"Title: {title}; Genres: Action Comedy"
    ratings = tmp_path / layout / next(iter(LAYOUTS[layout]))
    put(ratings, LAYOUTS[layout][ratings.name] + "1\n")
    with pytest.raises(ValueError, match=rf"{ratings.name}:\d: 1 fields"):
        reading.read("movielens", layout, tmp_path)


def test_movielens_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"u\.data\[\.gz\] or ratings\.dat\[\.gz\]"):
        reading.read("movielens", "ml-1m", tmp_path)


# ----------------------------------------------------------------------- published semantic IDs

INDEX = {"0": ["<a_1>", "<b_2>"], "1": ["<a_3>", "<b_0>"], "2": ["<a_1>", "<b_7>"]}


def test_letter(tmp_path: Path) -> None:
    put(tmp_path / "letter" / "Toy.inter.json.gz", json.dumps({"0": [2, 0, 1], "1": [1, 2, 0]}))
    put(tmp_path / "letter" / "Toy.index.json", json.dumps(INDEX))
    corpus = reading.read("letter", "Toy", tmp_path)
    assert rows_of(corpus) == {"0": ["2", "0", "1"], "1": ["1", "2", "0"]}
    found = letter.sids("Toy", tmp_path, corpus)
    assert found.dtype == np.int32 and found.tolist() == [[1, 7], [1, 2], [3, 0]]
    for index, message in (
        ({**INDEX, "1": ["<a_3>"]}, r"item 1 has \['<a_3>'\]"),
        ({**INDEX, "1": ["a_3", "<b_0>"]}, "item 1 has"),
        ({k: v for k, v in INDEX.items() if k != "1"}, "1 is missing"),
        ({"0": INDEX["0"]}, "item 2 has no ID"),
        ([], "an object from item number"),
    ):
        put(tmp_path / "letter" / "Toy.index.json", json.dumps(index))
        with pytest.raises(ValueError, match=message):
            letter.sids("Toy", tmp_path, corpus)
    for text, message in (
        ('{"0": [', "not JSON"),
        ("[]", "an object from user"),
        ('{"0": 3}', "obj"),
    ):
        put(tmp_path / "letter" / "Toy.inter.json.gz", text)
        with pytest.raises(ValueError, match=rf"Toy\.inter\.json\.gz: .*{message}"):
            letter.read("Toy", tmp_path)


def test_amazon2018_texts(tmp_path: Path) -> None:
    item = {
        "title": "Relay",
        "description": "['Hard start.', 'Kit.']",
        "brand": "S",
        "categories": "",
    }
    table: dict[str, Any] = {"0": item, "1": {**item, "description": "['cut sho"}}
    path = put(tmp_path / "amazon2018_text" / "Toy.item.json.gz", json.dumps(table))
    assert amazon2018.texts("Toy", tmp_path) == [
        "Title: Relay; Brand: S; Description: Hard start., Kit.",
        "Title: Relay; Brand: S; Description: ['cut sho",
    ]
    put(tmp_path / "amazon2018_text" / "Toy.index.json.gz", json.dumps(INDEX))
    assert amazon2018.sids("Toy", tmp_path).shape == (3, 2)
    for changed, message in (({"0": {}}, "item 0 has no text"), ({"7": item}, "0 is missing")):
        put(path, json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            amazon2018.texts("Toy", tmp_path)


# ---------------------------------------------------------------------------------- bring your own

OWN = "user,item,time\n007,a,3\n007,b,1.5\n8,a,2\n"
OWN_ITEMS = "item,text\na,first item\nb,second item\n"


def test_own_csv_and_parquet(tmp_path: Path) -> None:
    from pyarrow import csv, parquet

    events = put(tmp_path / "mine.csv", OWN)
    items = put(tmp_path / "mine_items.csv", OWN_ITEMS)
    corpus = reading.read("own", "mine", tmp_path)
    assert corpus.name == "mine" and corpus.texts == ["second item", "first item"]
    assert rows_of(corpus) == {"007": ["b", "a"], "8": ["a"]}, "names keep their zeros"
    assert corpus.sequences.times.tolist() == [1, 3, 2]
    renamed = OWN.replace("user,item,time", "who,what,when").replace("3\n", "2026-01-02T03:04:05\n")
    renamed = renamed.replace("1.5", "2026-01-01T00:00:00").replace(
        ",2\n", ",2020-01-01T00:00:00\n"
    )
    put(tmp_path / "dated.csv.gz", renamed)
    dated = own.read(tmp_path / "dated.csv.gz", put(tmp_path / "i.csv", "what,text\na,x\nb,y\n"),
                     columns={"user": "who", "item": "what", "time": "when"})  # fmt: skip
    assert rows_of(dated) == {"007": ["b", "a"], "8": ["a"]}
    assert np.diff(dated.sequences.times[:2]).tolist() == [86400 + 3 * 3600 + 4 * 60 + 5]
    for path in (events, items):
        parquet.write_table(csv.read_csv(path), path.with_suffix(".parquet"))
        path.unlink()
    again = reading.read("own", "mine", tmp_path)
    assert rows_of(again) == {"7": ["b", "a"], "8": ["a"]}, "numbers of a Parquet file are numbers"


BAD_OWN: list[tuple[str, str, str]] = [
    (
        OWN.replace("user", "customer"),
        OWN_ITEMS,
        r"mine\.csv: no column is known as the user; there are customer, .*user=customer,item=item",
    ),
    (OWN, OWN_ITEMS.replace("text", "words"), r"mine_items\.csv: no column is known as the text"),
    (OWN + "8,b,\n", OWN_ITEMS, "column 'time' is empty in row 4"),
    (OWN + "8,b,soon\n", OWN_ITEMS, "numbers .seconds. or dates expected"),
    (OWN + "8,c,9\n", OWN_ITEMS, "1 items have no text, the first one is 'c'"),
    (OWN + "8,a,9\n", OWN_ITEMS, "user '8' has item 'a' twice"),
    (OWN, OWN_ITEMS + "a,again\n", "item 'a' has two rows"),
    (OWN + "8,b\n", OWN_ITEMS, r"mine\.csv cannot be read: .*3 columns, got 2"),
]


@pytest.mark.parametrize(("events", "items", "message"), BAD_OWN)
def test_bad_own_files(tmp_path: Path, events: str, items: str, message: str) -> None:
    paths = put(tmp_path / "mine.csv", events), put(tmp_path / "mine_items.csv", items)
    with pytest.raises(ValueError, match=message):
        own.read(*paths)


def test_own_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing file .*mine\.csv"):
        reading.read("own", "mine", tmp_path)
    broken = put(tmp_path / "mine.parquet", "no parquet")
    with pytest.raises(ValueError, match=r"mine\.parquet cannot be read"):
        own.read(broken, broken)
    other = put(tmp_path / "mine.txt", "x")
    with pytest.raises(ValueError, match=r"\.csv, \.tsv, \.csv\.gz, \.tsv\.gz or \.parquet"):
        own.read(other, other)


# ------------------------------------------------------------------------------------ the one door


def test_the_door() -> None:
    corpus = reading.read("planted", "3")
    assert corpus.sequences.num_items == 512 and len(corpus.texts) == 512
    with pytest.raises(ValueError, match="its seed"):
        reading.read("planted", "beauty")
    with pytest.raises(ValueError, match="format='amazon' is unknown; choose from amazon2014"):
        reading.read("amazon", "beauty")


def test_lines_counts_blank_ones_and_strips_ends(tmp_path: Path) -> None:
    path = put(tmp_path / "x.txt", "a\r\n\n b \n")
    assert list(files.lines(path)) == [(1, "a"), (3, " b ")]
    read: Callable[[], Any] = lambda: files.find(tmp_path, "y.txt", "z.txt")
    with pytest.raises(ValueError, match=r"y\.txt\[\.gz\] or z\.txt\[\.gz\] is expected"):
        read()

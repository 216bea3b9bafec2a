# SPDX-License-Identifier: Apache-2.0
"""Readers with small files each can read, and the ways in which such files go bad."""

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attention import data as texts
from banyan import layouts
from graph.data import reading as graphs
from rec.data import amazon2014, amazon2018, embeddings, letter
from rec.data import reading as corpora
from tests.graph.files import RING, put, whole
from tests.rec import readers_test as rec_files

Read = Callable[[Path], Any]


class Reader(NamedTuple):
    """A reader of one file.

    name: in the table; file: its path under the root; write: puts it, and what goes with it, under
    a root; read: what reads it there; takes_any_bytes: it is latin-1.
    """

    name: str
    file: str
    write: Callable[[Path], Any]
    read: Read
    takes_any_bytes: bool = False


def read_graph(format: str, name: str = "mine", **options: Any) -> Read:
    return lambda root: graphs.read(format, name, root, **options)


def read_corpus(format: str, name: str) -> Read:
    return lambda root: corpora.read(format, name, root)


# -------------------------------------------------------------------------------------- text files

LEVEL = (
    "; 0\n" + "#" * 10 + "\n#@" + " " * 7 + "#\n" + ("#" + " " * 8 + "#\n") * 7 + "#" * 10 + "\n"
)
EDGES_CSV = "source,target,time\n" + "".join(f"n{u},n{v},{u}\n" for u, v in RING.tolist())
NODES_CSV = "node,x\n" + "".join(f"n{u},{u}.5\n" for u in range(12))


def write_linqs(root: Path) -> None:
    put(root, "mine/mine.content", "".join(f"p{i} {i % 2} label\n" for i in range(12)))
    put(root, "mine/mine.cites", "".join(f"p{u} p{v}\n" for u, v in RING.tolist()))


def write_own_graph(root: Path) -> None:
    put(root, "mine.csv", EDGES_CSV)
    put(root, "mine_nodes.csv", NODES_CSV)


def write_movielens(layout: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for name, text in rec_files.LAYOUTS[layout].items():
            is_latin = layout in ("ml-100k", "ml-1m")
            rec_files.put(root / layout / name, text, "latin-1" if is_latin else "utf-8")

    return write


def write_letter(root: Path) -> None:
    rows = {"0": [2, 0, 1], "1": [1, 2, 0]}
    rec_files.put(root / "letter" / "Toy.inter.json", json.dumps(rows))
    rec_files.put(root / "letter" / "Toy.index.json", json.dumps(rec_files.INDEX))


def write_amazon2018(root: Path) -> None:
    rec_files.put(root / "amazon2018_text" / "Toy.item.json", json.dumps({"0": {"title": "Relay"}}))
    rec_files.put(root / "amazon2018_text" / "Toy.index.json", json.dumps(rec_files.INDEX))


def write_own_corpus(root: Path) -> None:
    rec_files.put(root / "mine.csv", rec_files.OWN)
    rec_files.put(root / "mine_items.csv", rec_files.OWN_ITEMS)


def read_attributes(root: Path) -> Any:
    return amazon2014.attributes("toys", root, amazon2014.read("toys", root))


def read_letter_sids(root: Path) -> Any:
    return letter.sids("Toy", root, letter.read("Toy", root))


AMAZON = "amazon2014/toys/"
DATED: Any = {"split": "random", "test_share": 0.2}
TEXT_READERS = (
    Reader("linqs content", "graph/mine/mine.content", write_linqs, read_graph("linqs", **DATED)),
    Reader("linqs cites", "graph/mine/mine.cites", write_linqs, read_graph("linqs", **DATED)),
    Reader(
        "snap", "graph/mine.txt",
        lambda root: put(root, "mine.txt", "".join(f"{u} {v}\n" for u, v in RING.tolist())),
        read_graph("snap", **DATED),
    ),
    Reader("own edges", "graph/mine.csv", write_own_graph, read_graph("own", **DATED)),
    Reader("own nodes", "graph/mine_nodes.csv", write_own_graph, read_graph("own", **DATED)),
    *(
        Reader(name, f"{AMAZON}{name}", lambda root: rec_files.amazon_folder(root, ""), read)
        for name, read in (
            ("user_sequence.txt", read_corpus("amazon2014", "toys")),
            ("item_text_tag.txt", read_corpus("amazon2014", "toys")),
            ("item_keyword_path.txt", read_corpus("amazon2014", "toys")),
            ("sequences_int.txt", lambda root: amazon2014.integer_rows("toys", root)),
            ("item_attributes.json", read_attributes),
        )
    ),
    *(
        Reader(file, file, rec_files.reviews_2014, read_corpus("reviews2014", "Beauty"))
        for file in ("reviews_Beauty_5.json.gz", "meta_Beauty.json.gz")
    ),
    *(
        Reader(
            file, file, lambda root: rec_files.reviews_2023(root, False),
            read_corpus("reviews2023", "Baby"),
        )
        for file in ("Baby.train.csv", "Baby.test.csv", "meta_Baby.jsonl.gz")
    ),
    *(
        Reader(
            f"{layout} {file}", f"{layout}/{file}", write_movielens(layout),
            read_corpus("movielens", layout), layout in ("ml-100k", "ml-1m"),
        )
        for layout, files in rec_files.LAYOUTS.items() for file in files
    ),
    Reader("inter.json", "letter/Toy.inter.json", write_letter, read_corpus("letter", "Toy")),
    Reader("letter index", "letter/Toy.index.json", write_letter, read_letter_sids),
    Reader(
        "item.json", "amazon2018_text/Toy.item.json", write_amazon2018,
        lambda root: amazon2018.texts("Toy", root),
    ),
    Reader(
        "amazon2018 index", "amazon2018_text/Toy.index.json", write_amazon2018,
        lambda root: amazon2018.sids("Toy", root),
    ),
    Reader("own events", "mine.csv", write_own_corpus, read_corpus("own", "mine")),
    Reader("own items", "mine_items.csv", write_own_corpus, read_corpus("own", "mine")),
    Reader(
        "text", "any.txt", lambda root: rec_files.put(root / "any.txt", "some words\n"),
        lambda root: texts.read_text(root / "any.txt"),
    ),
    Reader(
        "levels", "levels.txt", lambda root: rec_files.put(root / "levels.txt", LEVEL),
        lambda root: layouts.read_levels(root / "levels.txt"),
    ),
)  # fmt: skip


def inflating(size: int) -> bytes:
    """A gzip file of `size` spaces in members of at most 24 MB, a thousandth as large."""
    member = gzip.compress(bytes([32]) * min(size, 24_000_000), 9)
    return member * -(-size // 24_000_000)


def repeated(header: str, row: str) -> bytes:
    """A gzip file of a table that repeats a row up to 8 MB."""
    return gzip.compress(f"{header}\n".encode() + f"{row}\n".encode() * (8_000_000 // len(row)), 9)


TEXT_DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda content: gzip.compress(content)[:-9], "truncated|cannot be read"),
    "damaged": (
        lambda content: gzip.compress(content)[:10] + b"\xff" * 90,
        "damaged|corrupt|cannot be read",
    ),
    "no more than a magic number": (
        lambda content: gzip.compress(content)[:5],
        "truncated|cannot be read",
    ),
    "inflates out of all proportion": (
        lambda _: inflating(8_000_000),
        "inflates to more than|Empty CSV",
    ),
    "not UTF-8": (
        lambda content: content + b"\xff\xfe",
        "not utf-8|no UTF-8|CSV parse error|corrupt level file",
    ),
}
"""What happens to the content of a file, and the words it gets."""


# ------------------------------------------------------------------------------------------ arrays


def npy(array: np.ndarray, shape: tuple[int, ...] | None = None, descr: str = "") -> bytes:
    """A .npy file, with a header that claims another shape or type where one is given."""
    if shape is None and not descr:
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()
    header = {
        "descr": descr or array.dtype.str,
        "fortran_order": False,
        "shape": array.shape if shape is None else shape,
    }
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def npz(method: int = zipfile.ZIP_STORED, **changed: Any) -> bytes:
    """A .npz file of split links; `changed` are arrays, or the bytes of an entry."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, value in whole(**changed).items():
            content = value if isinstance(value, bytes) else npy(np.asarray(value))
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def patched(content: bytes, local_at: int, central_at: int, layout: str, value: int) -> bytes:
    """A zip archive with a field of its first entry set, in both places that hold it."""
    changed = bytearray(content)
    struct.pack_into(layout, changed, content.index(b"PK\x03\x04") + local_at, value)
    struct.pack_into(layout, changed, content.index(b"PK\x01\x02") + central_at, value)
    return bytes(changed)


LINKS = np.asarray(RING[:9])
NPZ_DAMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "unknown compression": (lambda: patched(npz(), 8, 10, "<H", 93), "compressed by method 93"),
    "LZMA": (lambda: npz(zipfile.ZIP_LZMA), "compressed by method 14"),
    "encryption": (lambda: patched(npz(), 6, 8, "<H", 1), "is encrypted"),
    "torn header": (lambda: npz(train_pos=npy(LINKS)[:40]), "no header of a .npy file"),
    "unclosed header": (
        lambda: npz(train_pos=npy(LINKS).replace(b"}", b" ")),
        "no header of a .npy file",
    ),
    "unknown version": (lambda: npz(train_pos=b"\x93NUMPY\x09\x00" + bytes(99)), "version"),
    "not an array": (lambda: npz(train_pos=b"words"), "no header of a .npy file"),
    "empty entry": (lambda: npz(train_pos=b""), "no header of a .npy file"),
    "objects": (lambda: npz(train_pos=npy(LINKS, descr="|O")), "holds objects"),
    "72 TiB claimed": (
        lambda: npz(train_pos=npy(LINKS, (72 * 2**40 // 16, 2))),
        "claims int64 .* 79,164,837,199,872 bytes, and holds 144",
    ),
    "72 TiB in the directory": (
        lambda: patched(npz(), 22, 24, "<I", 2**32 - 2),
        "inflate to 4,294,9",
    ),
    "negative shape": (lambda: npz(train_pos=npy(LINKS, (-3, -6))), "claims int64"),
    "a shape of 2^64": (lambda: npz(train_pos=npy(LINKS, (2**32, 2**32))), "claims int64"),
    "an array cut short": (lambda: npz(train_pos=npy(LINKS)[:-8]), "claims int64 .* 144 bytes"),
    "an entry twice": (
        lambda: npz().replace(b"valid_pos.npy", b"train_pos.npy"),
        "two entries are named train_pos",
    ),
    "another checksum": (lambda: patched(npz(), 14, 16, "<I", 7), "CRC|checksum"),
    "torn": (lambda: npz()[:-30], "zip file"),
    "torn at the front": (lambda: npz()[200:], "zip file|header|cannot be read"),
    "empty": (lambda: b"", "zip file"),
    "inflates out of all proportion": (
        lambda: npz(zipfile.ZIP_DEFLATED, features=np.zeros((13, 100_000))),
        "inflate to 10,4",
    ),
    "2^40 nodes": (lambda: npz(num_nodes=2**40), "num_nodes=1099511627776"),
    "2^31 - 1 nodes without links": (lambda: npz(num_nodes=2**31 - 1), "num_nodes=2147483647"),
    "2^40 nodes and ids": (
        lambda: npz(num_nodes=2**40, train_pos=[[4294967297, 3]]),
        "node id 4294967297 does not fit int32",
    ),
    "an id of uint64": (
        lambda: npz(train_pos=np.array([[2**63 + 1, 3]], np.uint64)),
        "node id 9223372036854775809 does not fit int32",
    ),
    "a negative id": (lambda: npz(train_pos=[[0, 1], [-1, 2]]), "node id -1 is negative"),
    "num_nodes twice": (lambda: npz(num_nodes=[13, 13]), "num_nodes is int64 .2., one whole"),
    "num_nodes a text": (lambda: npz(num_nodes="13"), "num_nodes is <U2 .*one whole number"),
    "num_nodes NaN": (lambda: npz(num_nodes=np.nan), "num_nodes is float64 .*one whole number"),
    "negative num_nodes": (lambda: npz(num_nodes=-1), "num_nodes=-1"),
    "private positives": (lambda: npz(train_pos=LINKS[None]), r"train_pos is int64 \[1, 9, 2\]"),
    "names of no node": (lambda: npz(names=np.array("x")), "1 names for 13 nodes"),
}  # fmt: skip
"""The content of a .npz file of split links, and the words it gets."""

TIMES_DAMAGES: dict[str, tuple[Any, str]] = {
    "NaN": ([*range(11), np.nan], r"times\[11\] is nan"),
    "infinity": ([np.inf, *range(11)], r"times\[0\] is inf"),
    "text": (["noon"] * 12, "times are <U4"),
    "another length": ([1.0] * 11, r"times \[11\] for 12 edges"),
}
"""Times of the 12 edges of a .npz file, and the words they get."""

TABLE = np.zeros((13, 2))
NPY_DAMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "header|as np.save writes it"),
    "torn header": (lambda: npy(TABLE)[:40], "header|as np.save writes it"),
    "unclosed header": (lambda: npy(TABLE).replace(b"}", b" "), "header|as np.save writes it"),
    "objects": (lambda: npy(TABLE, descr="|O"), "holds objects"),
    "72 TiB claimed": (
        lambda: npy(TABLE, (72 * 2**40 // 16, 2)),
        "79,164,837,199,872 bytes, and holds 208",
    ),
    "negative shape": (lambda: npy(TABLE, (-13, -2)), "claims float64"),
    "cut short": (lambda: npy(TABLE)[:-8], "208 bytes, and holds 200"),
    "an archive": (npz, "header|as np.save writes it"),
    "an infinite value": (lambda: npy(TABLE + np.inf), "not finite"),
    "text": (lambda: npy(np.full((13, 2), "x")), "numbers (are|is)|array of numbers"),
    "another rank": (lambda: npy(np.zeros(13)), r"\[13\]"),
}  # fmt: skip
"""The content of a .npy file of features, and the words it gets."""


def write_features(root: Path) -> None:
    edges = "".join(f"{u},{v}\n" for u, v in RING.tolist())
    put(root, "mine.csv", f"source,target\n{edges}")
    put(root, "mine_features.npy", npy(TABLE))


NPY_READERS = (
    Reader("features", "graph/mine_features.npy", write_features, read_graph("own", **DATED)),
    Reader(
        "embeddings", "items.npy", lambda root: (root / "items.npy").write_bytes(npy(TABLE)),
        lambda root: embeddings.load(root / "items.npy", 13),
    ),
)  # fmt: skip

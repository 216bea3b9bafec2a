# SPDX-License-Identifier: Apache-2.0
"""One door to all formats: `read(format, name, root)`.

amazon2014   <root>/amazon2014/<name>/         any category laid out so
reviews2014  <root>/reviews_<name>_5.json.gz   and meta_<name>.json.gz
reviews2023  <root>/<name>.{train,valid,test}.csv and meta_<name>.jsonl.gz
movielens    <root>/<name>/                    ml-100k, ml-1m, ml-20m, ml-25m, ...
letter       <root>/letter/<name>.inter.json
own          <root>/<name>.csv or .parquet     and <name>_items.csv or .parquet
planted      made up; <name> is the seed       no files
"""

from collections.abc import Callable
from pathlib import Path

from rec.data import amazon2014, letter, movielens, own, reviews
from rec.data.events import Policy
from rec.data.files import inside
from rec.data.planted import planted
from rec.data.sequences import Corpus

Reader = Callable[[str, str | Path, Policy], Corpus]


def _letter(name: str, root: str | Path, policy: Policy) -> Corpus:
    del policy  # rows without times and repeats
    return letter.read(name, root)


def _own(name: str, root: str | Path, policy: Policy) -> Corpus:
    endings = (".csv", ".csv.gz", ".parquet")
    paths = []
    for stem in (name, f"{name}_items"):
        here = [inside(root, f"{stem}{ending}") for ending in endings]
        paths.append(next((path for path in here if path.is_file()), here[0]))
    return own.read(*paths, policy=policy)


def _planted(name: str, root: str | Path, policy: Policy) -> Corpus:
    del root, policy
    if not name.isdecimal():
        raise ValueError(f"name={name!r}: the name of a planted corpus is its seed, a number")
    return planted(int(name)).corpus


FORMATS: dict[str, Reader] = {
    "amazon2014": amazon2014.read,
    "reviews2014": reviews.read_2014,
    "reviews2023": reviews.read_2023,
    "movielens": movielens.read,
    "letter": _letter,
    "own": _own,
    "planted": _planted,
}


def read(format: str, name: str, root: str | Path = "", policy: Policy | None = None) -> Corpus:
    """Corpus `name` in one of FORMATS.

    Raises:
        ValueError: an unknown format, a name that leaves the folder, or what the reader of that
            format raises.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown; choose from {', '.join(FORMATS)}")
    inside(root, name)
    return FORMATS[format](name, root, policy or Policy())

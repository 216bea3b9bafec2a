# SPDX-License-Identifier: Apache-2.0
"""Makes the example tables beside it: ratings.csv, items.csv and friends.csv. Nobody's real data.

    python experiments/examples/make_examples.py

Users walk through a shop of 60 items in 6 kinds: mostly to the next item of the same kind,
sometimes anywhere. People know each other mostly within their group. One seed draws it all.
"""

import csv
import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
SEED = 20
USERS = 200
KINDS = ("tea", "soap", "lamp", "rope", "drum", "kite")
ITEMS_PER_KIND = 10
PEOPLE = 90
GROUPS = 6
START = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)


def ratings(generator: np.random.Generator) -> Iterable[Sequence[object]]:
    """Rows user_id, item_id, timestamp, rating."""
    for user in range(USERS):
        item = int(generator.integers(len(KINDS) * ITEMS_PER_KIND))
        moment = START + datetime.timedelta(hours=int(generator.integers(2000)))
        bought: set[int] = set()
        for _ in range(int(generator.integers(5, 10))):
            while item in bought:
                item = int(generator.integers(len(KINDS) * ITEMS_PER_KIND))
            bought.add(item)
            stamp = moment.strftime("%Y-%m-%dT%H:%M:%S")
            yield f"u{user:03d}", f"i{item:02d}", stamp, int(generator.integers(1, 6))
            moment += datetime.timedelta(hours=int(generator.integers(1, 72)))
            kind, place = divmod(item, ITEMS_PER_KIND)
            if generator.random() < 0.75:
                item = kind * ITEMS_PER_KIND + (place + 1) % ITEMS_PER_KIND
            else:
                item = int(generator.integers(len(KINDS) * ITEMS_PER_KIND))


def items() -> Iterable[Sequence[object]]:
    """Rows item_id, title."""
    colors = ("red", "blue", "green", "black", "white", "small", "large", "old", "new", "fine")
    for item in range(len(KINDS) * ITEMS_PER_KIND):
        kind, place = divmod(item, ITEMS_PER_KIND)
        yield f"i{item:02d}", f"{colors[place]} {KINDS[kind]}"


def friends(generator: np.random.Generator) -> Iterable[Sequence[object]]:
    """Rows from, to."""
    for first in range(PEOPLE):
        for second in range(first + 1, PEOPLE):
            chance = 0.35 if first % GROUPS == second % GROUPS else 0.03
            if generator.random() < chance:
                yield f"p{first:02d}", f"p{second:02d}"


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file whose bytes do not depend on the system."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main(folder: Path = FOLDER) -> None:
    """Writes the three files."""
    write(
        folder / "ratings.csv",
        ("user_id", "item_id", "timestamp", "rating"),
        ratings(np.random.default_rng([SEED, 0])),
    )
    write(folder / "items.csv", ("item_id", "title"), items())
    write(folder / "friends.csv", ("from", "to"), friends(np.random.default_rng([SEED, 1])))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""The example tables are what their script makes."""

from pathlib import Path

from experiments.examples import make_examples


def test_the_tables_are_those_of_the_script(tmp_path: Path) -> None:
    make_examples.main(tmp_path)
    for name in ("ratings.csv", "items.csv", "friends.csv"):
        made = (tmp_path / name).read_bytes()
        assert made == (make_examples.FOLDER / name).read_bytes(), name
        assert 300 < len(made) < 60_000

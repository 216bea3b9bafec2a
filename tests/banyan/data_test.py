# SPDX-License-Identifier: Apache-2.0
"""Boxoban files: known hashes, TFDS round trip without TensorFlow, real layouts."""

import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from banyan import data
from banyan.layouts import connected, parse_raw, read_levels, read_text, usable
from experiments import data as data_command
from experiments.runner import data as raw_data

LEVEL = """; 0
##########
#@ $     #
#  ####  #
#  #  .  #
#  #     #
#        #
#    ### #
#      # #
#        #
##########

; 1
##########
#        #
#  ####  #
#  #  *  #
#  #     #
#    +   #
#    ### #
#      # #
#        #
##########
"""


def test_records_round_trip_through_tfds_without_tensorflow(tmp_path: Path) -> None:
    source = tmp_path / "some.txt.gz"
    source.write_bytes(gzip.compress(LEVEL.encode()))
    builder = data.boxoban_builder([source], tmp_path / "tfds")
    builder.download_and_prepare()
    assert list(Path(builder.data_dir).glob("*.array_record*"))
    records = list(builder.as_data_source("levels"))
    levels = [data.level_of(record) for record in records]
    expected = parse_raw(LEVEL, "some.txt.gz")
    assert [level.source for level in levels] == ["some.txt.gz:2", "some.txt.gz:14"]
    for level, raw in zip(levels, expected, strict=True):
        np.testing.assert_array_equal(level.walls, raw.walls)
        assert level.start == raw.start
    assert records[0]["walls"].dtype == np.uint8
    assert "tensorflow" not in sys.modules


@pytest.mark.data
def test_known_files_have_the_recorded_content(data_root: Path) -> None:
    for name, (digest, source) in data.FILES.items():
        text = read_text(data_root / name)
        assert hashlib.sha256(text.encode()).hexdigest() == digest, name
        assert source.endswith(".txt")


@pytest.mark.data
def test_all_real_levels_are_usable_layouts(data_root: Path) -> None:
    levels = read_levels([data_root / name for name in data.FILES])
    assert len(levels) == 2000
    assert not [reason for level in levels if (reason := usable(level))]
    assert all(connected(level.walls, level.start) for level in levels[:50])
    free = [int((~level.walls).sum()) for level in levels]
    assert min(free) >= 15 and max(free) <= 50


@pytest.mark.data
def test_raw_files_are_found_verified_prepared_once_and_read(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of every system with data: locate, verify, prepare in the cache, read."""
    monkeypatch.setenv("BANYAN_DATA", str(data_root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known = raw_data.fingerprints("boxoban")
    assert known.items() >= {path: sha for path, (sha, _) in data.FILES.items()}.items()
    folder = raw_data.locate("boxoban")
    paths = [folder.parent / path for path in data.FILES]
    built: list[str] = []

    def builder(where: str) -> object:
        built.append(where)
        return data.boxoban_builder(paths, where)

    records = raw_data.prepare("boxoban", builder, known).as_data_source("levels")
    assert len(built) == 2  # in a temporary folder, then where it appeared
    again = raw_data.prepare("boxoban", builder, known).as_data_source("levels")
    assert len(built) == 3 and built[1] == built[2]
    assert len(records) == len(again) == 2000
    expected = read_levels(paths)
    for index in (0, 999, 1000, 1999):
        level = data.level_of(records[index])
        np.testing.assert_array_equal(level.walls, expected[index].walls)
        assert (level.start, level.source) == (expected[index].start, expected[index].source)


@pytest.mark.data
def test_command_line_knows_where_the_levels_are(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("BANYAN_DATA", str(data_root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_command.main(["verify", "boxoban"]) == 0
    assert data_command.main(["where", "boxoban"]) == 0
    assert capsys.readouterr().out.strip().endswith(str(data_root / "boxoban"))
    assert data_command.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert data.ABOUT["boxoban"][0] in listed and "Apache" in listed
    assert data_command.main(["where", "boxoban", f"--root={tmp_path}"]) == 1
    assert "data.py download boxoban" in capsys.readouterr().err
    monkeypatch.delenv("BANYAN_DATA")
    assert data_command.main(["verify", "boxoban"]) == 1

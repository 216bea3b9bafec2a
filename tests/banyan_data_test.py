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

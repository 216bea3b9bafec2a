# SPDX-License-Identifier: Apache-2.0
"""Boxoban levels as a TFDS data set (array_record files, no TensorFlow).

    builder = boxoban_builder(["boxoban/hard_000.txt.gz"], data_dir)
    builder.download_and_prepare()
    for record in builder.as_data_source("levels"): ...   # walls uint8 [8, 8], start int32, source

One record per level: `walls` (1 wall, 0 floor), `start` (cell 0..63 of the player) and `source`
("file:line"). Records keep the order of the files. Levels that cannot serve as layouts (free
cells not connected) are kept; `layouts.usable` tells.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from banyan.layouts import RawLevel, find_level_files, parse_raw, read_text
from banyan.types import SIDE

_SOURCE = "https://raw.githubusercontent.com/google-deepmind/boxoban-levels/master"

# Path under the data root -> (sha256 of the unzipped content, public source). Both are whole files
# of 1,000 levels, Apache-2.0, unchanged but for compression.
FILES = {
    "boxoban/hard_000.txt.gz": (
        "c320e8b1f5a26be7a85dff18147a7decae3c5e765c38ff56e30ebf8551d331f4",
        f"{_SOURCE}/hard/000.txt",
    ),
    "boxoban/unfiltered_test_000.txt.gz": (
        "272928a4e7c185fdf84daa523b298750b6ff08703cb0c20d3be7eff93acc5256",
        f"{_SOURCE}/unfiltered/test/000.txt",
    ),
}
ABOUT = {
    "boxoban": (
        "Boxoban levels: 10x10 Sokoban rooms, of which the inner 8x8 walls serve as layouts",
        "Apache License 2.0",
    )
}


def records(paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, features) of every level of the files, in order.

    Raises:
        ValueError: a truncated file or malformed level, named with its line.
    """
    for path in find_level_files(paths):
        for level in parse_raw(read_text(path), path.name):
            yield (
                level.source,
                {
                    "walls": level.walls.astype(np.uint8),
                    "start": np.int32(level.start),
                    "source": level.source,
                },
            )


def level_of(record: dict[str, Any]) -> RawLevel:
    """A record as `layouts.from_level` wants it."""
    return RawLevel(record["walls"] == 1, int(record["start"]), record["source"].decode())


@cache
def _builder_class() -> type:
    """The builder; tensorflow_datasets takes seconds to import, so only users of it wait."""
    import tensorflow_datasets as tfds

    class BanyanBoxoban(tfds.core.GeneratorBasedBuilder):
        """Boxoban levels without boxes: 8x8 walls and the player's cell."""

        VERSION = tfds.core.Version("1.0.0")
        RELEASE_NOTES: dict[str, str] = {"1.0.0": "walls, start and source of each level"}  # noqa: RUF012

        def __init__(self, paths: Sequence[str | Path] = (), **kwargs: Any) -> None:
            self.paths = [Path(path) for path in paths]
            super().__init__(file_format="array_record", **kwargs)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description="Interior walls and player cell of Boxoban levels.",
                features=tfds.features.FeaturesDict(
                    {
                        "walls": tfds.features.Tensor(shape=(SIDE, SIDE), dtype=np.uint8),
                        "start": tfds.features.Scalar(dtype=np.int32),
                        "source": tfds.features.Text(),
                    }
                ),
                homepage="https://github.com/google-deepmind/boxoban-levels",
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # nothing is downloaded
            return {"levels": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for number, (_, features) in enumerate(records(self.paths)):
                yield number, features

    return BanyanBoxoban


def boxoban_builder(paths: Sequence[str | Path], data_dir: str | Path) -> Any:
    """TFDS builder `banyan_boxoban` over level files (plain or gzip), written below `data_dir`."""
    return _builder_class()(paths=paths, data_dir=str(data_dir))

# SPDX-License-Identifier: Apache-2.0
"""A split as a TFDS data set (array_record files, no TensorFlow).

    builder = sequences_builder(lambda: split, data_dir)
    builder.download_and_prepare()
    split = read_split(builder)

TFDS splits train, valid and test; a record is one user: `user` int32, `items` int32 [T] oldest
first, `times` int64 [T] or [0], `num_items` int32. The last item of a valid or test record is the
target, all before it the history.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rec.data.sequences import Queries, Sequences, Split, pack, take

Record = dict[str, Any]


def _rows(sequences: Sequences, users: np.ndarray, targets: np.ndarray) -> Iterator[Record]:
    """Records of rows, with targets [U] appended where there are any."""
    timed = len(sequences.times) > 0
    for row, (start, stop) in enumerate(
        zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)
    ):
        items = np.append(sequences.items[start:stop], targets[row : row + 1])
        yield {
            "user": np.int32(users[row]),
            "items": items.astype(np.int32),
            "times": sequences.times[start:stop] if timed else np.zeros(0, np.int64),
            "num_items": np.int32(sequences.num_items),
        }


def records(split: Split) -> dict[str, Iterator[Record]]:
    """Records by TFDS split, users in order."""
    users = np.arange(split.train.num_users)
    queries = {"valid": split.valid, "test": split.test}
    return {"train": _rows(split.train, users, np.zeros(0, np.int32))} | {
        name: _rows(asked.history, asked.users, asked.targets) for name, asked in queries.items()
    }


@cache
def _builder_class() -> type:
    """The builder; tensorflow_datasets takes seconds to import, so only users of it wait."""
    import tensorflow_datasets as tfds

    class RecSequences(tfds.core.GeneratorBasedBuilder):
        """Interaction sequences of one corpus, split for next-item recommendation."""

        VERSION = tfds.core.Version("1.0.0")
        RELEASE_NOTES: dict[str, str] = {"1.0.0": "user, items, times, num_items"}  # noqa: RUF012

        def __init__(self, make: Callable[[], Split], **kwargs: Any) -> None:
            self.make = make
            super().__init__(file_format="array_record", **kwargs)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description="Users with their items, oldest first.",
                features=tfds.features.FeaturesDict(
                    {
                        "user": tfds.features.Scalar(dtype=np.int32),
                        "items": tfds.features.Tensor(shape=(None,), dtype=np.int32),
                        "times": tfds.features.Tensor(shape=(None,), dtype=np.int64),
                        "num_items": tfds.features.Scalar(dtype=np.int32),
                    }
                ),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # nothing is downloaded
            return {name: enumerate(rows) for name, rows in records(self.make()).items()}

        def _generate_examples(self) -> Iterator[tuple[int, Record]]:
            raise AssertionError("the splits bring their own examples")

    return RecSequences


def sequences_builder(make: Callable[[], Split], data_dir: str | Path) -> Any:
    """TFDS builder `rec_sequences` written below `data_dir`; `make` is called only to prepare."""
    return _builder_class()(make=make, data_dir=str(data_dir))


def read_split(builder: Any) -> Split:
    """The split a prepared builder was given, read from its files."""
    rows = {name: list(builder.as_data_source(name)) for name in ("train", "valid", "test")}
    num_items = int(rows["train"][0]["num_items"])
    train = pack(
        [r["items"] for r in rows["train"]], num_items, [r["times"] for r in rows["train"]]
    )
    return Split(train, *(_queries(rows[name], num_items) for name in ("valid", "test")))


def _queries(rows: list[Record], num_items: int) -> Queries:
    whole = pack([row["items"] for row in rows], num_items)
    history = take(whole, np.zeros_like(whole.lengths), whole.lengths - 1)
    times = np.concatenate([np.zeros(0, np.int64), *(row["times"] for row in rows)])
    return Queries(
        np.array([row["user"] for row in rows], np.int32),
        history._replace(times=times),
        whole.items[whole.offsets[1:] - 1],
    )

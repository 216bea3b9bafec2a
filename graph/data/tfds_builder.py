# SPDX-License-Identifier: Apache-2.0
"""A split graph as a TFDS data set (array_record files, no TensorFlow).

    builder = links_builder(lambda: data, data_dir)
    builder.download_and_prepare()
    data, graph = read_links(builder), read_csr(builder)

A TFDS split is one array: `indptr` and `indices` of the graph in rows, then `train` (where it is
not all of the graph), `train_neg`, `valid_pos`, `valid_neg`, `test_pos`, `test_neg`, `late`,
`features` and `names` (UTF-8, JSON; where they are not the ids); arrays without elements are not
written. `about` holds the rest as JSON. A record is a part of its array, at most 1M edges:
`dtype`, `shape` of the whole array, `start` of the part in it (elements), `values` (bytes).
"""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from graph import csr
from graph.csr import CSR
from graph.links import LinkData, Links, Split

PART = 1 << 21  # numbers of a record: the ends of at most 2^20 edges
PAIRS = ("train_neg", "valid_pos", "valid_neg", "test_pos", "test_neg", "late")

Record = dict[str, Any]


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def arrays_of(data: LinkData) -> dict[str, np.ndarray]:
    """What is stored, by TFDS split."""
    split = data.split
    graph = csr.build(split.graph, data.num_nodes)
    own_train = split.train is not split.graph and not np.array_equal(split.train, split.graph)
    numbers = all(name == str(i) for i, name in enumerate(data.names))
    about = {
        "name": data.name, "num_nodes": data.num_nodes, "protocol": data.protocol,
        "dropped": data.dropped, "directed": data.directed, "own_train": own_train,
        "own_names": not numbers, "num_features": data.features.shape[1],
        "shapes": {name: list(_pairs(split, name).shape) for name in PAIRS},
    }  # fmt: skip
    example = {"about": _bytes(json.dumps(about)), "indptr": graph.indptr, "indices": graph.indices}
    if own_train:
        example["train"] = split.train
    example |= {name: _pairs(split, name) for name in PAIRS} | {"features": data.features}
    if not numbers:
        example["names"] = _bytes(json.dumps(data.names))
    return {name: array for name, array in example.items() if array.size}


def _pairs(split: Split, name: str) -> np.ndarray:
    side, _, part = name.partition("_")
    return (
        getattr(getattr(split, side), part) if side in ("valid", "test") else getattr(split, name)
    )


def records(array: np.ndarray) -> Iterator[Record]:
    """Parts of an array, in order."""
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, len(flat), PART):
        yield {
            "dtype": flat.dtype.str,
            "shape": np.array(array.shape, np.int64),
            "start": np.int64(start),
            "values": flat[start : start + PART].view(np.uint8),
        }


@cache
def _builder_class() -> type:
    """The builder; tensorflow_datasets takes seconds to import, so only users of it wait."""
    import tensorflow_datasets as tfds

    class GraphLinks(tfds.core.GeneratorBasedBuilder):
        """One graph, split for link prediction."""

        VERSION = tfds.core.Version("1.0.0")
        RELEASE_NOTES: dict[str, str] = {"1.0.0": "arrays in parts"}  # noqa: RUF012

        def __init__(self, make: Callable[[], LinkData], **kwargs: Any) -> None:
            self.make = make
            super().__init__(file_format="array_record", **kwargs)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description="A graph in compressed sparse rows and the links to predict.",
                features=tfds.features.FeaturesDict(
                    {
                        "dtype": tfds.features.Text(),
                        "shape": tfds.features.Tensor(shape=(None,), dtype=np.int64),
                        "start": tfds.features.Scalar(dtype=np.int64),
                        # Raw bytes: as a list of numbers a record would take 10 times its size.
                        "values": tfds.features.Tensor(
                            shape=(None,), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
                        ),
                    }
                ),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # nothing is downloaded
            # An array is a split, since TFDS holds what it writes of a split in memory.
            return {name: enumerate(records(a)) for name, a in arrays_of(self.make()).items()}

        def _generate_examples(self) -> Iterator[tuple[int, Record]]:
            raise AssertionError("the splits bring their own examples")

    return GraphLinks


def links_builder(make: Callable[[], LinkData], data_dir: str | Path) -> Any:
    """TFDS builder `graph_links` written below `data_dir`; `make` is called only to prepare."""
    return _builder_class()(make=make, data_dir=str(data_dir))


def _read(builder: Any, name: str) -> np.ndarray:
    """One array, filled part by part.

    Raises:
        ValueError: parts are missing.
    """
    whole, filled = np.zeros(0), 0
    for record in builder.as_data_source(name):
        part = np.frombuffer(record["values"].tobytes(), record["dtype"].decode())
        if not filled:
            whole = np.empty(record["shape"].tolist(), part.dtype)
        whole.reshape(-1)[record["start"] : record["start"] + len(part)] = part
        filled += len(part)
    if filled != whole.size:
        raise ValueError(f"{name}: {filled} of {whole.size} numbers are there; prepare it again")
    return whole


def read_csr(builder: Any) -> CSR:
    """The graph of a prepared builder, in rows."""
    return CSR(_read(builder, "indptr"), _read(builder, "indices"))


def read_links(builder: Any) -> LinkData:
    """What a prepared builder was given, read from its files."""
    about = json.loads(_read(builder, "about").tobytes())
    there = set(builder.info.splits)
    pairs = {
        name: _read(builder, name) if name in there else np.zeros(shape, np.int32)
        for name, shape in about["shapes"].items()
    }
    if "indices" in there:
        graph = csr.edges_of(read_csr(builder))
    else:
        graph = np.zeros((0, 2), np.int32)
    split = Split(
        graph,
        _read(builder, "train") if about["own_train"] else graph,
        pairs["train_neg"],
        Links(pairs["valid_pos"], pairs["valid_neg"]),
        Links(pairs["test_pos"], pairs["test_neg"]),
        pairs["late"],
    )
    count = about["num_nodes"]
    features = np.zeros((count, about["num_features"]), np.float32)
    if "features" in there:
        features = _read(builder, "features")
    names = [str(i) for i in range(count)]
    if about["own_names"]:
        names = json.loads(_read(builder, "names").tobytes())
    return LinkData(
        about["name"], count, split, features, names, about["protocol"], about["dropped"],
        about["directed"],
    )  # fmt: skip

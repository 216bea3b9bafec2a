# SPDX-License-Identifier: Apache-2.0
"""From a seed and a `TaskConfig` to the tables of all task distributions, and to files and back.

    tasks = make_tasks(0, TaskConfig(shift=("topologies",), topologies=(16,), num_dists=10))
    params = tasks.params._replace(dist=tasks.dists[3])      # a shift: nothing is recompiled

Everything is drawn on the host with counter-based streams, so the tables are byte-identical on
any machine; the manifest records counts, rejections and hashes and is checked on reading back.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from banyan import layouts as lay
from banyan import trees as tr
from banyan.pools import Draft, Pools, draw_pools, make_dist, make_params, nested
from banyan.task_config import TaskConfig
from banyan.types import (
    RULE_VERSION,
    Dist,
    EnvParams,
    Layouts,
    Rules,
    Trees,
    host_leaf,
)

__all__ = ["TaskConfig", "Tasks", "from_arrays", "make_tasks", "to_arrays"]

_SCALARS = ("per_task", "max_steps", "reward_success", "reward_dead_end")


class Tasks(NamedTuple):
    """Tables of a sequence of distributions; `params.dist` is the first of them."""

    params: EnvParams  # NumPy leaves
    dists: tuple[Dist, ...]  # equal shapes: swapping them never retraces
    manifest: dict[str, Any]  # JSON


def _tables(config: TaskConfig, pools: Pools) -> tuple[EnvParams, tuple[Dist, ...]]:
    """Packs the pools; trees and layouts of a shared axis are stored once."""
    nodes: list[tr.Node] = []
    depths: list[int] = []
    layouts: list[lay.Layout] = []
    tree_ids: dict[int, np.ndarray] = {}  # by identity of the (possibly shared) pool
    layout_ids: dict[int, dict[int, np.ndarray]] = {}
    for draft in pools.drafts:
        if id(draft.trees) not in tree_ids:
            first = len(nodes)
            for node in (node for group in draft.trees for node in group):
                nodes += nested(config, node)
                depths += config.all_depths
            ids = np.arange(first, len(nodes)).reshape(-1, len(config.all_depths))
            tree_ids[id(draft.trees)] = ids
        if id(draft.layouts) not in layout_ids:
            by_class = {}
            for size_class, pool in draft.layouts.items():
                by_class[size_class] = np.arange(len(layouts), len(layouts) + len(pool))
                layouts += pool
            layout_ids[id(draft.layouts)] = by_class
    widths = (
        max(map(len, tree_ids.values())),
        max(len(ids) for by_class in layout_ids.values() for ids in by_class.values()),
    )
    dists = tuple(
        make_dist(config, tree_ids[id(draft.trees)], layout_ids[id(draft.layouts)], widths)
        for draft in pools.drafts
    )
    trees = tr.pack(nodes, depths)
    packed = lay.pack(layouts)
    return make_params(config, pools.rules, trees, packed, dists[0]), dists


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and little-endian bytes."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
        total.update(f"{name} {little.dtype.str} {array.shape}\n".encode())
        total.update(little.tobytes())
    return total.hexdigest()


def _flat(params: EnvParams, dists: tuple[Dist, ...]) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(getattr(params, name)) for name in _SCALARS}
    for group in ("rules", "trees", "layouts"):
        table = getattr(params, group)
        arrays |= {f"{group}/{name}": np.asarray(getattr(table, name)) for name in table._fields}
    for i, dist in enumerate(dists):
        arrays |= {f"dists/{i}/{name}": np.asarray(getattr(dist, name)) for name in dist._fields}
    return arrays


def _dist_digest(params: EnvParams, dist: Dist) -> str:
    """Hash of what one distribution can show: its trees, its layouts, the rules."""
    depths = slice(int(dist.depth_min) - 1, int(dist.depth_max))
    trees = np.asarray(dist.tree_ids)[depths, : int(dist.num_trees)].reshape(-1)
    classes = np.unique(np.asarray(dist.size_class)[depths])
    layouts = np.asarray(dist.layout_ids)[classes, : int(dist.num_layouts)].reshape(-1)
    content = {f"trees/{n}": np.asarray(t)[trees] for n, t in params.trees._asdict().items()}
    content |= {f"layouts/{n}": np.asarray(t)[layouts] for n, t in params.layouts._asdict().items()}
    content |= {f"rules/{n}": np.asarray(t) for n, t in params.rules._asdict().items()}
    return _digest(content)


def _wall_counts(drafts: tuple[Draft, ...]) -> tuple[list[int], list[int]]:
    """Per distribution: distinct wall maps, and how many an earlier distribution has as well."""
    distinct = []
    shared = []
    earlier: set[str] = set()
    for draft in drafts:
        walls = {lay.wall_hash(layout) for pool in draft.layouts.values() for layout in pool}
        distinct.append(len(walls))
        shared.append(len(walls & earlier))
        earlier |= walls
    return distinct, shared


def _config_record(config: TaskConfig) -> dict[str, Any]:
    """The config as JSON gives it back, without folders of this machine."""
    record = asdict(config)
    record["levels"] = Path(config.levels).name if config.levels else ""
    return json.loads(json.dumps(record))


def _manifest(
    seed: int, config: TaskConfig, pools: Pools, params: EnvParams, dists: tuple[Dist, ...]
) -> dict[str, Any]:
    distinct_walls, shared_walls = _wall_counts(pools.drafts)
    counted = ("pairs_checked", "pairs_rejected", "layouts_redrawn", "trees_redrawn")
    counted += ("topologies_redrawn",)
    return {
        "schema": 1,
        "rule_version": RULE_VERSION,
        "seed": seed,
        "config": _config_record(config),
        "num_trees": len(np.asarray(params.trees.goal)),
        "num_layouts": len(np.asarray(params.layouts.start)),
        "levels_read": pools.levels["read"],
        "levels_unusable": pools.levels["unusable"],
        "dists": [
            {
                "topologies": len(draft.topologies),
                "objects": len(draft.trees[0]),
                "layouts": int(dist.num_layouts),
                "wall_maps": distinct,
                "wall_maps_shared_with_earlier": shared,
                **{name: draft.counts[name] for name in counted},
                "sha256": _dist_digest(params, dist),
            }
            for draft, dist, distinct, shared in zip(
                pools.drafts, dists, distinct_walls, shared_walls, strict=True
            )
        ],
        "sha256": _digest(_flat(params, dists)),
    }


def make_tasks(seed: int, config: TaskConfig) -> Tasks:
    """Draws all distributions.

    Args:
        seed: 0..2^63-1; with `config` it fixes every byte of the result.

    Raises:
        ValueError: bad seed; a distribution that cannot be filled or solved in time.
        FileNotFoundError: `config.levels` names nothing.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed}: must lie in 0..2^63-1")
    pools = draw_pools(seed, config)
    params, dists = _tables(config, pools)
    return Tasks(params, dists, _manifest(seed, config, pools, params, dists))


def to_arrays(tasks: Tasks) -> dict[str, np.ndarray]:
    """Flat arrays for an .npz or a checkpoint; the manifest is JSON in the bytes of one of them."""
    text = json.dumps(tasks.manifest, sort_keys=True)
    manifest = np.frombuffer(text.encode(), np.uint8).copy()
    return {**_flat(tasks.params, tasks.dists), "manifest": manifest}


def from_arrays(arrays: dict[str, np.ndarray]) -> Tasks:
    """Inverse of `to_arrays`; verifies completeness, rule version and hashes.

    Raises:
        ValueError: arrays missing, of other rules, or changed since they were written.
    """
    if "manifest" not in arrays:
        raise ValueError("task tables: array 'manifest' is missing")
    try:
        manifest = json.loads(np.asarray(arrays["manifest"]).tobytes().decode())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"task tables: the manifest is not readable ({error})") from error
    if manifest.get("rule_version") != RULE_VERSION:
        raise ValueError(
            f"task tables: rule_version {manifest.get('rule_version')}, this code plays by "
            f"version {RULE_VERSION}; generate them again"
        )

    def read(name: str) -> Any:
        if name not in arrays:
            raise ValueError(f"task tables: array {name!r} is missing")
        return host_leaf(np.asarray(arrays[name]))

    dists = tuple(
        Dist(*(read(f"dists/{i}/{name}") for name in Dist._fields))
        for i in range(len(manifest["dists"]))
    )
    params = EnvParams(
        rules=Rules(*(read(f"rules/{name}") for name in Rules._fields)),
        trees=Trees(*(read(f"trees/{name}") for name in Trees._fields)),
        layouts=Layouts(*(read(f"layouts/{name}") for name in Layouts._fields)),
        dist=dists[0],
        per_task=read("per_task"),
        max_steps=read("max_steps"),
        reward_success=read("reward_success"),
        reward_dead_end=read("reward_dead_end"),
    )
    if _digest(_flat(params, dists)) != manifest["sha256"]:
        raise ValueError("task tables: sha256 differs from the manifest; the arrays were changed")
    return Tasks(params, dists, manifest)

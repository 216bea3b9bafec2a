# SPDX-License-Identifier: Apache-2.0
"""Task distributions: nesting, counts, disjointness, reproducibility, bad configurations."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from banyan import layouts as lay
from banyan import trees as tr
from banyan.layouts import num_slots
from banyan.oracle import plan
from banyan.rules import pool_items
from banyan.tasks import TaskConfig, Tasks, from_arrays, make_tasks, to_arrays
from banyan.types import MAX_LEAVES, Dist
from tests import ROOT
from tests.banyan.layouts_test import ROWS, replaced, text_of
from tests.tiers import deep


def make(seed: int = 0, **config: object) -> Tasks:
    return make_tasks(seed, TaskConfig(**({"verify_pairs": 0} | config)))  # type: ignore[arg-type]


def deepest(tasks: Tasks, dist: Dist) -> list[tr.Node]:
    ids = np.asarray(dist.tree_ids)[int(dist.depth_max) - 1, : int(dist.num_trees)]
    return [tr.unpack(tasks.params.trees, int(k)) for k in ids]


def shapes(tasks: Tasks, dist: Dist) -> set[str]:
    return {tr.topology_string(tr.topology_of(node)) for node in deepest(tasks, dist)}


def objects(tasks: Tasks, dist: Dist) -> set[str]:
    return {tr.canonical(node) for node in deepest(tasks, dist)}


def layouts(tasks: Tasks, dist: Dist, walls_only: bool = False) -> set[bytes]:
    used = np.unique(dist.size_class)
    ids = np.asarray(dist.layout_ids)[used, : int(dist.num_layouts)].reshape(-1)
    slot = np.asarray(tasks.params.layouts.slot)[ids]
    return {row.tobytes() for row in (slot == 1 if walls_only else slot)}


def test_trees_of_smaller_depths_are_the_nested_ones() -> None:
    tasks = make(topologies=(12,), objects=(3,))
    dist = tasks.dists[0]
    assert int(dist.num_trees) == 36
    assert len(np.asarray(tasks.params.trees.goal)) == 6 * 36  # shared by both distributions
    ids = np.asarray(dist.tree_ids)
    assert len(np.unique(ids)) == 6 * 36
    for j, node in enumerate(deepest(tasks, dist)):
        nested = [tr.unpack(tasks.params.trees, int(ids[depth, j])) for depth in range(6)]
        assert tuple(nested) == tr.spine(node)
    depth = np.asarray(tasks.params.trees.depth)[ids[:, :36]]
    np.testing.assert_array_equal(depth, np.repeat(np.arange(1, 7)[:, None], 36, axis=1))


def test_one_op_counts_edges() -> None:
    tasks = make(depth1="one_op", depths=(1, 6), topologies=(6,))
    ids = np.asarray(tasks.dists[0].tree_ids)
    for depth in range(1, 7):
        for k in ids[depth - 1, :6]:
            assert tr.levels(tr.unpack(tasks.params.trees, int(k))) == depth + 1
            assert tasks.params.trees.depth[k] == depth


@pytest.mark.parametrize(
    "shift", [("layouts",), ("objects",), ("topologies",), ("layouts", "topologies")]
)
def test_distributions_are_disjoint_along_the_shift_and_equal_elsewhere(
    shift: tuple[str, ...],
) -> None:
    sizes = {"layouts": (8,), "objects": (4,), "topologies": (3,)}
    tasks = make(shift=shift, num_dists=4, **sizes)
    views = {"layouts": layouts, "objects": objects, "topologies": shapes}
    for axis, view in views.items():
        sets = [view(tasks, dist) for dist in tasks.dists]
        moves = axis in shift or (axis == "objects" and "topologies" in shift)
        for i, one in enumerate(sets):
            for other in sets[:i]:
                assert not one & other if moves else one == other, axis
    assert [len(shapes(tasks, dist)) for dist in tasks.dists] == [3] * 4
    assert [len(objects(tasks, dist)) for dist in tasks.dists] == [12] * 4
    assert [len(layouts(tasks, dist)) for dist in tasks.dists] == [16] * 4  # two board sizes


def test_sizes_may_differ_and_all_distributions_have_equal_array_shapes() -> None:
    tasks = make(
        shift=("layouts", "topologies"), num_dists=3, layouts=(1, 4, 16), topologies=(1, 4, 9)
    )
    assert [int(d.num_trees) for d in tasks.dists] == [1, 4, 9]
    assert [int(d.num_layouts) for d in tasks.dists] == [1, 4, 16]
    described = [[(x.shape, x.dtype) for x in map(np.asarray, dist)] for dist in tasks.dists]
    assert described[0] == described[1] == described[2]


def test_board_size_follows_depth_and_leaves_fit() -> None:
    tasks = make(small_shape=(4, 5), large_shape=(7, 6), small_max_depth=3, num_walls=4)
    dist = tasks.dists[0]
    np.testing.assert_array_equal(dist.size_class, [0, 0, 0, 1, 1, 1])
    shape = np.asarray(tasks.params.layouts.shape)[np.asarray(dist.layout_ids)]
    assert (shape[0] == [4, 5]).all() and (shape[1] == [7, 6]).all()
    tight = make(depths=(4, 4), small_shape=(2, 4), num_walls=1, topologies=(30,))
    most = max(len(tr.leaves(node)) for node in deepest(tight, tight.dists[0]))
    assert most == num_slots((2, 4), 1) == 6


def test_disjoint_item_pools() -> None:
    tasks = make(shift=("objects",), item_pools="disjoint", objects=(8,))
    for i, dist in enumerate(tasks.dists):
        items = {item for node in deepest(tasks, dist) for item in tr.items_of(node)}
        assert items <= set(pool_items(i, 2).tolist())


def test_per_task_rules_leave_the_global_tables_empty() -> None:
    params = make(rules="per_task").params
    assert bool(params.per_task) and not np.asarray(params.rules.combine).any()


def test_wall_maps_are_new_where_enough_exist_and_counted_where_not() -> None:
    plenty = make(layouts=(40,))
    assert [d["wall_maps"] for d in plenty.manifest["dists"]] == [80, 80]
    assert [d["wall_maps_shared_with_earlier"] for d in plenty.manifest["dists"]] == [0, 0]
    few = make(depths=(1, 2), small_shape=(3, 3), num_walls=1, layouts=(30,))
    walls = [layouts(few, dist, walls_only=True) for dist in few.dists]
    assert len(walls[0]) == 8  # all there are
    assert few.manifest["dists"][1]["wall_maps_shared_with_earlier"] == len(walls[0] & walls[1]) > 0
    assert not layouts(few, few.dists[0]) & layouts(few, few.dists[1])


def test_oracle_filter_leaves_only_solvable_pairs_and_reports_what_it_rejected() -> None:
    config = {"topologies": (8,), "layouts": (3,), "max_steps": 90}
    tasks = make(**config, shift=("layouts", "topologies"), verify_pairs=10_000)
    rejected = [dist["pairs_rejected"] for dist in tasks.manifest["dists"]]
    assert sum(rejected) > 0
    for dist, record in zip(tasks.dists, tasks.manifest["dists"], strict=True):
        assert record["pairs_checked"] >= 6 * 8 * 3
        for depth in range(1, 7):
            pool = np.asarray(dist.layout_ids)[int(dist.size_class[depth - 1])][:3]
            for tree in np.asarray(dist.tree_ids)[depth - 1, :8]:
                for layout in pool:
                    actions = plan(tasks.params, int(tree), int(layout))
                    assert actions is not None and len(actions) <= 0.8 * 90


@pytest.mark.parametrize("shift", ["layouts", "objects", "topologies"])
def test_filter_repairs_what_is_not_shared(shift: str) -> None:
    config = {"layouts": (2,), "topologies": (2,), "objects": (2,), "max_steps": 60}
    tasks = make(seed=3, shift=(shift,), **config, depths=(5, 5), verify_pairs=50)
    for dist in tasks.dists:
        for tree in np.asarray(dist.tree_ids)[4, :4]:
            for layout in np.asarray(dist.layout_ids)[1, :2]:
                assert len(plan(tasks.params, int(tree), int(layout))) <= 48
    views = {"layouts": layouts, "objects": objects, "topologies": shapes}
    assert not views[shift](tasks, tasks.dists[0]) & views[shift](tasks, tasks.dists[1])


def test_arrays_round_trip_and_notice_changes() -> None:
    tasks = make(shift=("objects",), num_dists=3)
    arrays = to_arrays(tasks)
    again = from_arrays({name: array.copy() for name, array in arrays.items()})
    assert again.manifest == tasks.manifest == json.loads(json.dumps(tasks.manifest))
    for name, array in to_arrays(again).items():
        assert array.tobytes() == arrays[name].tobytes() and array.dtype == arrays[name].dtype
    changed = arrays | {"trees/parent": arrays["trees/parent"] ^ 1}
    with pytest.raises(ValueError, match="sha256 differs"):
        from_arrays(changed)
    with pytest.raises(ValueError, match="'layouts/slot' is missing"):
        from_arrays({name: array for name, array in arrays.items() if name != "layouts/slot"})
    old = json.dumps(tasks.manifest | {"rule_version": 0}).encode()
    with pytest.raises(ValueError, match="rule_version 0"):
        from_arrays(arrays | {"manifest": np.frombuffer(old, np.uint8)})
    with pytest.raises(ValueError, match="manifest is not readable"):
        from_arrays(arrays | {"manifest": np.frombuffer(b"{", np.uint8)})
    with pytest.raises(ValueError, match="'manifest' is missing"):
        from_arrays({})


def test_same_seed_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "from banyan.tasks import make_tasks, TaskConfig;"
        "print(make_tasks(5, TaskConfig(topologies=(4,), verify_pairs=20)).manifest['sha256'])"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = make(5, topologies=(4,), verify_pairs=20).manifest["sha256"]
    assert other.stdout.strip() == here != make(6, topologies=(4,)).manifest["sha256"]


def test_a_larger_pool_begins_with_the_smaller_one() -> None:
    small, large = make(layouts=(4,)), make(layouts=(9,))
    ids = [np.asarray(t.dists[0].layout_ids)[:, :4] for t in (small, large)]
    slots = [np.asarray(t.params.layouts.slot)[i] for t, i in zip((small, large), ids, strict=True)]
    np.testing.assert_array_equal(*slots)


def test_ten_thousand_layouts_are_drawn_about_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    sample_layout, draws = lay.sample_layout, []

    def count(*given: Any) -> Any:
        draws.append(1)
        return sample_layout(*given)

    monkeypatch.setattr(lay, "sample_layout", count)
    tasks = make(depths=(1, 4), num_dists=1, layouts=(10_240,))
    sizes = 2  # boards of shallow and of deep trees
    assert len(layouts(tasks, tasks.dists[0])) == 10_240
    assert 10_240 <= len(draws) <= 1.2 * sizes * 10_240


def test_boxoban_files_as_layout_pool(tmp_path: Path) -> None:
    good = [replaced(5, f"#{'#' * n}{' ' * (8 - n)}#") for n in range(1, 6)]
    text = "".join(map(text_of, [*good, replaced(5, "##########")]))
    (tmp_path / "levels.txt.gz").write_bytes(gzip.compress(text.encode()))
    tasks = make(levels=str(tmp_path / "*.gz"), layouts=(4,), depths=(1, 3), verify_pairs=20)
    assert tasks.manifest["levels_read"] == 6 and tasks.manifest["levels_unusable"] == 1
    assert tasks.manifest["config"]["levels"] == "*.gz"
    np.testing.assert_array_equal(tasks.dists[0].size_class, [1] * 6)
    walls = [layouts(tasks, dist, walls_only=True) for dist in tasks.dists]
    assert len(walls[0]) == 4 and len(walls[0] | walls[1]) == 5
    assert tasks.manifest["dists"][1]["wall_maps_shared_with_earlier"] == 3
    assert not layouts(tasks, tasks.dists[0]) & layouts(tasks, tasks.dists[1])
    (tmp_path / "bad.txt").write_text(text_of(replaced(5, "##########")))
    with pytest.raises(ValueError, match="none of 1 levels is usable"):
        make(levels=str(tmp_path / "bad.txt"))
    assert "@" in ROWS[1]


@pytest.mark.data
def test_real_levels_as_layout_pool(data_root: Path) -> None:
    tasks = make(levels=str(data_root / "boxoban"), layouts=(100,), verify_pairs=60)
    assert tasks.manifest["levels_read"] == 2000
    assert [d["wall_maps"] for d in tasks.manifest["dists"]] == [100, 100]
    assert tasks.manifest["dists"][1]["wall_maps_shared_with_earlier"] == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depth1": "two"}, "depth1='two': must be one of 'fetch', 'one_op'"),
        ({"rules": "local"}, "rules='local'"),
        ({"item_pools": "x"}, "item_pools='x'"),
        ({"topology_kind": "x"}, "topology_kind='x'"),
        ({"depths": (0, 3)}, r"depths=\(0, 3\)"),
        ({"depths": (3, 7)}, r"depths=\(3, 7\)"),
        ({"depths": (4, 3)}, r"depths=\(4, 3\)"),
        ({"combine_density": 1.5}, r"combine_density=1\.5"),
        ({"p_stop": -0.5}, r"p_stop=-0\.5"),
        ({"num_dists": 0}, "num_dists=0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"verify_pairs": -1}, "verify_pairs=-1"),
        ({"small_max_depth": 9}, "small_max_depth=9"),
        ({"small_shape": (9, 9)}, "rows and columns"),
        ({"large_shape": (2, 3)}, "num_walls=6"),
        ({"shift": ()}, "shift=()"),
        ({"shift": ("colors",)}, "shift='colors'"),
        ({"shift": ("layouts", "layouts")}, "different axes"),
        ({"layouts": (1, 2, 3)}, r"layouts=\(1, 2, 3\): must hold 1 number or num_dists=2"),
        ({"layouts": (0,)}, "layouts=0"),
        ({"topologies": (1, 2)}, r"topologies=\(1, 2\): an axis that is not in shift"),
        ({"item_pools": "disjoint"}, "needs 'objects' in shift"),
        ({"topology_kind": "balanced", "depth1": "one_op"}, "64 leaves and 127 nodes"),
        (
            {"topology_kind": "balanced", "item_pools": "disjoint", "shift": ("objects",)},
            "63 nodes: at most 32 leaves and 40 items",
        ),
        (
            {"depths": (1, 2), "topologies": (8,)},
            "needs 8 different shapes, but topology_kind='random' has only 2 at depth 2",
        ),
        ({"topology_kind": "balanced", "shift": ("topologies",)}, "needs 2 different shapes"),
    ],
)
def test_bad_configurations_are_refused_at_once(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskConfig(**config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depths": (1, 1), "shift": ("objects",), "objects": (41,)}, "82 different assignments"),
        ({"combine_density": 0.0, "p_binary": 1.0}, "rules and items allow at most 0"),
        deep({"depths": (1, 3), "topologies": (7,), "p_stop": 1.0}, "found no further shape"),
        (
            {"depths": (1, 1), "small_shape": (2, 2), "num_walls": 0, "layouts": (100,)},
            "found no further layout",
        ),
        deep(
            {"topology_kind": "balanced", "verify_pairs": 8},
            r"have no plan within 0\.8 \* max_steps = 128 steps; raise max_steps=160",
        ),
    ],
)
def test_pools_that_cannot_be_filled_say_why(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**config)


def test_bad_seed_and_missing_levels() -> None:
    with pytest.raises(ValueError, match="seed=-1"):
        make(-1)
    with pytest.raises(FileNotFoundError, match="no such file"):
        make(levels="nowhere/*.txt")
    assert MAX_LEAVES == 32

# SPDX-License-Identifier: Apache-2.0
"""Link predictors as systems: batches, backends, groups, evaluation, predicting, a new graph."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.runner import loop, reopen, settings
from experiments.runner.assemble import Assembly, assemble, initial_state
from experiments.runner.errors import UserError
from experiments.runner.queries import Query
from experiments.systems.graph.links import batches, peer, wiring
from graph import csr, metrics
from tests import jitter
from tests.systems.contract_test import on_devices
from tests.tiers import deep
from tests.tiny_systems import assert_same_training, moments, run_steps, tiny


@cache
def artifacts() -> dict[str, Any]:
    return assemble(tiny("pencil")).artifacts


def assembled(**changes: Any) -> Assembly:
    return assemble(tiny("pencil", **changes), artifacts())


def stream(**changes: Any) -> tuple[batches.Stream, wiring.Loaded]:
    config = tiny("pencil", **changes)
    loaded = wiring.load(config)
    return batches.Stream(loaded, settings.groups(config)["sample"], config.seed), loaded


def rows(pairs: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(sorted(pair)) for pair in pairs.tolist()]


def test_every_positive_once_an_epoch_and_negatives_are_no_edges() -> None:
    made, loaded = stream(sample__rows=20)
    total = len(loaded.data.split.train)
    steps = -(-total // 10)
    seen, orders = [], set()
    for step in range(steps):
        pairs, labels = made.links(step)
        assert labels.tolist() == [1] * 10 + [0] * 10
        seen += rows(pairs[:10])
        orders |= {a < b for a, b in pairs.tolist()}
        assert not csr.contains(loaded.graph, pairs[10:]).any()
        assert (pairs[:, 0] != pairs[:, 1]).all()
    assert sorted(seen[:total]) == sorted(rows(loaded.data.split.train))
    assert orders == {True, False}  # endpoints change places
    again, _ = stream(sample__rows=20)
    np.testing.assert_array_equal(again.links(7)[0], made.links(7)[0])
    later = rows(made.links(steps)[0][10:])
    assert sorted(later) != sorted(rows(made.links(0)[0][10:]))  # negatives are drawn anew


def test_held_out_links_are_avoided_on_request() -> None:
    made, loaded = stream(sample__rows=200, sample__avoid=True)
    held = {*rows(loaded.data.split.test.pos), *rows(loaded.data.split.valid.pos)}
    drawn = {pair for step in range(40) for pair in rows(made.links(step)[0][100:])}
    free, _ = stream(sample__rows=200)
    usual = {pair for step in range(40) for pair in rows(free.links(step)[0][100:])}
    assert not drawn & held and usual & held


@pytest.mark.trains
@pytest.mark.parametrize("change", [deep("device"), "groups", deep("microbatches"), deep("mesh")])
def test_how_a_batch_is_computed_changes_nothing(change: str) -> None:
    """Subgraphs on the device or on the host, grouped by size, in parts, on four devices."""
    plain = assembled()
    want = run_steps(on_devices(tiny("pencil"), (1, 1), 1, artifacts()), 2)
    other = {
        "device": {"sample__backend": "device"},
        "groups": {"sample__groups": 2, "sample__buckets": (16, 18)},
        "microbatches": {"optim__microbatches": 4},
        "mesh": {},
    }[change]
    shape = ((4, 1), 4) if change == "mesh" else ((1, 1), 1)
    asm = on_devices(tiny("pencil", **other), *shape, artifacts())
    if change == "groups":
        assert asm.experiment.batch is not None
        made = asm.experiment.batch(0)
        assert made["n.0"].max() <= made["n.1"].min()  # by size
        assert made["adj_bits.0"].shape[1] < made["adj_bits.1"].shape[1] == 18
    got = run_steps(asm, 2)
    assert_same_training(got, want)
    assert [m["tokens"] for m in got[1]] == [m["tokens"] for m in want[1]]
    assert np.ptp([m["loss"] for m in want[1]]) > 1e-4
    assert plain.config.sample.groups == 1


def test_evaluation_scores_every_link_as_it_is_alone() -> None:
    """Unique pairs, buckets and batches against one link at a time; draws differ."""
    asm = assembled(eval__draws=2, eval__batch=7, sample__buckets=(6, 12, 18))
    state = initial_state(asm)
    found = asm.experiment.evaluate(state, "test")
    config = tiny("pencil", eval__draws=2, eval__batch=1)
    single = assemble(config, artifacts())
    alone = single.experiment.evaluate(state, "test")
    for name in ("auc", "ap", "mrr", "hits@10"):
        assert found[f"test/{name}"] == pytest.approx(alone[f"test/{name}"], abs=2e-3)
    assert found["test/auc"] != found["test/auc/one_draw"]
    assert found["test/tokens"] == alone["test/tokens"] and found["test/dropped"] == 0
    assert {f"{name}/test/mrr" for name in ("cn", "ra", "katz", "ppr")} <= set(found)


@pytest.mark.trains
def test_the_peer_is_the_gnn_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row beside PENCIL tests the state that the system `gnn` has after as many updates."""
    prepared = artifacts()  # trains a peer too, once for all tests
    make, tested = peer.gnn_system.make, []

    def make_recorder(*given: Any) -> Any:
        made = make(*given)

        def evaluate(state: Any, split: str) -> Any:
            tested.append(state)
            return made.evaluate(state, split)

        return made._replace(evaluate=evaluate)

    with monkeypatch.context() as patch:
        patch.setattr(peer.gnn_system, "make", make_recorder)
        row = peer.train_and_test(tiny("pencil", peer__steps=2), prepared)
    (state,) = tested
    asm = assemble(tiny("gnn", sample__rows=16))
    alone, _ = run_steps(on_devices(asm.config, (1, 1), 1, asm.artifacts), 2)
    assert int(state["step"]) == int(alone["step"]) == 2
    want = moments(alone)
    largest = max(float(np.abs(mean).max()) for mean in want.values())
    jitter.close("moments of gradients", moments(state), want, atol=1e-4 * largest)
    found = asm.experiment.evaluate(state, "test")
    for name in ("auc", "mrr"):
        assert row[f"gnn/test/{name}"] == pytest.approx(found[f"test/{name}"], abs=1e-6)
    assert set(row) <= set(artifacts()["rows"])


def test_predicting_needs_nothing_but_the_artifacts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asm = assembled()
    state = initial_state(asm)

    def refuse(*_: Any) -> Any:
        raise AssertionError("the links were read")

    monkeypatch.setattr("experiments.systems.graph.links.wiring.load", refuse)
    predict = asm.experiment.actions["predict"]
    graph = wiring.build_graph(artifacts())
    u, v = csr.edges_of(graph)[0].tolist()
    (pair,) = rows_of(predict(state, Query(f"{u} {v}")))
    assert (pair["source"], pair["target"]) == (str(u), str(v)) and pair["linked"]
    assert "no calibrated probability" in capsys.readouterr().err
    listed = rows_of(predict(state, Query(f"{u}")))
    others = [int(row["target"]) for row in listed]
    assert len(others) == len(set(others)) == 10
    assert [row["rank"] for row in listed] == list(range(1, 11))
    assert not any(row["linked"] for row in listed)
    assert not csr.contains(graph, np.array([[u, w] for w in others])).any()
    scores = [row["score"] for row in listed]
    assert scores == sorted(scores, reverse=True)
    # What a list says of a pair is what the pair alone is given.
    (alone,) = rows_of(predict(state, Query(f"{u} {others[0]}")))
    assert alone["score"] == pytest.approx(scores[0], abs=1e-4)
    assert len(rows_of(predict(state, Query(f"{u} {v}\n\n{u}\n", top=3)))) == 4
    for query, message in (
        ("200000", "unknown node '200000'"),
        (f"{u} {u}", "joins a node to itself"),
        ("1 2 3", '"u v" or "u"'),
        (" \n", "is empty"),
    ):
        with pytest.raises(UserError, match=message):
            list(predict(state, Query(query)))


def rows_of(tables: Any) -> list[dict[str, Any]]:
    """Rows of an answer made of tables."""
    rows = []
    for table in tables:
        columns = [np.asarray(values).tolist() for values in table.values()]
        rows += [dict(zip(table, row, strict=True)) for row in zip(*columns, strict=True)]
    return rows


def test_heuristics_predict(tmp_path: Path) -> None:
    """Common neighbors counted by sets; a file of pairs and the links of the test."""
    asm = assemble(tiny("graph_heuristics"))
    predict = asm.experiment.actions["predict"]
    edges = np.asarray(asm.artifacts["graph"])
    around: dict[int, set[int]] = {}
    for a, b in edges.tolist():
        around.setdefault(a, set()).add(b)
        around.setdefault(b, set()).add(a)
    a, b = edges[3].tolist()
    (row,) = rows_of(predict({}, Query(f"cn: {a} {b}")))
    assert row["heuristic"] == "cn" and row["score"] == len(around[a] & around[b])
    (tmp_path / "pairs.csv").write_text(f"from,to\n{a},{b}\n{b},{a}\n")
    read = rows_of(predict({}, Query(path=tmp_path / "pairs.csv")))
    assert [r["score"] for r in read if r["heuristic"] == "cn"] == [row["score"]] * 2
    tested = rows_of(predict({}, Query("pa: all")))
    degrees = [len(around[int(r["source"])]) * len(around[int(r["target"])]) for r in tested]
    assert [r["score"] for r in tested] == degrees == sorted(degrees, reverse=True)
    best = rows_of(predict({}, Query("pa: all", top=3)))
    assert [r["score"] for r in best] == degrees[:3]
    with pytest.raises(UserError, match="there are cn"):
        list(predict({}, Query("1 2")))


def test_whole_graph_models_do_not_see_the_link() -> None:
    """A link has one logit, whether it is an edge of the graph or not."""
    asm = assemble(tiny("gnn"))
    state = initial_state(asm)
    state["params"] = jax.tree.map(lambda x: 4 * x, state["params"])  # logits of some size
    predict = asm.experiment.actions["predict"]
    edges = np.asarray(asm.artifacts["graph"])
    u, v = edges[5].tolist()
    fewer = {**asm.artifacts, "graph": np.delete(edges, 5, axis=0)}
    without = assemble(tiny("gnn"), fewer).experiment.actions["predict"]
    score = lambda action, query: rows_of(action(state, Query(query)))[0]["score"]
    assert score(predict, f"{u} {v}") == pytest.approx(score(without, f"{u} {v}"), abs=1e-4)
    assert abs(score(predict, f"{v} 3") - score(without, f"{v} 3")) > 1e-4


# ----------------------------------------------------------------------------------- by a user


@pytest.mark.deep
@pytest.mark.trains
def test_a_graph_it_has_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's CSV with names: trained, evaluated, reported beside heuristics, asked elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(3)
    lines = ["source,target"]
    for a in range(60):
        for b in range(a):
            if rng.random() < (0.5 if a % 4 == b % 4 else 0.02):
                lines.append(f"node{a},node{b}")
    lines += [lines[1], "node5,node5"]
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "mine.csv").write_text("\n".join(lines))
    own = {"data__format": "own", "data__root": str(raw), "data__name": "mine"}
    folder = tmp_path / "run"
    loop.train(tiny("pencil", **own), folder)
    results = json.loads((folder / "results.json").read_text())["metrics"]
    assert 0 <= results["test/auc"] <= 1 and "katz/test/auc" in results
    assert 0 <= results["gnn/test/auc"] <= 1
    page = (folder / "report.md").read_text()
    assert "jaccard" in page and "What is read around a link" in page
    assert "| duplicates | 1 |" in page and "| loops | 1 |" in page
    assert reopen.check(folder) == []
    shutil.rmtree(raw)
    (row,) = rows_of(reopen.act(folder, "predict", Query("node1 node9")))
    assert (row["source"], row["target"]) == ("node1", "node9")
    with pytest.raises(UserError, match="unknown node 'nodule'; did you mean"):
        list(rows_of(reopen.act(folder, "predict", Query("node1 nodule"))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__format": "npz", "data__name": "nowhere"}, "nowhere"),
        ({"data__index": -1}, "learns on one split"),
        ({"sample__negatives": "fixed"}, "brings no negatives"),
        ({"model__slots": 5}, "links of up to 18 tokens"),
        ({"model__fusion": "early"}, "brings no node features"),
        ({"optim__microbatches": 3}, "must divide"),
        ({"num_seeds": 2}, "one seed per run"),
    ],
)
def test_bad_settings_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BANYAN_DATA", str(tmp_path))
    with pytest.raises((UserError, ValueError), match=message):
        asm = assemble(tiny("pencil", **changes))
        assert asm.experiment.batch is not None
        asm.experiment.batch(0)


def test_another_graph_is_refused() -> None:
    other = assemble(tiny("pencil", data__name="1"), artifacts())
    with pytest.raises(UserError, match="not the links this run began with"):
        other.experiment.evaluate(initial_state(other), "valid")


# ------------------------------------------------------------------------------ heuristics, targets


@pytest.mark.data
def test_heuristics_are_means_over_the_fixed_splits(data_root: Path) -> None:
    """Against scores of each split, made here by hand from its arrays."""
    config = tiny(
        "graph_heuristics", data__format="npz", data__name="USAir", data__split="fixed",
        data__index=-1, eval__heuristics=("pa",),
    )  # fmt: skip
    found = assemble(config)
    values = found.experiment.evaluate(initial_state(found), "test")
    with np.load(data_root / "graph" / "USAir_splits.npz") as arrays:
        aucs = []
        for index in range(10):
            part = {
                k: arrays[f"split{index}_{k}"].astype(int)
                for k in ("train_pos", "test_pos", "test_neg")
            }
            degree = np.bincount(part["train_pos"].ravel(), minlength=332)
            pos, neg = (degree[part[k]].prod(1) for k in ("test_pos", "test_neg"))
            above = (pos[:, None] > neg).mean() + 0.5 * (pos[:, None] == neg).mean()
            aucs.append(above)
    assert values["pa/test/auc"] == pytest.approx(np.mean(aucs), abs=1e-9)
    assert values["pa/test/auc/std"] == pytest.approx(np.std(aucs, ddof=1), abs=1e-9)


def test_regression_learns_its_target_and_knows_the_constant() -> None:
    """Labels of batches are the heuristic, scaled, by hand; R2 of the mean is about 0."""
    asm = assemble(tiny("heuristic_regression"))
    assert asm.experiment.batch is not None
    batch = asm.experiment.batch(0)
    loaded = wiring.load(asm.config)
    V = loaded.graph.num_nodes
    near = np.zeros((V, V))
    near[tuple(csr.edges_of(loaded.graph).T)] = 1
    near += near.T
    every = np.log1p((near @ near)[np.triu_indices(V)])
    want = np.log1p((near @ near)[tuple(batch["pairs"].T)])
    want = np.clip(want / np.percentile(every, 99.99), 0, 1)
    np.testing.assert_allclose(batch["labels"], want, atol=1e-6)
    found = asm.experiment.evaluate(initial_state(asm), "test")
    assert abs(found["mean/test/r2"]) < 0.3 and found["test/rmse"] > 0


def test_metrics_shown_are_metrics_made() -> None:
    made = metrics.summarize(np.array([1.0, 0.5]), np.array([0.2, 0.7]))
    assert {*wiring.SELECTABLE, *wiring.SHOWN} <= set(made)

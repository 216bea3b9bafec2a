# SPDX-License-Identifier: Apache-2.0
"""Recommenders as systems: artifacts, SIDs between runs, devices, recommending, bad input."""

import gzip
import itertools
import json
import re
import shutil
from collections import Counter, defaultdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments.configs.rec import sasrec, tiger
from experiments.runner import checkpoint, loop, reopen, settings, sharding
from experiments.runner.assemble import Assembly, assemble, initial_state
from experiments.runner.errors import UserError
from experiments.runner.queries import Query
from experiments.systems.rec.recommenders import streams, wiring
from experiments.systems.rec.recommenders.generators import Decoder
from rec.data import sequences
from rec.sid import table
from tests.systems.contract_test import on_devices
from tests.tiny_systems import assert_same_training, run_steps, tiny

SMALL = {"data__users": 60, "eval__rows": 16, "eval__draws": 10}


@cache
def artifacts() -> dict[str, Any]:
    """Of a small tiger; shared, for fitting SIDs takes seconds."""
    return assemble(tiny("tiger", **SMALL)).artifacts


def assembled(**changes: Any) -> Assembly:
    return assemble(tiny("tiger", **SMALL, **changes), artifacts())


@pytest.mark.deep
@pytest.mark.trains
@pytest.mark.parametrize("system", ["sasrec", "tiger"])
def test_devices_agree(system: str) -> None:
    """Losses and gradients of packed rows on 8 devices are those of one."""
    runs = {}
    for mesh, count in (((1, 1), 1), ((8, 1), 8)):
        asm = on_devices(tiny(system, **SMALL), mesh, count, artifacts())
        assert asm.experiment.batch is not None and len(asm.experiment.batch(0)["ages"]) % 8 == 0
        runs[mesh] = run_steps(asm, 2)
    assert np.ptp([m["loss"] for m in runs[1, 1][1]]) > 1e-3
    # Over three seeds: losses to 2e-7 of themselves, moments of every leaf to 7e-7 of its own.
    assert_same_training(runs[8, 1], runs[1, 1])


def test_packed_batches_follow_from_seed_and_step() -> None:
    """Asked in any order; hosts have parts of the same rows; a pass is no repetition of the last,
    but has the same pairs."""
    rng = np.random.default_rng(0)
    train = sequences.pack([rng.integers(0, 30, n) for n in (5, 9, 2, 14, 1, 7)], 30)
    make = partial(streams.make_packed_batches, rows=2, length=4)  # 32 pairs: 4 batches a pass
    batches, again = (make(train, 3) for _ in range(2))
    other = make(train, 4)
    whole = {step: batches(step, None) for step in range(8)}
    for step in (6, 1, 7, 0):
        halves = [again(step, part) for part in ((0, 1), (1, 2))]
        for name, leaf in whole[step].items():
            np.testing.assert_array_equal(np.concatenate([h[name] for h in halves]), leaf)
    assert (other(0, None)["items"] != whole[0]["items"]).any()
    assert (whole[4]["items"] != whole[0]["items"]).any()
    passes = [
        Counter(
            pair
            for step in range(first, first + 4)
            for pair in zip(
                whole[step]["items"].ravel().tolist(),
                whole[step]["targets"].ravel().tolist(),
                strict=True,
            )
        )
        for first in (0, 4)
    ]
    assert passes[0] == passes[1] and passes[0].total() == 32
    with pytest.raises(UserError, match="nothing to predict"):
        make(sequences.pack([[1], [2]], 30), 3)


@pytest.mark.parametrize(
    ("system", "changes", "names"),
    [
        ("sasrec", {}, {"items", "targets", "segments", "ages", "weights"}),
        ("sasrec", {"augment__pairs": "positions"}, {"row"}),
        ("sasrec", {"augment__pairs": "windows"}, {"row"}),
        ("tiger", {}, {"items", "targets", "segments", "ages", "weights"}),
        ("tiger_t5", {}, {"row"}),
    ],
)
def test_rows_are_split_over_data_and_nothing_else(
    system: str, changes: dict[str, Any], names: set[str]
) -> None:
    """ "items" are rows of a stream, or training sequences that every device draws from."""
    config = tiny(system.removesuffix("_t5"), **SMALL, **changes)
    if system == "tiger_t5":
        pairs_config = tiger.get_config("tiny_t5")
        config.augment = pairs_config.augment
        config.model = pairs_config.model
    experiment = assemble(config, artifacts()).experiment
    assert experiment.batch is not None
    batch = experiment.batch(0)
    specs = {name: sharding.match(experiment.rules, f"batch/{name}", P("data")) for name in batch}
    assert {name for name, spec in specs.items() if spec == P("data")} == names
    assert all(len(batch[name]) % 8 == 0 for name in names)


def test_sasrec_as_it_was_before_packed_rows_has_its_hash() -> None:
    """Runs of then go on: what came later counts only where it differs."""
    config = sasrec.get_config("base")
    config.augment.update({"rows": 128, "pairs": "positions"})
    config.model.update({"heads": 1, "max_items": 50, "smoothing": 0.0, "dropout": 0.3})
    config.model.dropout_sites = "all"
    config.optim.update({"lr": 1e-3, "schedule": "constant", "decay": 10_000, "weight_decay": 0.0})
    config.train.save_every = 250
    config.eval.every = 250
    assert settings.config_hash(settings.to_json(config)) == "03be8b88f40b"
    config.model.smoothing = 0.1
    assert settings.config_hash(settings.to_json(config)) != "03be8b88f40b"
    paper = settings.to_json(sasrec.get_config("paper"))
    assert settings.config_hash(paper) == "eb9a884155cf"


def test_a_wrong_sid_table_is_refused() -> None:
    """One code changed beside its hash; and a whole other table, hash and all."""
    kept = artifacts()
    sids = np.array(kept["sid"]["table"])
    sids[3, 0] = (sids[3, 0] + 1) % 8
    broken = {**kept, "sid": {**kept["sid"], "table": sids}}
    with pytest.raises(UserError, match="SHA-256"):
        assemble(tiny("tiger", **SMALL), broken)
    sizes = tuple(kept["sid"]["sizes"])
    other = {**kept, "sid": {**kept["sid"], "table": sids, "sha256": table.sha256(sids, sizes)}}
    state = initial_state(assembled())
    with pytest.raises(UserError, match="another SID table"):
        assemble(tiny("tiger", **SMALL), other).experiment.evaluate(state, "valid")


def test_recommending_needs_nothing_but_the_artifacts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No corpus is read; items of the history are left out, also those older than the newest ones
    that a model reads of a long history."""
    asm = assembled()
    state = initial_state(asm)

    def refuse(*_: Any) -> Any:
        raise AssertionError("the corpus was read")

    monkeypatch.setattr("experiments.systems.rec.recommenders.wiring.load", refuse)
    recommend = asm.experiment.actions["recommend"]
    items, texts = artifacts()["items"], artifacts()["texts"]
    answer = rows_of(recommend(state, Query(f"{items[3]} {items[5]}")))
    names = [row["item"] for row in answer]
    assert 5 <= len(names) <= 10 and len(set(names)) == len(names)
    assert not {items[3], items[5]} & set(names)
    assert [row["rank"] for row in answer] == list(range(1, len(answer) + 1))
    scores = [row["score"] for row in answer]
    assert scores == sorted(scores, reverse=True) and max(scores) <= 0
    for row in answer:
        assert row["title"] == texts[items.index(row["item"])] and row["user"] == "1"

    long = rows_of(recommend(state, Query(" ".join(items[10:30]))))
    assert "the newest 16 items are read" in capsys.readouterr().err
    newest = rows_of(recommend(state, Query(" ".join(items[14:30]))))
    unseen = [row["item"] for row in newest if row["item"] not in items[10:14]]
    assert [row["item"] for row in long][: len(unseen)] == unseen
    both = rows_of(recommend(state, Query(f"{items[3]} {items[5]}\n\n{items[7]}\n")))
    first = [row for row in both if row["user"] == "1"]
    assert [row["item"] for row in first] == names
    np.testing.assert_allclose([row["score"] for row in first], scores, rtol=1e-5)
    assert {row["user"] for row in both} == {"1", "2"}
    assert len(rows_of(recommend(state, Query(items[3], top=2)))) == 2
    for query, words in (
        (Query(f"{items[3]} item-9-9-9"), r"unknown item 'item-9-9-9'; did you mean"),
        (Query("  \n"), "oldest first"),
        (Query(items[3], top=10_000), "--top=10000: this run's lists have at most"),
    ):
        with pytest.raises(UserError, match=words):
            recommend(state, query)


def rows_of(tables: Any) -> list[dict[str, Any]]:
    """Rows of an answer made of tables."""
    rows = []
    for columns in tables:
        values = [np.asarray(column).tolist() for column in columns.values()]
        rows += [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
    return rows


def test_counts_recommend_what_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`successor` counted by hand; a file of histories and all users give what the items give; a
    last batch that is not full changes nothing."""
    monkeypatch.setattr("experiments.systems.rec.recommenders.recommend.BATCH", 7)
    asm = assemble(tiny("rec_baselines", data__users=40))
    recommend = asm.experiment.actions["recommend"]
    loaded = wiring.load(asm.config)
    train = loaded.split.train
    followed: dict[int, Counter[int]] = defaultdict(Counter)
    for user in range(train.num_users):
        for first, second in itertools.pairwise(train.of(user).tolist()):
            followed[first][second] += 1
    items = loaded.corpus.items
    last = max(followed, key=lambda item: max(followed[item].values()))
    answer = rows_of(recommend({}, Query(f"successor: {items[last]}", top=3)))
    counts = followed[last]
    assert answer[0]["score"] == pytest.approx(max(counts.values()), abs=1e-2)
    for row in answer:
        assert row["score"] == pytest.approx(counts[items.index(row["item"])], abs=1e-2)
        assert row["baseline"] == "successor"

    everybody = rows_of(recommend({}, Query("successor: all", top=2)))
    assert len(everybody) == 2 * 40
    assert {row["user"] for row in everybody} == set(loaded.corpus.users)
    histories = [loaded.corpus.sequences.of(user).tolist() for user in range(40)]
    lines = [" ".join(items[i] for i in history) for history in histories]
    typed = rows_of(recommend({}, Query("successor: " + "\n".join(lines), top=2)))
    assert [row["item"] for row in typed] == [row["item"] for row in everybody]
    table = ["userId,product_id", *(f"{u},{items[i]}" for u, h in enumerate(histories) for i in h)]
    (tmp_path / "histories.csv").write_text("\n".join(table))
    read = rows_of(recommend({}, Query(path=tmp_path / "histories.csv", top=2)))
    by_successor = [row for row in read if row["baseline"] == "successor"]
    assert [row["item"] for row in by_successor] == [row["item"] for row in everybody]
    assert len(read) == 5 * len(by_successor)
    with pytest.raises(UserError, match="there are popularity, successor"):
        list(recommend({}, Query("nothing: i1")))


class LikesTheFirst:
    """A ranker of the first item best, the second next, whatever the history."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, params: Any, history: Any) -> np.ndarray:
        return np.tile(-np.arange(history.num_items, dtype=np.float32), (history.num_users, 1))


class DecodesTheFirst:
    """A decoder of the same order."""

    def decode(self, params: Any, queries: Any, values: np.ndarray) -> Any:
        items = np.tile(np.arange(40, dtype=np.int32), (len(queries.users), 1))
        return wiring.Answer(items, -items.astype(np.float32))


@pytest.mark.parametrize("system", ["sasrec", "tiger"])
def test_what_a_user_had_is_never_recommended(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """15 items with max_items=12, of a model that likes the three oldest best."""
    made_by_tiger = artifacts()
    if system == "sasrec":
        monkeypatch.setattr("experiments.systems.rec.sasrec.Ranker", LikesTheFirst)
    else:
        monkeypatch.setattr(Decoder, "decode", DecodesTheFirst.decode)
    asm = assemble(tiny(system, **SMALL, model__max_items=12), made_by_tiger)
    items = made_by_tiger["items"]
    state = initial_state(asm)
    answer = rows_of(asm.experiment.actions["recommend"](state, Query(" ".join(items[:15]))))
    assert [row["item"] for row in answer] == items[15:25]


@pytest.mark.deep
def test_the_test_prints_everything_beside_it() -> None:
    """All five baselines, the best possible ranker, groups, intervals and differences."""
    asm = assembled()
    found = asm.experiment.evaluate(initial_state(asm), "test")
    for name in ("popularity", "successor", "cooccurrence", "item_knn", "content"):
        for metric in ("recall@5", "recall@10", "ndcg@5", "ndcg@10"):
            assert 0 <= found[f"{name}/test/{metric}"] <= 1
        gap = found["test/recall@10"] - found[f"{name}/test/recall@10"]
        assert found[f"test/recall@10/minus_{name}"] == pytest.approx(gap)
        low, high = (found[f"test/recall@10/minus_{name}/{end}"] for end in ("low", "high"))
        assert low <= gap + 1e-9 and gap <= high + 1e-9
    assert found["bayes/test/recall@10"] > found["popularity/test/recall@10"]
    parts = [found[f"test/share/{g}"] for g in ("U+", "U-")]
    assert sum(parts) == pytest.approx(1)
    mixed = sum(
        found[f"test/share/{g}"] * found.get(f"test/recall@10/{g}", 0.0) for g in ("U+", "U-")
    )
    assert mixed == pytest.approx(found["test/recall@10"])
    assert found["test/invalid@10"] == 0 and found["test/repeated@10"] == 0


# --------------------------------------------------------------------------------- between runs


def toys(root: Path, users: int = 60, items: int = 40) -> None:
    """A category nobody has seen, laid out like the others."""
    folder = root / "amazon2014" / "toys"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"B{rng.integers(10**8):09d}" for _ in range(items)]
    rows = [
        " ".join([f"A{u}", *(names[(3 * u + j * (1 + u % 2)) % items] for j in range(6))])
        for u in range(users)
    ]
    text = {"user_sequence": rows}
    text["item_text_tag"] = [f"{n} toy car color{i % 5}" for i, n in enumerate(names)]
    text["item_keyword_path"] = [f"{n} |▁wheel{i % 8}|▁wood" for i, n in enumerate(names)]
    for name, lines in text.items():
        (folder / f"{name}.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


TOYS = {
    "data__format": "amazon2014",
    "data__name": "toys",
    "eval__draws": 10,
    "train__steps": 3,
    "train__save_every": 3,
    "eval__every": 3,
    "sid__codes": 4,
    "sid__steps": 3,
    "sid__init_rows": 8,
}


@pytest.mark.deep
@pytest.mark.trains
def test_from_raw_files_of_an_unknown_category_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIDs by one run, read by the next, whose folder then checks and recommends elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("BANYAN_DATA", str(tmp_path / "raw"))
    toys(tmp_path / "raw")
    sid, made, moved = (tmp_path / name for name in ("sid", "tiger", "elsewhere"))
    loop.train(tiny("sid", **TOYS), sid)
    loop.train(tiny("tiger", **TOYS, sid__run=str(sid)), made)
    printed = capsys.readouterr().out
    assert "successor" in printed and "neighbours in raw-name order" in printed
    page = (made / "report.html").read_text()
    for title in ("Side by side", "Recommendations", "Semantic IDs", "Codes in use", "Data card"):
        assert title in page, title
    assert "toy car" in page  # texts of items
    results = json.loads((made / "results.json").read_text())
    assert "item_knn/test/ndcg@5" in results["metrics"]
    saved = checkpoint.read(made)["artifacts"]
    kept = saved["sid"]
    assert kept["sha256"] == table.sha256(kept["table"], tuple(kept["sizes"]))

    shutil.move(made, moved)
    assert reopen.check(moved) == []
    shutil.rmtree(tmp_path / "raw")
    query = Query(f"{saved['items'][0]} {saved['items'][1]}")
    answer = rows_of(reopen.act(moved, "recommend", query))
    assert any("toy car" in row["title"] for row in answer)
    with pytest.raises(UserError, match="unknown item"):
        reopen.act(moved, "recommend", Query("B0"))
    with pytest.raises(UserError, match="other items"):
        assemble(tiny("tiger", sid__run=str(sid), **SMALL))
    with pytest.raises(UserError, match="not sid"):
        assemble(tiny("tiger", sid__run=str(moved), **SMALL))


def test_published_tables_follow_items_through_the_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row i of an index file is the i-th item of the whole corpus, whatever a k-core leaves."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    toys(tmp_path, users=44)
    from experiments.systems.rec import sid as system
    from experiments.systems.rec.recommenders import wiring

    changes = {"data__format": "amazon2014", "data__name": "toys", "data__root": str(tmp_path)}
    whole = wiring.load(tiny("tiger", **changes)).corpus.items
    index = {str(i): [f"<a_{i % 7}>", f"<b_{i // 7}>"] for i in range(len(whole))}
    path = tmp_path / "index.json"
    path.write_text(json.dumps(index))
    config = tiny("tiger", **changes, data__core=4, sid__table=str(path), sid__digit_limit=2)
    loaded = wiring.load(config)
    assert 0 < len(loaded.corpus.items) < len(whole)
    found = system.make_artifact(
        config, loaded, np.zeros((len(loaded.corpus.items), 2), np.float32)
    )
    for name, sid in zip(loaded.corpus.items, found["table"].tolist(), strict=True):
        number = whole.index(name)
        assert sid == [number % 7, number // 7, 0]
    config = tiny("tiger", **SMALL, sid__table=str(path))
    with pytest.raises(UserError, match="40 items"):
        assemble(config)


def test_a_folder_divided_by_time_wants_a_temporal_split(tmp_path: Path) -> None:
    """What the message says to type is what makes it run."""
    rows = {"train": "u,A1,1000\nv,A2,2000\n", "valid": "u,A3,5000\n", "test": "v,A1,8000\n"}
    for part, text in rows.items():
        (tmp_path / f"Baby.{part}.csv").write_text(f"user_id,parent_asin,timestamp\n{text}")
    texts = "".join(json.dumps({"parent_asin": f"A{i}", "title": "x"}) + "\n" for i in (1, 2, 3))
    (tmp_path / "meta_Baby.jsonl").write_text(texts)
    here = {"data__format": "reviews2023", "data__name": "Baby", "data__root": str(tmp_path)}
    with pytest.raises(UserError) as caught:
        wiring.load(tiny("sasrec", **here))
    flags = re.findall(r"--config\.data\.(\w+)=(\w+)", str(caught.value))
    typed = {f"data__{key}": int(v) if v.isdecimal() else v for key, v in flags}
    assert typed == {"data__split": "temporal", "data__valid_from": 5, "data__test_from": 8}
    assert len(wiring.load(tiny("sasrec", **here, **typed)).split.test.targets) == 1


@pytest.mark.deep
@pytest.mark.trains
def test_shuffled_sids_are_the_same_ones_elsewhere() -> None:
    kept = artifacts()["sid"]
    mixed = assemble(tiny("tiger", **SMALL, sid__shuffle=True)).artifacts["sid"]
    assert mixed["sha256"] != kept["sha256"]
    rows = [sorted(map(tuple, np.asarray(s["table"]).tolist())) for s in (kept, mixed)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("system", "changes", "words"),
    [
        ("sid", {"train__steps": 7}, "config.sid.steps=30"),
        ("sid", {"sid__method": "random"}, "--config.train.steps=0"),
        ("sid", {"sid__shuffle": True}, "systems that read SIDs"),
        ("tiger", {"sid__conflict": "psid_ecm", "sid__levels": 2}, "512 items do not fit 8\\^2"),
        ("tiger", {"num_seeds": 2}, "one seed per run"),
        ("tiger", {"sid__run": "no/such/run"}, "no checkpoints"),
        ("tiger", {"sid__table": "no/such/file.json"}, "config.sid.table"),
        ("tiger", {"data__features": "no/such.npy"}, "config.data.features"),
        ("tiger", {"data__core": 50}, "planted corpus is whole"),
        ("sasrec", {"data__split": "temporal", "data__test_from": 5}, "times"),
        ("sasrec", {"data__format": "amazon2014", "data__name": "none"}, "format=planted"),
    ],
)
def test_what_does_not_go_together_is_refused(
    system: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """Before anything is compiled or written, in words that say what to do."""
    changes = {"data__root": str(tmp_path), **changes}
    with pytest.raises(UserError, match=words):
        assemble(tiny(system, **changes))


@pytest.mark.parametrize(
    ("system", "changes", "words"),
    [
        ("tiger", {"augment__pairs": "all"}, "pairs"),
        ("tiger", {"augment__search": True}, "genpas"),
        ("tiger", {"eval__beams": 5}, "beams"),
        ("tiger", {"eval__policy": "best"}, "policy"),
        ("tiger", {"eval__constrained": False, "eval__normaliser": "children"}, "constrained"),
        ("tiger", {"model__softmax": "none"}, "softmax"),
        ("sasrec", {"model__loss": "hinge"}, "loss"),
        ("sasrec", {"model__heads": 3}, "heads"),
        ("sasrec", {"model__smoothing": 1.0}, "smoothing"),
        ("sasrec", {"model__loss": "bce", "model__smoothing": 0.1}, "of loss='full'"),
        ("sasrec", {"model__dropout_sites": "none"}, "dropout_sites"),
        ("sasrec", {"augment__pairs": "stream"}, "pairs"),
        ("sasrec", {"optim__schedule": "step"}, "schedule"),
        ("sid", {"sid__method": "umap"}, "method"),
        ("rec_baselines", {"data__format": "csv"}, "format"),
        ("sasrec", {"data__interactions": "mine.csv"}, "add --config.data.format=own"),
        ("rec_baselines", {"data__format": "own"}, "config.data.interactions=FILE"),
    ],
)
def test_bad_values_are_named(system: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((UserError, ValueError), match=words):
        tiny(system, **changes)


@pytest.mark.deep
def test_relevance_and_search_are_artifacts() -> None:
    """Exponents chosen before training, vectors for ranking inside buckets: both are kept."""
    config = tiny(
        "tiger",
        **SMALL,
        augment__pairs="genpas",
        augment__search=True,
        eval__policy="relevance",
        eval__per_sid=2,
        sid__conflict="none",
    )
    asm = assemble(config)
    found = asm.artifacts["search"]
    assert len(found) == 13 and asm.artifacts["exponents"] == found[0][:3]
    ratios = [row[4] for row in found]
    assert ratios == sorted(ratios, reverse=True)
    assert asm.artifacts["features"].shape[0] == 512
    state = initial_state(asm)
    evaluated = asm.experiment.evaluate(state, "valid")
    assert 0 <= evaluated["valid/recall@10"] <= 1
    query = Query(asm.artifacts["items"][0])
    assert len(rows_of(asm.experiment.actions["recommend"](state, query))) == 10

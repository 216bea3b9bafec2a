# SPDX-License-Identifier: Apache-2.0
"""What all recommenders share: the corpus and its split, the rows without training that every
learned one stands beside, how a ranking is judged, and --mode=recommend.

The interactions are no artifact: they are read again through the data root and their SHA-256, which
is one, is compared. Names and texts of items are artifacts, so that a run folder can recommend.
"""

import functools
import json
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.runner import data
from experiments.runner.errors import UserError
from experiments.runner.queries import lookup
from rec import augment, metrics, text
from rec.baselines import evaluation as baselines
from rec.baselines import reachability, scorers
from rec.data import cards, embeddings, own, planted, reading
from rec.data import sequences as seq
from rec.data.events import Policy
from rec.data.sequences import Corpus, Queries, Split

KS = (5, 10)
SELECTABLE = tuple(f"valid/{name}@{k}" for name in ("recall", "ndcg") for k in KS)
TEXT_WIDTH = 90
NO_FILES = "  without files: the variant :tiny, or --config.data.format=planted"


class Loaded(NamedTuple):
    """law: float64 [N, N] next-item distribution of a planted corpus, else None; all_texts: of the
    items before the k-core; kept: int [N] those of them that are in the corpus."""

    corpus: Corpus
    split: Split
    law: np.ndarray | None
    all_texts: list[str]
    kept: np.ndarray


def load(config: ConfigDict) -> Loaded:
    """Corpus and split of config.data.

    Raises:
        UserError: missing or malformed files, unknown names, a split that has an empty side.
    """
    return _load(json.dumps(config.data.to_dict(), sort_keys=True), config.seed)


@functools.lru_cache(maxsize=4)
def _load(values: str, seed: int) -> Loaded:
    group, law = ConfigDict(json.loads(values)), None
    try:
        if group.format == "planted":
            made = planted.planted(seed, users=group.users)
            corpus, law = made.corpus, made.law
            if group.core:
                raise ValueError("core: a planted corpus is whole, give 0")
        else:
            corpus = _read(group, seed)
        whole = {name: i for i, name in enumerate(corpus.items)}
        all_texts = corpus.texts
        if group.core:
            corpus = seq.kcore(corpus, group.core)
        if group.split == "temporal":
            split = seq.temporal(corpus.sequences, group.valid_from, group.test_from)
        else:
            split = seq.leave_one_out(corpus.sequences)
    except data.DataError as error:
        raise UserError(f"{error}\n{NO_FILES}") from error
    except (ValueError, OSError) as error:
        missing = "missing" in str(error) or isinstance(error, FileNotFoundError)
        raise UserError(f"config.data: {error}" + (f"\n{NO_FILES}" if missing else "")) from error
    return Loaded(corpus, split, law, all_texts, np.array([whole[name] for name in corpus.items]))


def _read(group: ConfigDict, seed: int) -> Corpus:
    policy = Policy(group.ties, seed, group.repeats, group.textless)
    root = data.root(group.root)
    if group.format == "own":
        paths = [Path(p).expanduser() for p in (group.interactions, group.item_text)]
        events, texts = (p if p.is_file() else root / p for p in paths)
        return own.read(events, texts, policy=policy)
    known = f"{group.format}/{group.name}" if group.format == "amazon2014" else group.name
    if known in data.declared():
        data.fingerprints(known, group.root)  # verified where it is a dataset that is known
    return reading.read(group.format, group.name, root, policy)


def features(config: ConfigDict, loaded: Loaded) -> np.ndarray:
    """float32 [N, d] item vectors: of a file, or TF-IDF and SVD of the texts, out of the cache.

    Either way of all items there are before the k-core, whose rows are then taken.

    Raises:
        UserError: a file that does not fit.
    """
    group = config.data
    if group.features != "tfidf":
        try:
            path = Path(group.features).expanduser()
            return embeddings.load(path, len(loaded.all_texts))[loaded.kept]
        except (ValueError, OSError) as error:
            raise UserError(f"config.data.features={group.features}: {error}") from error
    key = [cards.texts_sha256(loaded.all_texts), group.feature_dim]
    make = lambda: {"x": text.encode(loaded.all_texts, group.feature_dim)}
    return data.packed("tfidf", key, make)["x"][loaded.kept]


def prepare(config: ConfigDict, loaded: Loaded, vectors: np.ndarray) -> dict[str, Any]:
    """Artifacts of any recommender: items, data card, and the rows without training."""
    corpus, split, law = loaded.corpus, loaded.split, loaded.law
    card = cards.card(corpus, split)
    found = baselines.evaluate(split, vectors, KS, "test")
    rows = found.metrics
    if law is not None:
        rows = rows | metrics.summarise(planted.bayes_ranks(law, split.test), KS, "bayes/test/")
    print(
        f"{card['name']}: {card['users']:,} users, {card['items']:,} items, "
        f"{card['interactions']:,} interactions; neighbours in raw-name order "
        f"{card['ascending_pairs']:.3f}, validation to test {card['ascending_valid_test']:.3f}"
    )
    for name in (*baselines.NAMES, *(["bayes"] if law is not None else [])):
        cells = " ".join(f"{m} {rows[f'{name}/test/{m}']:.4f}" for m in ("recall@10", "ndcg@10"))
        print(f"  {name:<12} test: {cells}")
    return {
        "items": corpus.items,
        "texts": corpus.texts,
        "card": card,
        "rows": rows,
        "ranks": found.ranks,
        "plus": found.plus,
        "popularity": scorers.counts(split.train),
    }


def lazily(config: ConfigDict, artifacts: Mapping[str, Any]) -> Callable[[], Loaded]:
    """The corpus a run began with, read when it is first needed: recommending needs none.

    Raises (when called):
        UserError: other interactions than those.
    """

    @functools.cache
    def loaded() -> Loaded:
        found = load(config)
        sha256 = cards.sequences_sha256(found.corpus.sequences)
        expected = artifacts["card"]["sha256_sequences"]
        if sha256 != expected:
            raise UserError(
                f"config.data.name={config.data.name}: not the interactions this run began with: "
                f"SHA-256 {sha256}, expected {expected}"
            )
        return found

    return loaded


def exponents_of(pairs: Any) -> augment.Exponents:
    """Exponents of one of the named strategies, or those of the config."""
    fixed = {
        "last_target": augment.LAST_TARGET,
        "prefixes": augment.PREFIXES,
        "windows": augment.WINDOWS,
    }
    return fixed.get(pairs.pairs, augment.Exponents(pairs.alpha, pairs.beta, pairs.gamma))


def pair_batch(tables: augment.Tables, rows: int) -> dict[str, np.ndarray]:
    """What the device draws pairs from: the tables, row numbers, and an array as long as the
    longest user, for its static shape. The same objects at every step, so sent once."""
    longest = np.zeros(int(np.asarray(tables.lengths).max()), np.int8)
    own = {name: np.asarray(value) for name, value in tables._asdict().items()}
    return {"row": np.arange(rows, dtype=np.int32), "longest": longest, **own}


def rows_of(batch: dict[str, np.ndarray], rows: tuple[int, int] | None) -> dict[str, np.ndarray]:
    """The batch, or a host's part of its rows."""
    return batch if rows is None else {**batch, "row": batch["row"][rows[0] : rows[1]]}


def queries_of(split: Split, side: str, rows: int) -> Queries:
    """Queries of one side; on valid at most `rows` of them, evenly spaced (0: all)."""
    if side == "test" or not rows or rows >= len(split.valid.targets):
        return split.test if side == "test" else split.valid
    at = np.linspace(0, len(split.valid.targets) - 1, rows).astype(np.int64)
    found = split.valid
    return Queries(found.users[at], seq.select(found.history, at), found.targets[at])


def judge(
    side: str,
    queries: Queries,
    ranks: np.ndarray,
    items: np.ndarray,
    artifacts: Mapping[str, Any],
    split: Split,
    draws: int,
) -> dict[str, Any]:
    """Metrics of one ranking with the history masked; at the test also its uncertainty, groups of
    users, and the rows of the baselines with the paired difference to each.

    Args:
        ranks: int [Q] places of the targets, from 0; items: int [Q, K] lists, -1 for none.
        draws: of the bootstrap over users.
    """
    out = metrics.summarise(ranks, KS, f"{side}/")
    out[f"{side}/coverage@10"] = metrics.coverage(items[:, :10], queries.history.num_items)
    if side != "test":
        return out
    out |= artifacts["rows"]
    plus = np.asarray(artifacts["plus"], bool)
    groups = reachability.groups(plus) | metrics.bucket_groups(
        np.asarray(artifacts["popularity"]), queries.targets
    )
    out |= metrics.by_group(ranks, groups, KS, "test/")
    near = reachability.candidates(split.train, queries)
    out["test/one_hop@10"] = reachability.one_hop_ratio(items[:, :10], near)
    hits = metrics.recall(ranks, 10)
    low, high = metrics.bootstrap(hits, draws=draws)
    out |= {"test/recall@10/low": low, "test/recall@10/high": high}
    for name, other in artifacts["ranks"].items():
        theirs = metrics.recall(np.asarray(other), 10)
        low, high = metrics.paired_bootstrap(hits, theirs, draws=draws)
        key = f"test/recall@10/minus_{name}"
        out |= {key: float((hits - theirs).mean()), f"{key}/low": low, f"{key}/high": high}
    return out


# ------------------------------------------------------------------------------------- recommend


class Answer(NamedTuple):
    """items: int [K], best first, -1 for none; scores: float [K]."""

    items: np.ndarray
    scores: np.ndarray


def make_recommend(
    artifacts: Mapping[str, Any], top: int, max_items: int, answer: Callable[[Any, Any], Answer]
) -> Callable[[Mapping[str, Any], str], str]:
    """--mode=recommend --query="item item item", one history per line, oldest item first.

    Args:
        answer: (state, int32 [T] history) -> Answer, items of the history left out.
    """
    items, texts = artifacts["items"], artifacts["texts"]
    number = {name: i for i, name in enumerate(items)}

    def recommend(state: Mapping[str, Any], query: str) -> str:
        lines = [line.split() for line in query.splitlines() if line.strip()]
        if not lines:
            raise UserError('--query="": give items of a history, oldest first, or @FILE')
        histories = [[lookup(name, number, "item") for name in line] for line in lines]
        out = []
        for names, history in zip(lines, histories, strict=True):
            note = ""
            if len(history) > max_items:
                note = f" (the newest {max_items} are read)"
            out.append(f"after {' '.join(names)}{note}:")
            found = answer(state, np.asarray(history[-max_items:], np.int32))
            for place, (item, score) in enumerate(
                zip(found.items[:top], found.scores[:top], strict=True), 1
            ):
                if item >= 0:
                    out.append(f"{place:>3}  {score:8.4f}  {items[item]}  {short(texts[item])}")
        return "\n".join(out)

    return recommend


def short(words: str) -> str:
    """The beginning of a text, on one line."""
    return textwrap.shorten(words, TEXT_WIDTH, placeholder=" ...")


def leave_out(items: np.ndarray, scores: np.ndarray, history: np.ndarray) -> Answer:
    """An answer without the items of the history."""
    keep = ~np.isin(items, history) & (items >= 0)
    return Answer(items[keep], scores[keep])


def make_lists(
    loaded: Callable[[], Loaded], answer: Callable[[Any, np.ndarray], Answer]
) -> Callable[[Mapping[str, Any]], list[tuple[np.ndarray, int, np.ndarray]]]:
    """state -> (history, target, recommended items) of three test users, evenly spaced."""

    def lists(state: Mapping[str, Any]) -> list[tuple[np.ndarray, int, np.ndarray]]:
        queries, out = loaded().split.test, []
        for row in np.linspace(0, len(queries.targets) - 1, 3).astype(int).tolist():
            history = queries.history.of(row)
            out.append((history, int(queries.targets[row]), answer(state, history).items))
        return out

    return lists

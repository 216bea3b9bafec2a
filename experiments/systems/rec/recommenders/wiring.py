# SPDX-License-Identifier: Apache-2.0
"""What all recommenders share: the corpus and its split, the rows without training that every
learned one stands beside, and the metrics of a ranking.

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
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from experiments.runner import data, inputs
from experiments.runner.errors import UserError
from rec import augment, metrics, text
from rec.baselines import evaluation as baselines
from rec.baselines import reachability, scorers
from rec.data import cards, columns, embeddings, own, planted, reading
from rec.data import sequences as seq
from rec.data.events import Policy
from rec.data.sequences import Corpus, Queries, Split

KS = (5, 10)
SELECTABLE = tuple(f"valid/{name}@{k}" for name in ("recall", "ndcg") for k in KS)
TEXT_WIDTH = 90
SAMPLED = 100  # negatives of one metric
# Of a batch that rows are drawn from: the training sequences are on every device.
PAIR_RULES = ((r"batch/row", P("data")), (r"batch/.*", P()))


class Loaded(NamedTuple):
    """Holds a corpus and its split, read once."""

    corpus: Corpus
    split: Split
    law: np.ndarray | None
    """float64 [N, N] next-item distribution of a planted corpus, else None."""
    all_texts: list[str]
    """Texts of the items before the k-core."""
    in_core: np.ndarray
    """int [N], those of them that are in the corpus."""


def load(config: ConfigDict) -> Loaded:
    """Reads corpus and split of config.data.

    Raises:
        UserError: missing or malformed files, unknown names, a split that has an empty side.
    """
    return _load(json.dumps(config.data.to_dict(), sort_keys=True), config.seed)


@functools.lru_cache(maxsize=4)
def _load(values: str, seed: int) -> Loaded:
    group = ConfigDict(json.loads(values))
    law = None
    with inputs.explain_failures():
        if group.format == "planted":
            made_up = planted.planted(seed, users=group.users)
            corpus = made_up.corpus
            law = made_up.law
            if group.core:
                raise ValueError("core: a planted corpus is whole, give 0")
        else:
            corpus = _read(group, seed)
        number = {name: i for i, name in enumerate(corpus.items)}
        all_texts = corpus.texts
        if group.core:
            corpus = seq.kcore(corpus, group.core)
        if group.split == "temporal":
            split = seq.temporal(corpus.sequences, group.valid_from, group.test_from)
        else:
            split = seq.leave_one_out(corpus.sequences)
    in_core = np.array([number[name] for name in corpus.items])
    return Loaded(corpus, split, law, all_texts, in_core)


def _read(group: ConfigDict, seed: int) -> Corpus:
    dated_parts = "read" if group.split == "temporal" else "refuse"
    policy = Policy(group.ties, seed, group.repeats, group.textless, dated_parts)
    root = data.root(group.root)
    if group.format == "own":
        events = _own_path(group.interactions, root)
        texts = _own_path(group.item_text, root) if group.item_text else None
        return own.read(events, texts, policy, columns.parse(group.columns))
    dataset = f"{group.format}/{group.name}" if group.format == "amazon2014" else group.name
    if dataset in data.declared():
        data.fingerprints(dataset, group.root)  # a dataset with declared hashes is verified
    return reading.read(group.format, group.name, root, policy)


def _own_path(name: str, root: Path) -> Path:
    """A file of the user's, from where they stand or below the data root."""
    path = Path(name).expanduser()
    return path if path.is_file() or path.is_absolute() else root / data.inside(str(path))


def has_text(config: ConfigDict) -> bool:
    """Whether items have vectors to be compared by: own data without a table of texts, and without
    a file of vectors, has none."""
    group = config.data
    return group.format != "own" or bool(group.item_text) or group.features != "tfidf"


def load_features_if_any(config: ConfigDict, loaded: Loaded) -> np.ndarray | None:
    """Reads item vectors float32 [N, d]; None where there is no text, which only the row "content"
    needs."""
    return load_features(config, loaded) if has_text(config) else None


def load_features(config: ConfigDict, loaded: Loaded) -> np.ndarray:
    """Reads item vectors float32 [N, d] from a file, or TF-IDF and SVD of the texts from the
    cache.

    Either way of all items there are before the k-core, whose rows are then taken.

    Raises:
        UserError: a file that does not fit.
    """
    group = config.data
    if not has_text(config):
        raise UserError(
            f"{config.system} reads the texts of items: give --config.data.item_text=FILE (columns "
            "item and text), or vectors, --config.data.features=FILE.npy"
        )
    if group.features != "tfidf":
        try:
            path = Path(group.features).expanduser()
            return embeddings.load(path, len(loaded.all_texts))[loaded.in_core]
        except (ValueError, OSError) as error:
            raise UserError(f"config.data.features={group.features}: {error}") from error
    key = [cards.texts_sha256(loaded.all_texts), group.feature_dim]
    encode = lambda: {"x": text.encode(loaded.all_texts, group.feature_dim)}
    return data.packed("tfidf", key, encode)["x"][loaded.in_core]


def prepare(loaded: Loaded, vectors: np.ndarray | None) -> dict[str, Any]:
    """Makes the artifacts of any recommender: items, data card, and the rows without training.

    Args:
        vectors: of the items, None where there is no text: the row "content" is then left out.
    """
    corpus = loaded.corpus
    split = loaded.split
    card = cards.card(corpus, split)
    baseline = baselines.evaluate(split, vectors, KS, "test")
    rows = baseline.metrics
    names = tuple(baseline.ranks)
    if loaded.law is not None:
        ranks = planted.bayes_ranks(loaded.law, split.test)
        rows = rows | metrics.summarize(ranks, KS, "bayes/test/")
        names = (*names, "bayes")
    print(
        f"{card['name']}: {card['users']:,} users, {card['items']:,} items, "
        f"{card['interactions']:,} interactions; neighbours in raw-name order "
        f"{card['ascending_pairs']:.3f}, validation to test {card['ascending_valid_test']:.3f}"
    )
    for name in names:
        cells = " ".join(f"{m} {rows[f'{name}/test/{m}']:.4f}" for m in ("recall@10", "ndcg@10"))
        print(f"  {name:<12} test: {cells}")
    if vectors is None:
        print("  content      test: not measured: no text")
    return {
        "items": corpus.items,
        "texts": corpus.texts,
        "card": card,
        "rows": rows,
        "ranks": baseline.ranks,
        "plus": baseline.plus,
        "popularity": scorers.counts(split.train),
    }


def load_lazily(config: ConfigDict, artifacts: Mapping[str, Any]) -> Callable[[], Loaded]:
    """Returns a function that reads the corpus a run began with when it is first needed:
    recommending needs none.

    Raises (when called):
        UserError: other interactions than those.
    """
    return inputs.read_once(
        lambda: load(config),
        lambda loaded: cards.sequences_sha256(loaded.corpus.sequences),
        config,
        "interactions",
        artifacts["card"]["sha256_sequences"],
    )


def choose_exponents(pairs: Any) -> augment.Exponents:
    """Returns the exponents of one of the named strategies, or those of the config."""
    fixed = {
        "last_target": augment.LAST_TARGET,
        "prefixes": augment.PREFIXES,
        "windows": augment.WINDOWS,
    }
    return fixed.get(pairs.pairs, augment.Exponents(pairs.alpha, pairs.beta, pairs.gamma))


def make_pair_batch(tables: augment.Tables, rows: int) -> dict[str, np.ndarray]:
    """Makes what the device draws pairs from: the tables, row numbers, and an array as long as the
    longest user, for its static shape. The same objects at every step, so sent once."""
    longest = np.zeros(int(np.asarray(tables.lengths).max()), np.int8)
    leaves = {name: np.asarray(value) for name, value in tables._asdict().items()}
    return {"row": np.arange(rows, dtype=np.int32), "longest": longest, **leaves}


def take_rows(batch: dict[str, np.ndarray], rows: tuple[int, int] | None) -> dict[str, np.ndarray]:
    """Returns the batch, or a host's part of its rows."""
    return batch if rows is None else {**batch, "row": batch["row"][rows[0] : rows[1]]}


def select_queries(split: Split, side: str, rows: int) -> Queries:
    """Selects the queries of one side; on valid at most `rows` of them, evenly spaced (0: all)."""
    if side == "test":
        return split.test
    queries = split.valid
    count = len(queries.targets)
    if not rows or rows >= count:
        return queries
    index = np.linspace(0, count - 1, rows).astype(np.int64)
    return Queries(queries.users[index], seq.select(queries.history, index), queries.targets[index])


class Ranking(NamedTuple):
    """Holds what a recommender answers to Q queries, items of the history left out."""

    queries: Queries
    ranks: np.ndarray
    """int [Q], places of the targets, from 0."""
    items: np.ndarray
    """int [Q, K], lists, -1 for no item."""


def evaluate_ranking(
    side: str, ranking: Ranking, artifacts: Mapping[str, Any], split: Split, draws: int
) -> dict[str, Any]:
    """Computes the metrics of a ranking; at the test also its uncertainty, groups of users, and the
    rows without training with the paired difference to each.

    Args:
        draws: of the bootstrap over users.
    """
    queries = ranking.queries
    ranks = ranking.ranks
    first_ten = ranking.items[:, :10]
    out = metrics.summarize(ranks, KS, f"{side}/")
    out[f"{side}/coverage@10"] = metrics.coverage(first_ten, queries.history.num_items)
    if side != "test":
        return out
    out |= artifacts["rows"]
    groups = reachability.groups(np.asarray(artifacts["plus"], bool))
    groups |= metrics.bucket_groups(np.asarray(artifacts["popularity"]), queries.targets)
    out |= metrics.by_group(ranks, groups, KS, "test/")
    one_hop = reachability.candidates(split.train, queries)
    out["test/one_hop@10"] = reachability.one_hop_ratio(first_ten, one_hop)
    hits = metrics.recall(ranks, 10)
    low, high = metrics.bootstrap(hits, draws=draws)
    out |= {"test/recall@10/low": low, "test/recall@10/high": high}
    for name, baseline_ranks in artifacts["ranks"].items():
        baseline_hits = metrics.recall(np.asarray(baseline_ranks), 10)
        low, high = metrics.paired_bootstrap(hits, baseline_hits, draws=draws)
        key = f"test/recall@10/minus_{name}"
        out |= {key: float((hits - baseline_hits).mean()), f"{key}/low": low, f"{key}/high": high}
    return out


# ------------------------------------------------------------------------------------- answers


class Answer(NamedTuple):
    """Holds recommended items, best first; of several queries in rows [Q, K]."""

    items: np.ndarray
    """int [K], -1 for no item."""
    scores: np.ndarray
    """float [K]."""


def summarize_sampled(scores: np.ndarray, queries: Queries) -> dict[str, float]:
    """Computes the metrics against 100 sampled negatives; {} where a user has seen so much of a
    small catalogue that fewer are left."""
    left = queries.history.num_items - int(queries.history.lengths.max()) - 1
    if left < SAMPLED:
        return {}
    ranks = metrics.uniform_ranks(scores, queries.targets, queries.history)
    return metrics.summarize(ranks, KS, "test/", f"/uni{SAMPLED}")


def shorten(words: str) -> str:
    """Returns the beginning of a text, on one line."""
    return textwrap.shorten(words, TEXT_WIDTH, placeholder=" ...")


def drop_history(items: np.ndarray, scores: np.ndarray, history: np.ndarray) -> Answer:
    """Makes an answer without the items of the history."""
    is_new = ~np.isin(items, history) & (items >= 0)
    return Answer(items[is_new], scores[is_new])


def make_lists(
    loaded: Callable[[], Loaded], answer: Callable[[Any, np.ndarray], Answer]
) -> Callable[[Mapping[str, Any]], list[tuple[np.ndarray, int, np.ndarray]]]:
    """Makes state -> (history, target, recommended items) of three test users, evenly spaced."""

    def lists(state: Mapping[str, Any]) -> list[tuple[np.ndarray, int, np.ndarray]]:
        queries = loaded().split.test
        out = []
        for row in np.linspace(0, len(queries.targets) - 1, 3).astype(int).tolist():
            history = queries.history.of(row)
            out.append((history, int(queries.targets[row]), answer(state, history).items))
        return out

    return lists

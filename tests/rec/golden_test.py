# SPDX-License-Identifier: Apache-2.0
"""The real files: counts, hashes, joins and baselines that others have measured before."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from experiments.runner import data as raw_data
from rec import metrics, text
from rec.baselines import evaluation, reachability, scorers
from rec.data import FILES, amazon2014, amazon2018, cards, letter, reading
from rec.data.events import Policy
from rec.data.sequences import Corpus, Split, kcore, leave_one_out, newest, take
from rec.data.sid_files import read_sids
from tests.tiers import deep

pytestmark = pytest.mark.data
BOTH = pytest.mark.parametrize("name", ["beauty", deep("sports")])


@cache
def corpus_of(name: str, root: Path, core: int = 0) -> Corpus:
    corpus = amazon2014.read(name, root)
    return kcore(corpus, core) if core else corpus


@cache
def split_of(name: str, root: Path, core: int = 0) -> Split:
    return leave_one_out(corpus_of(name, root, core).sequences)


@cache
def evaluated(name: str, root: Path, core: int = 0) -> evaluation.Evaluation:
    features = text.encode(corpus_of(name, root).texts)
    if core:  # the vectors of the whole catalogue, as in the reference
        row = {item: at for at, item in enumerate(corpus_of(name, root).items)}
        features = features[[row[item] for item in corpus_of(name, root, core).items]]
    return evaluation.evaluate(split_of(name, root, core), features)


# Users, items, interactions, mean length, prefix pairs, windows, unseen test items, ascending
# pairs, ascending pairs from validation to test item.
CARDS = {
    "beauty": (22_363, 12_101, 198_502, 8.876, 131_413, 1_197_012, 138, 0.694, 0.712),
    "sports": (35_598, 18_357, 296_337, 8.325, 189_543, 1_255_069, 317, 0.690, 0.706),
}
HASHES = {  # of sequences and texts as we pack them: a change of either is a change of the data
    "beauty": ("e08a85bbe041", "c0cd7cbd5c90"),
    "sports": ("f1c95c5dbe0d", "156149555df9"),
}


@BOTH
def test_card(name: str, data_root: Path) -> None:
    found = cards.card(corpus_of(name, data_root), split_of(name, data_root))
    keys = ("users", "items", "interactions", "length_mean", "prefix_pairs", "windows",
            "test_unseen_in_train", "ascending_pairs", "ascending_valid_test")  # fmt: skip
    for key, expected in zip(keys, CARDS[name], strict=True):
        assert found[key] == pytest.approx(expected, abs=5e-4), key
    assert (found["length_min"], found["length_median"], found["repeats"]) == (5, 6, 0)
    assert not found["has_times"]
    sequences, texts = found["sha256_sequences"], found["sha256_texts"]
    assert isinstance(sequences, str) and isinstance(texts, str)
    assert (sequences[:12], texts[:12]) == HASHES[name]


SHAS = {  # the first 12 digits of the files as their repositories hold them
    "amazon2014/beauty/user_sequence.txt.gz": "47197cbee7bd",
    "amazon2014/sports/user_sequence.txt.gz": "240fd0484501",
    "amazon2014/beauty/item_keyword_path.txt.gz": "2bfa6792146c",
    "amazon2014/sports/item_keyword_path.txt.gz": "fc5a8e6787df",
    "amazon2014/beauty/item_text_tag.txt.gz": "1a90f934fe50",
    "amazon2014/sports/item_text_tag.txt.gz": "710b6d9b661a",
    "amazon2014/beauty/sequences_int.txt.gz": "226cce9c3105",
    "amazon2014/sports/sequences_int.txt.gz": "2a095e064887",
    "amazon2014/beauty/item_attributes.json.gz": "129e40f67486",
    "letter/Beauty.index.json.gz": "be3fb890e59b",
    "letter/Beauty.inter.json.gz": "8809584b8b78",
    "amazon2018_text/Industrial_and_Scientific.item.json.gz": "937600c7a036",
    "amazon2018_text/Industrial_and_Scientific.index.json.gz": "53f1aefbe8b8",
    "ml-100k/ml-100k.inter.gz": "4edb74e2a811",
    "ml-100k/ml-100k.item.gz": "51d7cdf777ce",
    "ml-100k/ml-100k.user.gz": "4f670007d9cf",
}


def test_files_are_the_published_ones(data_root: Path) -> None:
    for path, sha in SHAS.items():
        assert FILES[path][0].startswith(sha), path
    for name in ("amazon2014/beauty", "amazon2014/sports", "letter", "ml-100k", "amazon2018_text"):
        found = raw_data.fingerprints(name, data_root)
        assert found == {path: FILES[path][0] for path in found}
        assert raw_data.locate(name, data_root) == data_root / name


@BOTH
def test_sources_agree(name: str, data_root: Path) -> None:
    """S3-Rec numbers items by first appearance from 1, and holds the same rows."""
    corpus = corpus_of(name, data_root)
    join = amazon2014.renumbering(corpus.sequences, amazon2014.integer_rows(name, data_root))
    np.testing.assert_array_equal(join, np.arange(len(corpus.items)))
    attributes = amazon2014.attributes(name, data_root, corpus)
    distinct, mean = {"beauty": (637, 3.7), "sports": (2277, 6.0)}[name]
    assert len({a for row in attributes for a in row}) == distinct
    assert np.mean([len(row) for row in attributes]) == pytest.approx(mean, abs=0.05)


def test_letter_agrees_with_beauty(data_root: Path) -> None:
    ours = reading.read("letter", "Beauty", data_root)
    join = amazon2014.renumbering(ours.sequences, corpus_of("beauty", data_root).sequences)
    np.testing.assert_array_equal(join, np.arange(12_101))
    sids = letter.sids("Beauty", data_root, ours)
    assert sids.shape == (12_101, 4) and len(np.unique(sids, axis=0)) == 12_088
    assert 0 <= sids.min() and sids.max() < 256
    assert len(np.unique(sids[:, 0])) / 256 == pytest.approx(0.77, abs=0.005)


def test_letter_instruments(data_root: Path) -> None:
    corpus = reading.read("letter", "Instruments", data_root)
    sequences = corpus.sequences
    assert (sequences.num_users, sequences.num_items) == (24_772, 9_922)
    assert len(sequences.items) == 206_153
    assert len(np.unique(letter.sids("Instruments", data_root, corpus), axis=0)) == 9_897


def test_amazon2018_texts(data_root: Path) -> None:
    texts = amazon2018.texts("Industrial_and_Scientific", data_root)
    sids = amazon2018.sids("Industrial_and_Scientific", data_root)
    assert len(texts) == len(sids) == 3_686 and len(np.unique(sids, axis=0)) == 3_670
    assert texts[0].startswith("Title: SUPCO SPP6") and "Brand: Sealed Unit Parts" in texts[0]
    path = data_root / "letter" / "Beauty.index.json.gz"
    assert len(read_sids(path)) == 12_101


CORES = {"beauty": (1_766, 803, 32_963, 27_665), "sports": (3_283, 2_120, 39_837, 29_988)}


@BOTH
def test_eight_core(name: str, data_root: Path) -> None:
    corpus = corpus_of(name, data_root, 8)
    found = cards.card(corpus, split_of(name, data_root, 8))
    keys = ("users", "items", "interactions", "prefix_pairs")
    assert tuple(found[key] for key in keys) == CORES[name]
    assert min(found["length_min"], np.bincount(corpus.sequences.items).min()) == 8


# Recall@5, NDCG@5, recall@10, NDCG@10.
GOLDEN = {
    "beauty": {
        "popularity": (0.0075, 0.0041, 0.0115, 0.0055),
        "successor": (0.0513, 0.0389, 0.0668, 0.0439),
        "item_knn": (0.0465, 0.0335, 0.0648, 0.0395),
        "content": (0.0352, 0.0230, 0.0522, 0.0285),
        "cooccurrence": (0.0560, 0.0415, 0.0770, 0.0483),
    },
    "sports": {
        "popularity": (0.0057, 0.0041, 0.0091, 0.0052),
        "successor": (0.0285, 0.0207, 0.0369, 0.0234),
        "item_knn": (0.0244, 0.0176, 0.0335, 0.0205),
        "content": (0.0164, 0.0103, 0.0265, 0.0135),
        "cooccurrence": (0.0287, 0.0209, 0.0407, 0.0248),
    },
}
WITHIN = {"content": 0.003}  # the SVD is randomised; everything else is counted


@pytest.mark.deep
@BOTH
def test_baselines(name: str, data_root: Path) -> None:
    found = evaluated(name, data_root).metrics
    for baseline, values in GOLDEN[name].items():
        for metric, value in zip(
            ("recall@5", "ndcg@5", "recall@10", "ndcg@10"), values, strict=True
        ):
            key = f"{baseline}/test/{metric}"
            assert found[key] == pytest.approx(value, abs=WITHIN.get(baseline, 0.0003)), key
    # The published TIGER (recall@5, NDCG@10) stands below counting successors.
    tiger = {"beauty": (0.0454, 0.0384), "sports": (0.0264, 0.0225)}[name]
    assert found["successor/test/recall@5"] > tiger[0]
    assert found["successor/test/ndcg@10"] > tiger[1]


@pytest.mark.deep
@BOTH
def test_counting_beats_content_outside_chance(name: str, data_root: Path) -> None:
    found = evaluated(name, data_root).ranks
    one, other = (metrics.recall(found[k], 10) for k in ("cooccurrence", "content"))
    assert metrics.paired_bootstrap(one, other, draws=200).low > 0.005


# Recall@10, NDCG@10 on the 8-core.
GOLDEN_8 = {
    "beauty": {
        "popularity": (0.0181, 0.0078),
        "successor": (0.2305, 0.1585),
        "content": (0.1223, 0.0676),
    },
    "sports": {
        "popularity": (0.0277, 0.0144),
        "successor": (0.0698, 0.0444),
        "content": (0.0557, 0.0298),
    },
}


@BOTH
def test_baselines_on_the_eight_core(name: str, data_root: Path) -> None:
    found = evaluated(name, data_root, 8).metrics
    for baseline, (recall, ndcg) in GOLDEN_8[name].items():
        within = WITHIN.get(baseline, 0.0003)
        assert found[f"{baseline}/test/recall@10"] == pytest.approx(recall, abs=within), baseline
        assert found[f"{baseline}/test/ndcg@10"] == pytest.approx(ndcg, abs=within), baseline


@pytest.mark.deep
def test_movielens(data_root: Path) -> None:
    corpus = kcore(reading.read("movielens", "ml-100k", data_root, Policy(ties="item")), 5)
    sequences = corpus.sequences
    assert (sequences.num_users, sequences.num_items) == (943, 1_349)
    assert len(sequences.items) == 99_287 and len(sequences.times) == 99_287
    for user in range(943):
        row = sequences.times[sequences.offsets[user] : sequences.offsets[user + 1]]
        assert (np.diff(row) >= 0).all()
    assert corpus.texts[corpus.items.index("1")].startswith("Title: Toy Story; Year: 1995")
    found = evaluation.evaluate(leave_one_out(sequences)).metrics
    for baseline, recall, ndcg in (("popularity", 0.0657, 0.0331), ("successor", 0.1548, 0.0866)):
        assert found[f"{baseline}/test/recall@10"] == pytest.approx(recall, abs=0.0003)
        assert found[f"{baseline}/test/ndcg@10"] == pytest.approx(ndcg, abs=0.0003)


# Share of U+ (top 50), uncapped, reached by the window of 5, by the window alone, train bigrams.
REACH = {
    "beauty": (0.1134, 0.1840, 0.1276, 0.0393, 111_995),
    "sports": (0.0774, 0.1407, 0.0931, 0.0374, 180_610),
}


@BOTH
def test_reachability(name: str, data_root: Path) -> None:
    """Beauty was measured on rows cut to their newest 50, and its window against one hop on the
    newest 20 items of the history."""
    sequences = corpus_of(name, data_root).sequences
    if name == "beauty":
        sequences = take(sequences, np.maximum(sequences.lengths - 50, 0), sequences.lengths)
        assert len(sequences.items) == 194_687
    split = leave_one_out(sequences)
    short, queries = split.test.history, split.test
    if name == "beauty":
        short = take(short, np.maximum(short.lengths - 20, 0), short.lengths)
        assert newest(short, 20)[1].sum() == len(short.items)
    near = scorers.neighbors(split.train)
    plus = reachability.reachable(split.train, queries)
    hop = reachability.reachable(split.train, queries._replace(history=short))
    wide = reachability.reachable(split.train, queries._replace(history=short), matrix=near)
    every = reachability.reachable(split.train, queries, limit=0)
    *shares, bigrams = REACH[name]
    found = [plus.mean(), every.mean(), wide.mean(), (wide & ~hop).mean()]
    assert found == pytest.approx(shares, abs=0.0005)
    assert scorers.successors(split.train).nnz == bigrams
    # Who is served: one-hop counts reach hardly anybody of U-.
    one_hop = evaluated(name, data_root).metrics
    assert one_hop["successor/test/recall@5/U-"] < 0.012
    assert one_hop["successor/test/recall@5/U+"] > 0.25

# SPDX-License-Identifier: Apache-2.0
"""Semantic IDs of the real Beauty catalogue against golden figures and a scikit-learn peer."""

import functools
import gzip
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from rec.sid import conflict, report, table, tokenizer, trie
from rec.sid.config import SIDConfig
from tests import ROOT, compiling, jitter
from tests.jitter import jittered

pytestmark = [pytest.mark.data, pytest.mark.trains]

ITEMS = 12101
# Distortions per level of scikit-learn's full KMeans (k-means++, one start, up to 100 iterations,
# random_state the level) on these features: minutes, so a figure here, and a smaller peer is live.
KMEANS = (0.45743, 0.27790, 0.18923)


@functools.cache
def features(root: Path) -> np.ndarray:
    """TF-IDF of tags and keywords, 256 singular directions, rows of length 1: [ITEMS, 256]."""
    folder = root / "amazon2014" / "beauty"

    def lines(name: str) -> list[list[str]]:
        text = gzip.decompress((folder / f"{name}.txt.gz").read_bytes()).decode()
        return [line.split(" ", 1) for line in text.splitlines()]

    seen: dict[str, None] = {}
    for line in lines("user_sequence"):
        seen.update(dict.fromkeys(line[1].split()))
    tags = {line[0]: line[1] if len(line) > 1 else "" for line in lines("item_text_tag")}
    words = {line[0]: line[1].replace("▁", "").split("|") for line in lines("item_keyword_path")}
    texts = [" ".join([tags[item], *words[item]]) for item in seen]
    counts = TfidfVectorizer(min_df=2, sublinear_tf=True).fit_transform(texts)
    reduced = TruncatedSVD(256, n_iter=3, random_state=0).fit_transform(counts)
    return jittered(normalize(reduced).astype(np.float32))


FIT = """
import sys
import jax, numpy as np
from rec.sid import tokenizer
from rec.sid.config import SIDConfig
x = np.load(sys.argv[1])
params = tokenizer.fit(jax.random.key(0), x, SIDConfig())
np.savez(sys.argv[2], codes=tokenizer.encode(params, x, SIDConfig()), **params)
"""
Fitted = tuple[SIDConfig, dict, np.ndarray]


@pytest.fixture(scope="module")
def fitted(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Config, parameters and codes; compiled as for users, for it runs longer than it compiles."""
    given, made = (tmp_path_factory.mktemp("beauty") / name for name in ("x.npy", "fit.npz"))
    np.save(given, features(data_root))
    words = [sys.executable, "-c", FIT, str(given), str(made)]
    subprocess.run(words, cwd=ROOT, env=compiling.as_users(), check=True)
    with np.load(made) as kept:
        params = dict(kept)
    return SIDConfig(), params, params.pop("codes")


def distortions(x: np.ndarray, centroids: list[np.ndarray], codes: np.ndarray) -> list[float]:
    """Mean squared residual after every level, in units of x, with normalised residuals."""
    rest, scale, found = x.astype(np.float64), np.ones(len(x)), []
    for level, book in enumerate(centroids):
        norm = np.linalg.norm(rest, axis=1)
        scale = scale * norm
        rest = rest / norm[:, None] - book[codes[:, level]]
        found.append(float(((rest**2).sum(axis=1) * scale**2).mean()))
    return found


@pytest.mark.deep
def test_residual_k_means_reaches_the_golden_figures(data_root: Path, fitted: Fitted) -> None:
    cfg, params, codes = fitted
    x = features(data_root)
    assert x.shape == (ITEMS, 256)
    decoded = tokenizer.reconstruct(params, codes, cfg)
    figures = report.report(codes, (256,) * 3, x, decoded)
    print({name: round(value, 4) for name, value in figures.items()})
    # Golden figures, of this very seed. Last bits move it little: 10,459 to 10,516 distinct over
    # ten draws (experiments/results/jitter.json). Another seed moves it more: 10,455 +- 99 over
    # six, least 10,262, with groups of 11 to 18.
    jitter.at_least("distinct", figures["distinct"], 10_300)
    jitter.at_least("usage", [figures[f"usage/level{level}"] for level in (1, 2, 3)], 0.98)
    jitter.at_most("largest group", figures["largest_group"], 20)
    assert figures["alarm"] == 0
    errors = [figures[f"reconstruction/level{level}"] for level in (1, 2, 3)]
    assert 0.5 > errors[0] > errors[1] > errors[2]
    sids = tokenizer.assign(params, x, cfg)
    assert table.unique(sids) and len(table.sha256(sids, cfg.sizes)) == 64


@pytest.mark.deep
def test_residual_k_means_is_as_good_as_scikit_learn(data_root: Path, fitted: Fitted) -> None:
    _, params, codes = fitted
    x = features(data_root)
    ours = distortions(x, list(np.asarray(params["codebook"], np.float64)), codes)
    rest, books, labels = x, [], []
    for level in range(3):
        rest = normalize(rest)
        peer = MiniBatchKMeans(
            256, random_state=level, batch_size=2048, init_size=3072, n_init=1, max_iter=10
        )
        labels.append(peer.fit(rest).predict(rest))
        books.append(peer.cluster_centers_)
        rest = rest - books[-1][labels[-1]]
    theirs = distortions(x, books, np.stack(labels, axis=1))
    print("distortion", ours, "scikit-learn", theirs, KMEANS)
    # Of this very seed, whose levels last bits move by .002: 1.000, 1.015 and 1.012 to 1.017 over
    # four draws. Over six seeds: 1.003 +- .006, 1.016 +- .012 and 1.019 +- .013, at most 1.041.
    jitter.at_most("distortion / full k-means", np.divide(ours, KMEANS), 1.03)
    jitter.at_most("distortion / mini-batches", np.divide(ours, theirs), 1.03)
    drawn = x[np.random.default_rng(0).permutation(len(x))[:256]].astype(np.float64)
    nearest = np.argmax(x @ drawn.T, axis=1)[:, None]  # rows of length 1
    jitter.at_least(
        "rows as codes / full k-means", distortions(x, [drawn], nearest)[0] / KMEANS[0], 1.2
    )


@pytest.mark.deep
@pytest.mark.parametrize("how", ["ecm", "rrs"])
def test_psid_is_nearly_as_close_as_the_nearest_codes(
    data_root: Path, fitted: Fitted, how: str
) -> None:
    _, params, codes = fitted
    x = features(data_root)
    found = conflict.psid(x, np.asarray(params["codebook"]), how, True)
    print(how, found.distortion / found.greedy, found.moved)
    assert table.unique(found.sids) and len(found.sids) == ITEMS
    # Three seeds: 1.022 to 1.025 (ecm), 1.047 to 1.054 (rrs); .854 to .860 of the items.
    assert found.distortion > found.greedy
    jitter.at_most("distortion / of the nearest codes", found.distortion / found.greedy, 1.10)
    jitter.at_least("items with their nearest codes", (found.sids == codes).all(1).mean(), 0.8)


@pytest.mark.deep
def test_the_catalogue_is_a_trie(fitted: Fitted) -> None:
    _, _, codes = fitted
    sids = conflict.add_digit(codes, 256)
    tree, shape = trie.build(sids, (256,) * 4)
    assert shape.branching[0] == 256 and len(tree.leaf_items) == ITEMS
    assert np.asarray(trie.walk(tree, shape, jnp.asarray(sids[:100]))).min() >= 0


@pytest.mark.slow
def test_rq_vae_uses_its_codes_and_the_published_recipe_collapses(data_root: Path) -> None:
    """Standardised features, k-means and resets against raw ones, random codes and Adagrad 0.4."""
    x = features(data_root)
    sizes = dict(method="rqvae", batch=1024, hidden=(256, 128), latent=64, lloyd=5)
    repaired = SIDConfig(**sizes, steps=300, dead_code_reset=50)
    published = dict(standardise=False, kmeans_init=False, optimiser="adagrad", lr=0.4)
    broken = SIDConfig(**sizes, steps=60, dead_code_reset=0, **published)
    figures = []
    for cfg in (repaired, broken):
        codes = tokenizer.encode(tokenizer.fit(jax.random.key(0), x, cfg), x, cfg)
        figures.append(report.report(codes, (256,) * 3))
        print({name: round(value, 4) for name, value in figures[-1].items()})
    assert figures[0]["alarm"] == 0 and figures[1]["alarm"] == 1
    assert min(figures[0][f"usage/level{level}"] for level in (1, 2, 3)) >= 0.95

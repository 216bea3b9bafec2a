# SPDX-License-Identifier: Apache-2.0
"""Item texts to vectors. The default needs no weights: TF-IDF and a truncated SVD.

Any other encoder is a function of the same shape (`Encoder`); vectors made elsewhere are read by
`rec.data.embeddings.load`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Encoder = Callable[[Sequence[str]], np.ndarray]
"""Texts of N items -> float32 [N, d]."""


def encode(texts: Sequence[str], dim: int = 256, seed: int = 0) -> np.ndarray:
    """float32 [N, d] unit rows: TF-IDF over words (sublinear, words of two texts and more, or all
    where that leaves none), then the leading d singular directions.

    d is `dim`, or the size of the vocabulary or the number of texts less one where those are
    smaller. A text without a known word is a row of zeros. Deterministic for a seed, up
    to rounding; one thread, so that the number of cores changes nothing (and faster at this size).

    Raises:
        ValueError: no texts, or not a word in them.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize
    from threadpoolctl import threadpool_limits

    weights = _tf_idf(texts)
    dim = min(dim, weights.shape[1], max(weights.shape[0] - 1, 1))
    if dim == weights.shape[1]:  # nothing to reduce
        return np.asarray(normalize(weights.toarray()), np.float32)
    with threadpool_limits(1):
        vectors = TruncatedSVD(dim, n_iter=3, random_state=seed).fit_transform(weights)
    return np.asarray(normalize(vectors), np.float32)


def _tf_idf(texts: Sequence[str]) -> Any:
    """Sparse float64 [N, words]."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not len(texts):
        raise ValueError("no texts to encode")
    for least in (2, 1):
        try:
            return TfidfVectorizer(min_df=least, sublinear_tf=True).fit_transform(texts)
        except ValueError:  # no word is left: rare ones may be all there are
            continue
    raise ValueError("no text holds a word of two letters or more: nothing to encode")

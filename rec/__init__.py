# SPDX-License-Identifier: Apache-2.0
"""Recommenders: data, semantic IDs, models, decoding, baselines and metrics.

    from rec import assign_sids, fit_tokenizer, leave_one_out, ndcg, read_corpus, recall

Names here are imported on first use, so that `import rec` loads no JAX. Packages: data (readers,
splits), sid (semantic IDs), models, decode (beams over a trie), baselines; modules: metrics,
augment and genpas (which training pairs are drawn), text (item vectors), training.
"""

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

__all__ = [
    "Corpus",
    "Queries",
    "SASRec",
    "SASRecConfig",
    "SIDConfig",
    "Sequences",
    "Split",
    "Tiger",
    "TigerConfig",
    "Trie",
    "assign_sids",
    "beam_search",
    "bootstrap",
    "build_trie",
    "coverage",
    "fit_tokenizer",
    "kcore",
    "leave_one_out",
    "make_tokenizer",
    "mrr",
    "ndcg",
    "paired_bootstrap",
    "ranks",
    "read_corpus",
    "recall",
    "temporal_split",
]

# Public name -> module:name. A submodule's name may not be one: whichever is imported last would
# hide the other.
_PUBLIC = MappingProxyType(
    {
        "Corpus": "rec.data.sequences:Corpus",
        "Queries": "rec.data.sequences:Queries",
        "SASRec": "rec.models.sasrec:SASRec",
        "SASRecConfig": "rec.models.config:SASRecConfig",
        "SIDConfig": "rec.sid.config:SIDConfig",
        "Sequences": "rec.data.sequences:Sequences",
        "Split": "rec.data.sequences:Split",
        "Tiger": "rec.models.tiger:Tiger",
        "TigerConfig": "rec.models.config:TigerConfig",
        "Trie": "rec.sid.trie:Trie",
        "assign_sids": "rec.sid.tokenizer:assign",
        "beam_search": "rec.decode.beam:beam_search",
        "bootstrap": "rec.metrics:bootstrap",
        "build_trie": "rec.sid.trie:build",
        "coverage": "rec.metrics:coverage",
        "fit_tokenizer": "rec.sid.tokenizer:fit",
        "kcore": "rec.data.sequences:kcore",
        "leave_one_out": "rec.data.sequences:leave_one_out",
        "make_tokenizer": "rec.sid.tokenizer:make",
        "mrr": "rec.metrics:mrr",
        "ndcg": "rec.metrics:ndcg",
        "paired_bootstrap": "rec.metrics:paired_bootstrap",
        "ranks": "rec.metrics:ranks",
        "read_corpus": "rec.data.reading:read",
        "recall": "rec.metrics:recall",
        "temporal_split": "rec.data.sequences:temporal",
    }
)

if TYPE_CHECKING:  # the same names for type checkers, which do not run `__getattr__`
    from rec.data.reading import read as read_corpus
    from rec.data.sequences import Corpus, Queries, Sequences, Split, kcore, leave_one_out
    from rec.data.sequences import temporal as temporal_split
    from rec.decode.beam import beam_search
    from rec.metrics import bootstrap, coverage, mrr, ndcg, paired_bootstrap, ranks, recall
    from rec.models.config import SASRecConfig, TigerConfig
    from rec.models.sasrec import SASRec
    from rec.models.tiger import Tiger
    from rec.sid.config import SIDConfig
    from rec.sid.tokenizer import assign as assign_sids
    from rec.sid.tokenizer import fit as fit_tokenizer
    from rec.sid.tokenizer import make as make_tokenizer
    from rec.sid.trie import Trie
    from rec.sid.trie import build as build_trie
else:

    def __getattr__(name: str) -> Any:
        """Imports a public name on first use (PEP 562)."""
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _PUBLIC[name].partition(":")
        value = getattr(importlib.import_module(module), attribute)
        globals()[name] = value  # the next use finds it without a call
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

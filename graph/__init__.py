# SPDX-License-Identifier: Apache-2.0
"""Link prediction: data, sampling, PENCIL, heuristics, graph-network peers and metrics.

    from graph import SampleConfig, heuristic_scores, mrr, prepare_graph, read_links, sample_links

Names here are imported on first use, so that `import graph` loads no JAX. Packages: data (readers,
splits), sampling (subgraphs around links; `sample` picks a backend), peers; modules: csr, links,
negatives, tuples (graphs as arrays), pencil, heuristics, metrics.
"""

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

__all__ = [
    "CSR",
    "HEURISTICS",
    "LinkBatch",
    "LinkData",
    "Links",
    "Pencil",
    "PencilConfig",
    "SampleConfig",
    "Split",
    "auc",
    "average_precision",
    "build_csr",
    "clean_edges",
    "heuristic_scores",
    "hits",
    "mrr",
    "ogb_hits",
    "prepare_graph",
    "ranks",
    "read_links",
    "sample_links",
]

# Public name -> module:name. A submodule's name may not be one: whichever is imported last would
# hide the other.
_PUBLIC = MappingProxyType(
    {
        "CSR": "graph.csr:CSR",
        "HEURISTICS": "graph.names:HEURISTICS",
        "LinkBatch": "graph.sampling.batch:LinkBatch",
        "LinkData": "graph.links:LinkData",
        "Links": "graph.links:Links",
        "Pencil": "graph.pencil:Pencil",
        "PencilConfig": "graph.config:PencilConfig",
        "SampleConfig": "graph.sampling.config:SampleConfig",
        "Split": "graph.links:Split",
        "auc": "graph.metrics:auc",
        "average_precision": "graph.metrics:average_precision",
        "build_csr": "graph.csr:build",
        "clean_edges": "graph.csr:clean",
        "heuristic_scores": "graph.heuristics:scores",
        "hits": "graph.metrics:hits",
        "mrr": "graph.metrics:mrr",
        "ogb_hits": "graph.metrics:ogb_hits",
        "prepare_graph": "graph.sample:prepare",
        "ranks": "graph.metrics:ranks",
        "read_links": "graph.data.reading:read",
        "sample_links": "graph.sample:sample",
    }
)

if TYPE_CHECKING:  # the same names for type checkers, which do not run `__getattr__`
    from graph.config import PencilConfig
    from graph.csr import CSR
    from graph.csr import build as build_csr
    from graph.csr import clean as clean_edges
    from graph.data.reading import read as read_links
    from graph.heuristics import scores as heuristic_scores
    from graph.links import LinkData, Links, Split
    from graph.metrics import auc, average_precision, hits, mrr, ogb_hits, ranks
    from graph.names import HEURISTICS
    from graph.pencil import Pencil
    from graph.sample import prepare as prepare_graph
    from graph.sample import sample as sample_links
    from graph.sampling.batch import LinkBatch
    from graph.sampling.config import SampleConfig
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

# SPDX-License-Identifier: Apache-2.0
"""Learned link predictors that PENCIL is compared with.

All are flax linen modules: `model.apply(variables, ...)` gives logits, float32 [B], with variables
{"params": trained} and, in some, {"frozen": drawn once}, which no optimizer sees and every
checkpoint keeps. `deterministic=False` switches dropout on and needs the rng stream "dropout".

    on the subgraph of a link   SubgraphGNN, SEAL, MPLP     (batch, features)
    on the whole graph          GNN, RefinedGAE             (graph, pairs)
    on both                     NCN                         (graph, batch)

batch: LinkBatch; features: float [B, N, F] of its tokens, or None; graph: GraphsTuple of
`tuples.from_csr`, whose nodes are float [V, F]; pairs: int [B, 2]. Whole-graph models take all
links of a batch out of the graph before messages pass; the sampler took them out of subgraphs.
They also split into `encode(graph)`, states [V, D], and `score(states, links)`, so that many links
are scored with one encoding where none of them is in the graph.
"""

# SPDX-License-Identifier: Apache-2.0
"""Names that configs check before anything heavy is imported."""

HEURISTICS = ("cn", "aa", "ra", "pa", "jaccard", "spd", "katz", "ppr")
"""Scores of pairs from the graph alone, see graph.heuristics."""
TARGETS = ("cn", "aa", "ra", "katz", "pagerank", "spd")
"""Heuristics that a network is asked to regress."""

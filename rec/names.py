# SPDX-License-Identifier: Apache-2.0
"""Names that configs check before JAX is imported."""

NORMALISERS = ("full", "digit", "children")
"""What a digit's probabilities sum to one over, see rec.decode.beam."""
POLICIES = ("first", "popularity", "freshness", "relevance", "random")
"""Order of items that share an SID, see rec.decode.items."""
SID_SOURCES = ("text", "text+cooccurrence")
"""What a tokenizer reads of an item, see rec.sid.sources."""
STRATEGIES = ("last_target", "prefixes", "windows", "genpas")
"""Which training pairs are drawn, see rec.augment."""

# SPDX-License-Identifier: Apache-2.0
"""Semantic IDs: tokenizers of item features, unique tables, reports and the catalogue trie."""

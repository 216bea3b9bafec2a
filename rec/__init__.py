# SPDX-License-Identifier: Apache-2.0
"""Recommenders: data, semantic IDs, models, decoding, language-model recommenders."""

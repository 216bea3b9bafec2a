# SPDX-License-Identifier: Apache-2.0
"""Names that configs are checked against before JAX is imported. Imports nothing."""

KINDS = ("softmax", "ssmax", "rela", "tra", "diff", "sigmoid", "entmax15", "tda")
TWO_VIEWS = ("diff", "tda")
BIASED = ("softmax", "ssmax", "diff", "sigmoid", "entmax15")
NORMED = ("rela", "tra", "diff", "tda")

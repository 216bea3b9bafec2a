# SPDX-License-Identifier: Apache-2.0
"""Graphs: raw formats, splits, made-up graphs, and where files come from."""

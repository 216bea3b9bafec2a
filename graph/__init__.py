# SPDX-License-Identifier: Apache-2.0
"""Link prediction: sampling, PENCIL, heuristics, graph-network peers."""

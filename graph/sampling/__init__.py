# SPDX-License-Identifier: Apache-2.0
"""Samplers of subgraphs around links: on the host, on a device, over a mesh; `graph.sample` is
their door."""

# SPDX-License-Identifier: Apache-2.0
"""Attention operators and kernels, the shared transformer, the language model."""

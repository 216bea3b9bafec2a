# SPDX-License-Identifier: Apache-2.0
"""A decoder language model of pure functions: Qwen3, Qwen2.5 and Llama 3 class, any attention."""

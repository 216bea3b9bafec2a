# SPDX-License-Identifier: Apache-2.0
"""From a generator to items: beam search, the exact scorer, and what an SID means as items."""

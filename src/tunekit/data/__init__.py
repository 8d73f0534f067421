"""Rows to training examples: sources, formats, rendering, ledger, gate, packing, collation and the cache."""

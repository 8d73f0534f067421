"""Models and tokenizers: names, loading, adapters, saving, and the embedded default."""

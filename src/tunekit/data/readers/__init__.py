"""Readers: one file per container; each yields the records of one file, lazily, with the place of each."""

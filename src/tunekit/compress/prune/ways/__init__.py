"""The ways of pruning: one file each."""

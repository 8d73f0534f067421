"""What several ways of pruning share."""

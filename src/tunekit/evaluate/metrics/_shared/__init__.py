"""What several metrics need; no plug-in."""

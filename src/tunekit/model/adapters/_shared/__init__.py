"""What several kinds of adapter need; no plug-in."""

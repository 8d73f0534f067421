"""What several rewards need."""

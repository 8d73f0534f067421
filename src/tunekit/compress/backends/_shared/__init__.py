"""What several backends ask of their source, and of one tensor that they leave as it is."""

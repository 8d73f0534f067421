"""The command line: one module per family of verbs; nothing heavy is imported at module level."""

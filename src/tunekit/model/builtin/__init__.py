"""The built-in models: files that ship with the package, and the makers of these files."""

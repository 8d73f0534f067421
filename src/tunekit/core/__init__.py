"""The ground floor: errors, plug-in registry, plain value types, files, progress. Imports nothing heavy."""

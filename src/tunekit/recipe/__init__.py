"""What the user wrote: strict YAML, typed blocks, overrides, and templates for `init`."""

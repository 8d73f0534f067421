"""What the user wrote: strict YAML, typed blocks, overrides, and the rules between keys."""

"""What a model is handed on as: one file each.

A module holds its help, `KINDS` (what weights it can carry, the first by default, each the kind of a backend), and:

- `finish(source, folder)`: what stands beside the weights for those who serve it;
- `use(folder)`: the command that does.
"""

"""Row formats: one file each, found by listing this folder.

A module holds its help (first docstring line), `GIVES` (the material that its rows are), `PRECEDENCE` (lower is asked
first when a format is detected), `FIELDS` (its fields and the columns they come from by default, tried in order),
`REQUIRED` (the fields that a row must have), `matches(row)` and `to_example(row, columns)`, which gives an `Example`,
a tuple of `Pair`, a `Judged` or a `Question` as its material is.
"""

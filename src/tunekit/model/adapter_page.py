"""The tables of docs/adapters.md: `python -m tunekit.model.adapter_page docs/adapters.md` writes them anew."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tunekit.core.files import write_atomic
from tunekit.core.registry import ADAPTERS
from tunekit.model.adapter_facts import BYTES, Counter, Kind, kind_of, own_keys
from tunekit.recipe.adapters import TargetedBlock
from tunekit.recipe.reference import keys_of, markdown_table

MARK = (
    "<!-- From here on written by `python -m tunekit.model.adapter_page docs/adapters.md`; a test keeps it true. -->\n"
)
"""Stands between what is written by hand and what is generated."""
_HEAD = "trained | 4 bits | 8 bits | GPT-2 | merges | learning rate |"


def generated() -> str:
    """Everything of the page below the mark."""
    kinds = [kind_of(name) for name in ADAPTERS.names]
    usable = [kind for kind in kinds if not kind.refused]
    counter = Counter("builtin:tiny")
    lines = [
        "## The kinds",
        "",
        f"Trained: parameters in `builtin:tiny` (a Llama of {counter.parameters:,}) with the defaults of each kind; "
        f"with AdamW each takes {BYTES} bytes of memory while training. `tunekit adapters --model NAME` counts in any "
        "model.",
        "",
        f"| kind | | {_HEAD}",
        "|---|---|---|---|---|---|---|---|",
        *(f"| [`{kind.name}`](#{kind.name}) | {kind.help} | {_row(kind, counter)}" for kind in usable if kind.tended),
        "",
        "## Further kinds of the installed PEFT",
        "",
        "Their keys are the fields of PEFT's own configuration: `tunekit adapters KIND` shows them.",
        "",
        f"| kind | {_HEAD}",
        "|---|---|---|---|---|---|---|",
        *(f"| `{kind.name}` | {_row(kind, counter)}" for kind in usable if not kind.tended),
        "",
        "## Kinds that are refused",
        "",
        "| kind | why |",
        "|---|---|",
        *(f"| `{kind.name}` | {kind.refused} |" for kind in kinds if kind.refused),
        "",
        "## Keys of every kind",
        "",
        "`targets` and `train_modules` belong to the kinds that change modules of the model.",
        "",
        *markdown_table([key for key in keys_of(TargetedBlock) if key.name != "kind"]),
        "",
        "## Keys of each kind",
        *_keys(kind for kind in usable if kind.tended),
    ]
    return "\n".join(lines) + "\n"


def _row(kind: Kind, counter: Counter) -> str:
    trained = "–" if kind.packages else f"{counter.trained(kind.name):,}"  # the same page, whatever is installed
    can = kind.can
    facts = (can.four, can.eight, can.conv1d, can.merges) if can else (False,) * 4
    return f"{trained} | {' | '.join('yes' if fact else '–' for fact in facts)} | `{kind.learning_rate:g}` |"


def _keys(kinds: Iterable[Kind]) -> list[str]:
    lines = []
    for kind in kinds:
        lines += ["", f"### {kind.name}", "", kind.help, "", *markdown_table(own_keys(kind.name))]
    return lines


def page(text: str) -> str:
    """A page with its generated part written anew."""
    head, mark, _ = text.partition(MARK)
    assert mark, "the page has no mark"
    return f"{head}{MARK}\n{generated()}"


if __name__ == "__main__":
    write_atomic(Path(sys.argv[1]), page(Path(sys.argv[1]).read_text(encoding="utf-8")))

"""HTML from function calls, so that every text is escaped and every element closed."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

from tunekit.runs.wording import json_ready

_VOID = frozenset({"meta", "link", "input", "br"})
# A page that may fetch nothing: whatever is not written into it does not exist for it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


class Html(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


Child = str | None | Iterable["Child"]


def _children(children: Iterable[Child]) -> str:
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            parts.append(child if isinstance(child, Html) else html.escape(child))
        else:
            parts.append(_children(child))
    return "".join(parts)


def tag(element: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """One element: texts among ``children`` are escaped, None and False attributes left out.

    Underscores in attribute names become hyphens and ``cls`` becomes ``class``.
    """
    written = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = "class" if key == "cls" else key.replace("_", "-")
        written += f' {attribute}="{"" if value is True else html.escape(str(value))}"'
    if element in _VOID:
        return Html(f"<{element}{written}>")
    return Html(f"<{element}{written}>{_children(children)}</{element}>")


def data_island(value: Any, **attributes: str) -> Html:
    """A plain value as JSON in a script element that is never run; nothing in it can end the element."""
    text = json.dumps(json_ready(value), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return tag("script", Html(text), type="application/json", **attributes)


def document(title: str, style: str, script: str, *body: Child) -> str:
    """A whole page, with its style and script inside and a policy that forbids it to load anything."""
    assert "</" not in script and "</" not in style, "would end its element"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(style)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", *body, tag("script", Html(script))), lang="en") + "\n"

"""What kinds of adapter the installed PEFT has, and the fields of their configurations; PEFT is not imported.

Names, annotations and help are read from its source text (AST), so a new release brings its kinds by itself, and a typo
is refused in milliseconds.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Optional, Union

HIDDEN = frozenset(
    {
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "runtime_config", "megatron_config", "megatron_core", "token_dim", "num_layers",
        "num_attention_heads", "num_transformer_submodules", "tokenizer_name_or_path", "tokenizer_kwargs",
        "target_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "layer_replication",
    }
)  # fmt: skip
"""Fields that PEFT or tunekit fills in, those that have a key of their own (`targets`, `train_modules`), and those that
PEFT would pass by: layers are chosen by `targets`, whose full names it takes before it looks at numbers of layers."""

_TYPES: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict, "list": list, "set": list}
_TYPES |= {"tuple": list, "Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union}


@dataclass(frozen=True, slots=True)
class PeftField:
    """A field of a configuration: its annotation as written in PEFT, and PEFT's help in one line."""

    name: str
    annotation: str
    help: str

    @property
    def is_block(self) -> bool:
        """Whether it holds a further configuration of PEFT, for which a recipe has no words."""
        return re.search(r"\w+Config\b", self.annotation) is not None

    @property
    def type(self) -> Any:
        """The annotation as a type; a class of PEFT's own takes text or a block of keys, ``None`` is always allowed."""
        tree = ast.parse(self.annotation, mode="eval").body
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        own: dict[str, Any] = dict.fromkeys(names, str | dict[str, Any])
        return eval(self.annotation, {"__builtins__": {}}, own | _TYPES) | None


@dataclass(frozen=True, slots=True)
class PeftKind:
    """A kind of adapter: PEFT's name, its configuration class, and the file that holds it."""

    name: str
    config_class: str
    file: Path


def _root() -> Path:
    spec = importlib.util.find_spec("peft")
    assert spec is not None and spec.origin is not None, "peft is a dependency"
    return Path(spec.origin).parent


@cache
def peft_kinds() -> dict[str, PeftKind]:
    """All kinds that the installed PEFT registers, by its own names."""
    found = {}
    for file in sorted(_root().glob("tuners/*/__init__.py")):
        text = file.read_text(encoding="utf-8")
        if "register_peft_method(" not in text:
            continue
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            name, config = given.get("name"), given.get("config_cls")
            if isinstance(name, ast.Constant) and isinstance(config, ast.Name) and (file.parent / "config.py").exists():
                found[str(name.value)] = PeftKind(str(name.value), config.id, file.parent / "config.py")
    return found


@cache
def peft_fields(kind: str) -> dict[str, PeftField]:
    """The fields that a user may set, of a kind that `peft_kinds` names; those it inherits as well."""
    known = peft_kinds()[kind]
    fields = _fields_of(known.config_class, known.file)
    return {name: field for name, field in fields.items() if name not in HIDDEN and not field.is_block}


def has_field(kind: str, name: str) -> bool:
    """Whether a kind's configuration has a field, hidden or not."""
    known = peft_kinds()[kind]
    return name in _fields_of(known.config_class, known.file)


def _fields_of(class_name: str, file: Path) -> dict[str, PeftField]:
    tree = _parsed(file)
    found = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name), None)
    if found is None:
        return {}
    fields: dict[str, PeftField] = {}
    for base in (base.id for base in found.bases if isinstance(base, ast.Name)):
        for place in [file, *_imported_from(base, tree)]:
            fields |= _fields_of(base, place)
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_given(node.value):
            name = node.target.id
            fields[name] = PeftField(name, ast.unparse(node.annotation), _help(node.value))
    return fields


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _imported_from(name: str, tree: ast.Module) -> list[Path]:
    """The files of PEFT in which an imported class may be defined."""
    places = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and any(each.name == name for each in node.names):
            stem = _root().joinpath(*node.module.split(".")[1:])
            places += [path for path in (stem.with_suffix(".py"), stem / "config.py") if path.is_file()]
    return places


def _is_given(value: ast.expr | None) -> bool:
    """Whether a field can be given to the constructor."""
    if not isinstance(value, ast.Call):
        return True
    return not any(k.arg == "init" and isinstance(k.value, ast.Constant) and not k.value.value for k in value.keywords)


def _help(value: ast.expr | None) -> str:
    if not isinstance(value, ast.Call):
        return ""
    for keyword in value.keywords:
        if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
            for key, text in zip(keyword.value.keys, keyword.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "help":
                    return _one_line(text)
    return ""


def _one_line(text: ast.expr) -> str:
    try:
        words = str(ast.literal_eval(text))
    except ValueError:  # made while PEFT runs
        return ""
    return " ".join(words.split())

"""A finished model's folder and its MANIFEST.json: what it was made from, and whether it is still as it was written."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tunekit
from tunekit.core.errors import MachineError, Problem, UserError, raise_all
from tunekit.core.files import sha256_file, sha256_json, sha256_text, write_json
from tunekit.model.fingerprint import SAMPLED, weights_fingerprint
from tunekit.model.names import ModelName, resolve_name
from tunekit.model.tokenizer import embedding_rows, hub_errors, load_config
from tunekit.recipe.schema import ModelBlock

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MANIFEST = "MANIFEST.json"
CARD = "README.md"
"""The model card: words, which may be put in order later."""
VERSION = 1
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
LICENCE_FIELDS = ("license", "license_name", "license_link")
# what loaders read: one of these that the manifest does not know would change the model
_READ = ("*.safetensors*", "*.bin", "*.bin.index.json", "*.jinja", "tokenizer*", "special_tokens_map.json",
         "added_tokens.json", "vocab.*", "merges.txt", "config.json", "adapter_config.json",
         "generation_config.json")  # fmt: skip
_RESTORE = "take the folder from where it was made again; without its MANIFEST.json it counts as somebody else's"


def base_facts(block: ModelBlock, *, seed: int, dtype: str) -> dict[str, Any]:
    """What an artefact's manifest says of its base; to be taken when that is loaded, for files may change later.

    Args:
        block: the recipe's model block.
        seed: of fresh weights, for a base that is made and not loaded.
        dtype: in which fresh weights are made.

    Returns:
        ``name``, ``revision``, ``commit``, ``rows`` (of the input embedding), ``weights`` (see `base_fingerprint`),
        ``licence`` (fields of the base's model card), and ``seed`` and ``dtype`` of a base of fresh weights.

    Raises:
        UserError, MachineError: the base is not there.
    """
    name = resolve_name(block.name)
    facts: dict[str, Any] = {"name": block.name, "revision": block.revision, "commit": None}
    facts["rows"] = embedding_rows(load_config(block))
    if name.random:
        return facts | {"seed": seed, "dtype": dtype, "weights": _fresh_fingerprint(block, seed, dtype), "licence": {}}
    folder = base_folder(name, block.revision)
    if name.kind == "hub" and folder.parent.name == "snapshots":
        facts["commit"] = folder.name
    return facts | {"weights": base_fingerprint(folder), "licence": licence_fields(folder)}


def base_folder(name: ModelName, revision: str | None) -> Path:
    """Where a base's files lie on this machine.

    Raises:
        MachineError: a Hub id whose files cannot be had.
    """
    if name.kind != "hub":
        return Path(name.location)
    from transformers.utils import cached_file

    with hub_errors(name):
        config = cached_file(name.location, "config.json", revision=revision)
    assert config is not None, name
    return Path(config).parent


def base_fingerprint(folder: Path) -> str:
    """Hex sha256 over names, shapes, types and a sample of the values of every tensor in a folder's safetensors.

    It is taken from the files, so it does not depend on the type that they are loaded in, on quantization or adapters.
    """
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith("adapter_"):
            continue
        with safe_open(str(path), "pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
                flat = tensor.reshape(-1)
                sample = flat[:: max(1, flat.numel() // SAMPLED)].contiguous()
                digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _fresh_fingerprint(block: ModelBlock, seed: int, dtype: str) -> str:
    import torch

    with torch.random.fork_rng():
        return weights_fingerprint(fresh_base(block, seed=seed, dtype=dtype), frozen_only=False)


def fresh_base(block: ModelBlock, *, seed: int, dtype: str) -> Any:
    """A base whose weights are made from a seed; the same ones that a run with that seed begins with."""
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(seed)
    return AutoModelForCausalLM.from_config(load_config(block), dtype=getattr(torch, dtype))


def check_base(facts: Mapping[str, Any], block: ModelBlock) -> None:
    """Compares the base that is there now with the one that an artefact was made on, before it is loaded.

    Raises:
        UserError: its weights are others; both revisions are named.
    """
    if not facts.get("weights"):
        return
    now = base_facts(block, seed=facts.get("seed") or 0, dtype=facts.get("dtype") or "float32")
    if now["weights"] == facts["weights"]:
        return
    then, found = (f"revision {value['commit'] or value['revision'] or 'unnamed'}" for value in (facts, now))
    raise UserError(
        f"the base '{block.name}' is not the one that this was trained on: its weights differ ({found} here, "
        f"{then} then)",
        where=block.name,
        fix="put the base of the training back in its place, or train again on this one",
    )


def licence_fields(folder: Path) -> dict[str, str]:
    """The licence fields in the head of a folder's README.md; empty when there are none."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    lines = text.splitlines()
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return {}
    head = lines[1 : lines.index("---", 1)]
    pairs = (line.partition(":") for line in head if line[:1].strip())
    return {key: value.strip().strip("'\"") for key, _, value in pairs if key in LICENCE_FIELDS and value.strip()}


def licence_files(folder: Path) -> list[Path]:
    """Licence texts that lie in a folder."""
    found = (path for pattern in LICENCE_FILES for path in folder.glob(pattern) if path.is_file())
    return sorted(set(found))


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Hex sha256 of the chat template, or of its parts by name; None without one."""
    template = tokenizer.chat_template
    if template is None:
        return None
    return sha256_text(template) if isinstance(template, str) else sha256_json(template)


def write_manifest(folder: Path, facts: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes MANIFEST.json: ``facts``, the template's hash, the number of tokens, and size and sha256 of every file.

    Args:
        folder: a finished model's, with everything else in it.
        facts: ``base`` (see `base_facts`) and whatever else is to be kept.
        tokenizer: the one that was saved there.
    """
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, CARD)
    }
    value = dict(facts) | {"version": VERSION, "tunekit": tunekit.__version__, "template": template_hash(tokenizer)}
    value |= {"tokens": len(tokenizer), "files": files}
    write_json(folder / MANIFEST, value | {"self": sha256_json(value)})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, None where there is none.

    Raises:
        MachineError: it is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        whole = value.pop("self") == sha256_json(value)
    except (ValueError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise MachineError("the manifest is damaged", where=str(path), fix=_RESTORE)
    return value


def verify(folder: Path) -> dict[str, Any] | None:
    """Reads every file that the manifest lists, and compares.

    Returns:
        The manifest, or None for a folder without one: somebody else's, of which nothing is known.

    Raises:
        UserError: there is no such folder.
        MachineError: files that are missing, changed or new; each is named.
    """
    if not folder.is_dir():
        raise UserError("there is no such folder", where=str(folder), fix="name a run folder or a model folder")
    manifest = read_manifest(folder)
    if manifest is not None:
        raise_all(MachineError, [Problem(*told, fix=_RESTORE) for told in _faults(folder, manifest)])
    return manifest


def _faults(folder: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what is wrong, where)."""
    listed: dict[str, dict[str, Any]] = manifest["files"]
    for name, known in listed.items():
        path = folder / name
        if not path.is_file():
            yield "the file is missing", str(path)
        elif path.stat().st_size != known["size"] or sha256_file(path) != known["sha256"]:
            yield _change(path, manifest), str(path)
    for path in sorted(folder.iterdir()):
        if path.name not in listed and path.is_file() and any(fnmatch.fnmatch(path.name, read) for read in _READ):
            yield "the file was not there when the model was saved", str(path)


def _change(path: Path, manifest: Mapping[str, Any]) -> str:
    if path.name == "chat_template.jinja":
        return "the chat template is not the one that was saved with the model"
    tokens = _tokens(path) if path.name == "tokenizer.json" else None
    if tokens is not None and tokens != manifest["tokens"]:
        return f"the tokenizer has {tokens:,} tokens; it had {manifest['tokens']:,} when the model was saved"
    return "the file is not as it was saved"


def _tokens(path: Path) -> int | None:
    """The number of tokens in a tokenizer.json, added ones included; None when it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = value["model"]["vocab"]  # a mapping from text to id, or pairs of text and score
        words = set(vocabulary) if isinstance(vocabulary, dict) else {word for word, _ in vocabulary}
        return len(words | {added["content"] for added in value["added_tokens"]})
    except (ValueError, KeyError, TypeError):
        return None


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, manifest: Mapping[str, Any], folder: Path) -> None:
    """Compares a tokenizer, as it was loaded, with the one that was saved.

    Raises:
        MachineError: it has another number of tokens, or another chat template.
    """
    if len(tokenizer) != manifest["tokens"]:
        what = f"the tokenizer has {len(tokenizer):,} tokens; it had {manifest['tokens']:,} when the model was saved"
        raise MachineError(what, where=str(folder), fix=_RESTORE)
    if template_hash(tokenizer) != manifest["template"]:
        raise MachineError("the chat template is not the one that was saved", where=str(folder), fix=_RESTORE)

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
from tunekit.core.front_matter import COMMON_LICENCE_FILES, license_of
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
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
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
        made = weights_fingerprint(fresh_base(block, seed=seed, dtype=dtype), frozen_only=False)
        return facts | {"seed": seed, "dtype": dtype, "weights": made, "licence": {}}
    folder = base_folder(name, block.revision)
    if name.kind == "hub" and folder.parent.name == "snapshots":
        facts["commit"] = folder.name
    return facts | {"weights": base_fingerprint(folder), "licence": license_of(folder)}


def base_folder(name: ModelName, revision: str | None) -> Path:
    """Where a base's files lie on this machine; those of a Hub id are fetched, with its licence where that can be had.

    Raises:
        MachineError: a Hub id whose files cannot be had.
    """
    if name.kind != "hub":
        return Path(name.location)
    from transformers.utils import cached_file

    with hub_errors(name):
        config = cached_file(name.location, "config.json", revision=revision)
        assert config is not None, name
        folder = Path(config).parent
        commit = folder.name if folder.parent.name == "snapshots" else revision  # main may move meanwhile
        if cached_file(name.location, WEIGHTS, revision=commit, _raise_exceptions_for_missing_entries=False) is None:
            cached_file(name.location, INDEX, revision=commit)
            for shard in _shards(folder):
                cached_file(name.location, shard.relative_to(folder).as_posix(), revision=commit)
    _fetch_papers(name, commit)
    return folder


def _fetch_papers(name: ModelName, commit: str | None) -> None:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    transport: type[Exception] = HfHubHTTPError.__bases__[0]  # whichever HTTP client the Hub's library is built on
    for file in (CARD, *COMMON_LICENCE_FILES):
        try:
            if try_to_load_from_cache(name.location, file, revision=commit) is None:  # neither here nor known to lack
                hf_hub_download(name.location, file, revision=commit)
        except (OSError, ValueError, transport) as error:
            if not isinstance(error, EntryNotFoundError) or isinstance(error, LocalEntryNotFoundError):
                return  # no network; only what is told of the licence depends on it


def _shards(folder: Path) -> list[Path]:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are loaded from a model's folder, by the rule of transformers; others do not count.

    Raises:
        UserError: there are none, or one that the index names is missing.
    """
    files = [folder / WEIGHTS]
    if not files[0].is_file() and (folder / INDEX).is_file():
        try:
            files = _shards(folder)
        except (ValueError, KeyError, AttributeError, TypeError):
            fix = "save the model again with save_pretrained"
            raise UserError("the index of the weights cannot be read", where=str(folder / INDEX), fix=fix) from None
    missing = [path for path in files if not path.is_file()]
    if missing or not files:
        raise UserError(
            f"the base has no weights: there is no {missing[0].name if missing else 'file in its index'}",
            where=str(folder),
            fix="weights are read from safetensors files: save the model again with save_pretrained",
        )
    return files


def base_fingerprint(folder: Path) -> str:
    """Hex sha256 over names, shapes, types and a sample of the values of every tensor that is loaded from a folder.

    It is taken from the files, so it does not depend on the type that they are loaded in, on quantization or adapters.

    Raises:
        UserError: there are no weights.
    """
    import torch
    from safetensors import safe_open

    digest, count = hashlib.sha256(), 0
    for path in weight_files(folder):
        with safe_open(str(path), "pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
                flat = tensor.reshape(-1)
                sample = flat[:: max(1, flat.numel() // SAMPLED)].contiguous()
                digest.update(sample.view(torch.uint8).numpy().tobytes())
                count += 1
    if not count:  # the hash of nothing would be that of every such base
        raise UserError("the base's files of weights are empty", where=str(folder), fix="save the model again")
    return digest.hexdigest()


def fresh_base(block: ModelBlock, *, seed: int, dtype: str) -> Any:
    """A base whose weights are made from a seed, those that a run with it begins with; no other draws change."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone, where the weights are made
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
        UserError: it is a checkpoint's.
        MachineError: it is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "manifest_sha256" in value:
            raise _checkpoint(folder)
        whole = value.pop("self") == sha256_json(value)
    except (ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise MachineError("the manifest is damaged", where=str(path), fix=_RESTORE)
    return value


def _checkpoint(folder: Path) -> UserError:
    run = folder.resolve().parent.parent
    fix = f"name the run folder: {run}" if (run / "plan.json").exists() else "name a run folder that is finished"
    return UserError("this is a checkpoint of a run, not a finished model", where=str(folder), fix=fix)


def verify(folder: Path) -> dict[str, Any] | None:
    """Reads every file that the manifest lists, and compares.

    Returns:
        The manifest, or None for a folder without one: somebody else's, of which nothing is known.

    Raises:
        UserError: there is no such folder, or it is a checkpoint.
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

"""An adapter becomes part of its base's weights: merged in float32, written, proven in a fresh process, then named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.compress import card, parity
from tunekit.compress.combine import Combination, check, combined
from tunekit.compress.dtypes import base_dtype, disk_dtypes, merged_bytes, round_weights
from tunekit.core.errors import MachineError, UserError, out_of_memory
from tunekit.core.files import sha256_file, sha256_json, write_json
from tunekit.core.front_matter import licence_files, license_of
from tunekit.core.progress import Screen
from tunekit.core.registry import QUANTIZERS
from tunekit.model import artefact, kbit
from tunekit.model.heads import refuse_scores
from tunekit.model.names import resolve_name
from tunekit.model.quiet import hushed
from tunekit.model.restore import Artefact, attach, find, load_base, load_tokenizer, loadable
from tunekit.model.save import staged
from tunekit.model.tokenizer import embedding_rows, load_config
from tunekit.train.disk import SLACK, SMALL_FILES, free_bytes, plain_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROOF = "merge.json"
QUANTIZED = (
    "the base was quantized for the training: the adapter is merged into its full-precision weights, because rounding "
    "the sum to few bits would change what was learned"
)
_BEFORE_TEXT = "its learned tokens or keys stand before the text, and no weight of the base can hold them"
_OF_INPUT = "what it adds depends on the input through a network of its own, and no weight of the base can hold that"
NOT_MERGEABLE = {
    **dict.fromkeys(
        ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE"), _BEFORE_TEXT
    ),
    **dict.fromkeys(("LILY", "POLY", "XLORA", "SHADOW", "TUNEKIT_BOTTLENECK"), _OF_INPUT),
    "ADAPTION_PROMPT": "it adds attention to learned tokens, and no weight of the base can hold them",
    "BEFT": "PEFT merges it only into layers that have a bias of their own",
}
"""PEFT's kinds that cannot become part of a base's weights, and why."""


@dataclass(frozen=True)
class Request:
    """What is merged into what.

    Args:
        folder: of a run or an adapter.
        target: where the merged model goes; new or empty.
        dtype: of the merged weights; None for the base's own.
        rows: the run's held-out rows, asked for when they are needed; empty for the embedded world's.
        combination: further adapters, and how they are weighed.
        noted: the run's record tells of it; a step on the way to something else is not worth a line.
    """

    folder: Path
    target: Path
    dtype: str | None = None
    rows: Callable[[], Sequence[Any]] = tuple
    combination: Combination | None = None
    noted: bool = True


def merge(request: Request, screen: Screen) -> dict[str, Any]:
    """Merges, writes, proves, and puts the folder in its place; or leaves nothing behind.

    Returns:
        The proof, as in merge.json.

    Raises:
        UserError: a kind that cannot be merged, a whole model, a target that is not empty.
        NotProvenError: the merged model is not the adapter on its base.
        MachineError: damaged files, or no room.
    """
    found = find(request.folder)
    refuse_scores(found, "take it as it is: `reward: [{model: ...}]`; or train it without an adapter")
    mergeable(found)
    if request.target.exists() and (not request.target.is_dir() or any(request.target.iterdir())):
        raise UserError("the folder exists already", where=str(request.target), fix="name another with --output")
    assert found.base is not None
    full_precision(found)
    dtype = request.dtype or base_dtype(found)
    if request.combination is not None:
        check([found, *map(find, request.combination.folders)], request.combination)
    if found.quantize:
        screen.say(QUANTIZED)
    _ask_for_room(found, request)
    with staged(request.target) as staging, hushed(), combined(found, request.combination) as joined:
        proof = _proven(request, joined, dtype, staging, screen)
    if request.combination is None and request.noted:
        try:
            card.note(found, proof, request.target.name)
        except OSError as error:  # a run of somebody else's may be read and not written
            screen.warn(f"the run's record cannot be written, so it does not list this merge: {error.strerror}")
    return proof


def _proven(request: Request, found: Artefact, dtype: str, staging: Path, screen: Screen) -> dict[str, Any]:
    import torch

    assert found.base is not None
    with screen.step("merging"):
        tokenizer = load_tokenizer(found)
        model = merged_model(attach(load_base(found, dtype="float32"), found))
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        rows = embedding_rows(model.config)
        round_weights(model, dtype, {} if request.dtype else disk_dtypes(found))
        licence = write(model, tokenizer, found, staging)
        del model  # the fresh process needs the room
    with screen.step("proving, in a fresh process"):
        held_out = request.rows()
        prompts = parity.fitted(held_out or parity.world_prompts(tokenizer), positions)
        threads, quantized = torch.get_num_threads(), trains_here(found)
        answer = parity.measure(found.folder, staging, dtype, prompts, threads=threads, quantized=quantized)
    parity.judge(answer)
    source = "the run's held-out rows" if held_out else "the embedded world"
    proof = {"base": found.base.name, "adapter": found.kind, "rows": source, "limits": parity.limits(answer)} | answer
    write_json(staging / PROOF, proof)
    card.tell(found, proof, staging, licence, alone=request.combination is None)
    facts = {"base": base_facts(found), "merged": found.kind, "rows": rows, "dtype": request.dtype}
    facts["adapter"] = adapter_digest(found) if request.combination is None else None
    artefact.write_manifest(staging, facts, tokenizer)
    return proof


def _ask_for_room(found: Artefact, request: Request) -> None:
    """Looks whether the merged weights can be written.

    Raises:
        MachineError: there is less room.
    """
    needed, free = int(SLACK * merged_bytes(found, request.dtype)) + SMALL_FILES, free_bytes(request.target)
    if free < needed:
        what = f"no room for the merged model: {plain_size(needed)} needed, {plain_size(free)} free"
        raise MachineError(what, where=str(request.target.parent), fix="free space, or name another folder: --output")


def adapter_digest(found: Artefact) -> str:
    """Hex sha256 over the names and contents of an adapter's files; its card and its manifest do not count."""
    files = (path for path in sorted(found.folder.iterdir()) if path.is_file())
    return sha256_json({p.name: sha256_file(p) for p in files if p.name not in (artefact.CARD, artefact.MANIFEST)})


def mergeable(found: Artefact) -> None:
    """Refuses what cannot become part of a base's weights, by its configuration alone.

    Raises:
        UserError: with the reason.
    """
    if found.adapter is None:
        raise UserError("this is a whole model: there is no adapter to merge", where=str(found.folder))
    loadable(found)
    kind, why = found.kind_word, NOT_MERGEABLE.get(found.kind)
    if found.adapter.get("alora_invocation_tokens"):
        kind, why = "activated LoRA", "it is on only after its invocation tokens, and weights are always on"
    if found.adapter.get("layer_replication"):
        kind, why = "layer-replicating", "several of its layers share one of the base, and each would change it"
    if why is not None:
        raise UserError(f"an adapter of kind {kind} cannot be merged: {why}", where=str(found.folder),
                        fix="use it as it is, on its base: PEFT loads it")  # fmt: skip


def full_precision(found: Artefact) -> None:
    """Refuses a base whose weights on the disk are quantized already.

    Raises:
        UserError: there is nothing of full precision to merge into.
    """
    assert found.base is not None
    if getattr(load_config(found.base), "quantization_config", None) is not None:
        raise UserError(
            f"the weights of '{found.base.name}' are quantized on the disk: merging would round what was learned away",
            where=str(found.folder),
            fix="train on the model that they were quantized from, with model.quantize, and merge that adapter",
        )


def trains_here(found: Artefact) -> bool:
    """Whether the base can be quantized on this machine as it was for the training."""
    if not found.quantize:
        return False
    kind = str(found.quantize["kind"])
    return "cpu" in QUANTIZERS.load(kind).DEVICES and not kbit.missing_packages(kind)


def base_facts(found: Artefact) -> Mapping[str, Any]:
    """What the merged model's manifest says of the base."""
    assert found.base is not None
    return found.base_facts or artefact.base_facts(found.base, seed=0, dtype="float32")


def merged_model(model: Any) -> PreTrainedModel:
    """The plain model with the adapter in its weights.

    An adapter on one of two tied tables changes that one alone: then the tie is broken, for a merge would write into
    both. Where both come out the same they stay tied.

    Args:
        model: a PEFT model in float32; it is used up.

    Raises:
        UserError: PEFT cannot merge this adapter.
    """
    import torch

    _break_tie(model)
    # the kinds that are known not to merge were refused by name; those of a newer PEFT may have no such method
    kind = str(getattr(model.active_peft_config.peft_type, "value", model.active_peft_config.peft_type))
    no_way = f"an adapter of kind {kind} cannot be merged"
    if not hasattr(model, "merge_and_unload"):
        raise UserError(f"{no_way}: PEFT has no way to", fix="use it as it is, on its base: PEFT loads it")
    try:
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        what = f"{no_way}: {str(error).strip().splitlines()[0]}"
        raise UserError(what, fix="use it as it is, on its base: PEFT loads it") from error
    text = merged.config.get_text_config()
    inner, outer = merged.get_input_embeddings(), merged.get_output_embeddings()
    if outer is not None and text.tie_word_embeddings and inner.weight is not outer.weight:
        if torch.equal(inner.weight, outer.weight):
            outer.weight = inner.weight
        else:
            merged.config.tie_word_embeddings = text.tie_word_embeddings = False
    return merged


def _break_tie(model: Any) -> None:
    import torch
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = model.get_base_model()
    tables = [plain.get_input_embeddings(), plain.get_output_embeddings()]
    if tables[1] is None:
        return
    adapted = [isinstance(table, BaseTunerLayer) and not isinstance(table, TrainableTokensLayer) for table in tables]
    inner, outer = (table.get_base_layer() if isinstance(table, BaseTunerLayer) else table for table in tables)
    if any(adapted) and inner.weight is outer.weight:
        outer.weight = torch.nn.Parameter(outer.weight.detach().clone(), requires_grad=False)


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, found: Artefact, folder: Path) -> dict[str, Any]:
    """Writes a plain folder: weights, tokenizer, the adapter's generation config, the base's licence texts.

    Returns:
        The base's licence fields, for the card.
    """
    assert found.base is not None
    model.config.use_cache = True
    dtype = model.config.dtype
    model.save_pretrained(folder)  # writes down the type of the first tensor
    if model.config.dtype != dtype:
        model.config.dtype = dtype
        model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    generation = found.folder / "generation_config.json"
    if generation.exists():  # with the ids that end a turn
        shutil.copyfile(generation, folder / generation.name)
    base = artefact.base_folder(resolve_name(found.base.name), found.base.revision)
    papers = licence_files(base)
    for path in papers:
        shutil.copyfile(path, folder / path.name)
    return license_of(base, beside={path.name for path in papers})

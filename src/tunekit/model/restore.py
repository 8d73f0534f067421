"""Loading a finished model, or an adapter on its base: verified first, and by what its manifest says of the base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError, UserError, first_line
from tunekit.core.registry import QUANTIZERS
from tunekit.model import bottleneck, kbit
from tunekit.model.adapt import make_ready
from tunekit.model.artefact import check_base, check_tokenizer, fresh_base, verify
from tunekit.model.names import resolve_name
from tunekit.model.tokenizer import embedding_rows, hub_errors, load_config
from tunekit.recipe.schema import ModelBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# PEFT computes these starting points anew when it loads the adapter, and not to the same numbers
_NOT_REPEATABLE = ("pissa_niter_", "lora_ga", "corda")


@dataclass(frozen=True)
class Artefact:
    """A model folder, verified, before anything is loaded.

    Args:
        folder: where config or adapter lie.
        manifest: what `artefact.verify` returned; None for somebody else's folder.
        adapter: the content of adapter_config.json; None for a whole model.
        base: the model that the adapter belongs on.
    """

    folder: Path
    manifest: Mapping[str, Any] | None
    adapter: Mapping[str, Any] | None
    base: ModelBlock | None

    @property
    def kind(self) -> str:
        """PEFT's name of the adapter's kind, such as ``LORA``; empty for a whole model."""
        return str(self.adapter["peft_type"]) if self.adapter else ""

    @property
    def kind_word(self) -> str:
        """The kind in words for people, such as ``lora``."""
        return self.kind.removeprefix("TUNEKIT_").lower()

    @property
    def base_facts(self) -> Mapping[str, Any]:
        """What the manifest says of the base; empty for somebody else's folder."""
        return (self.manifest or {}).get("base") or {}

    @property
    def quantize(self) -> Mapping[str, Any] | None:
        """The recipe's ``model.quantize`` of the training, None when the base was not quantized."""
        return (self.manifest or {}).get("quantize")


@dataclass(frozen=True)
class Restored:
    """A loaded model in evaluation mode, with what belongs to it. ``base_name`` is None for a whole model."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base_name: str | None
    manifest: Mapping[str, Any] | None
    folder: Path
    adapter: Mapping[str, Any] | None = field(default=None)


def find(folder: Path) -> Artefact:
    """The artefact of a run folder, or in a model folder; every file is compared with the manifest.

    Raises:
        UserError: nothing to load there.
        MachineError: files that are missing or not as they were saved.
    """
    if (folder / "plan.json").exists():
        if not (folder / "model").is_dir():
            fix = f"finish the run: tunekit resume {folder}"
            raise UserError("the run has no finished model", where=str(folder), fix=fix)
        folder = folder / "model"
    manifest = verify(folder)
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        if not (folder / "config.json").exists():
            fix = "name a run folder, or one saved by transformers or PEFT"
            raise UserError("there is no model in this folder", where=str(folder), fix=fix)
        return Artefact(folder, manifest, None, None)
    try:
        adapter: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = adapter["peft_type"]
    except (ValueError, KeyError):
        raise UserError("not a configuration of PEFT", where=str(path), fix="save the adapter again") from None
    known = (manifest or {}).get("base") or {}
    name = known.get("name") or adapter.get("base_model_name_or_path")
    if not name:
        raise UserError(f"the {kind} adapter does not say which base it belongs on", where=str(path),
                        fix="write the base's name as base_model_name_or_path into that file")  # fmt: skip
    revision = known["revision"] if known else adapter.get("revision")
    return Artefact(folder, manifest, adapter, ModelBlock(name=str(name), revision=revision))


def restore(folder: Path, *, dtype: str = "auto", quantized: bool = False) -> Restored:
    """Loads what a run folder or a model folder holds, on the CPU, in evaluation mode.

    Args:
        folder: a run's, a whole model's or an adapter's.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: as the weights lie on the disk.
        quantized: load the base of an adapter in the 4 or 8 bits that it was trained on.

    Raises:
        UserError: nothing to load there, or the base is not that of the training.
        MachineError: files that are missing or not as they were saved.
    """
    found = find(folder)
    if found.base is None:
        model = _load(str(found.folder), None, dtype)
    else:
        model = attach(load_base(found, dtype=dtype, quantized=quantized), found)
    name = found.base.name if found.base else None
    return Restored(model.eval(), load_tokenizer(found), name, found.manifest, found.folder, found.adapter)


def load_tokenizer(found: Artefact) -> PreTrainedTokenizerBase:
    """The artefact's own tokenizer; the base's, where an adapter's folder has none.

    Raises:
        MachineError: it is not the one that was saved.
    """
    from transformers import AutoTokenizer

    own = (found.folder / "tokenizer_config.json").exists() or found.base is None
    if own or found.base is None:
        place, revision = str(found.folder), None
    else:
        place, revision = resolve_name(found.base.name).location, found.base.revision
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        place, revision=revision, trust_remote_code=False
    )
    if found.manifest is not None:
        check_tokenizer(tokenizer, found.manifest, found.folder)
    return tokenizer


def load_base(
    found: Artefact, *, dtype: str = "auto", quantized: bool = False, options: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """The base of an adapter, with as many embedding rows as the adapter was trained with; or a whole model by name.

    Args:
        found: the artefact.
        dtype, quantized: as for `restore`.
        options: further arguments of `from_pretrained`, such as those of another quantization.

    Raises:
        UserError: it is not the base of the training.
        MachineError: it is not there.
    """
    import torch

    assert found.base is not None, found.folder
    check_base(found.base_facts, found.base)
    name = resolve_name(found.base.name)
    if name.random:
        seed, made = found.base_facts.get("seed") or 0, found.base_facts.get("dtype") or "float32"
        model = fresh_base(found.base, seed=seed, dtype=made)
        model = model if dtype == "auto" else model.to(getattr(torch, dtype))
    else:
        options = {**(_quantization(found, dtype) if quantized else {}), **(options or {})}
        with hub_errors(name):
            model = _load(name.location, found.base.revision, dtype, **options)
    rows = (found.manifest or {}).get("rows") or (_saved_rows(found.folder, model) if found.adapter else None)
    if rows is not None and rows != embedding_rows(model.config):
        _resize(model, rows)
    if kbit.is_quantized(model):
        kbit.prepare(model, checkpointing=False)
    model.config.use_cache = True
    return model


def _resize(model: PreTrainedModel, rows: int) -> None:
    """New rows are zero, the same in each load: the adapter's file brings what they are."""
    import torch

    before = embedding_rows(model.config)
    model.resize_token_embeddings(rows, mean_resizing=False)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for table in filter(None, tables):
            table.weight[before:] = 0
            if getattr(table, "bias", None) is not None:
                table.bias[before:] = 0


def _load(location: str, revision: str | None, dtype: str, **options: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        location, revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
    )
    return model


def _quantization(found: Artefact, dtype: str) -> dict[str, Any]:
    import torch

    if not found.quantize or found.base is None:
        return {}
    block_type = QUANTIZERS.load(str(found.quantize["kind"])).Config
    block = block_type.model_validate_json(json.dumps(found.quantize))  # a list there is a tuple here
    compute = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    return kbit.load_options(block, compute, "cpu", load_config(found.base))


def _saved_rows(folder: Path, model: PreTrainedModel) -> int | None:
    """Rows of the input embedding in an adapter's file, None when it holds none."""
    from safetensors import safe_open

    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    path = folder / ADAPTER_WEIGHTS
    if not path.exists():
        return None
    with safe_open(str(path), "pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            if key.endswith((f"{name}.weight", f"{name}.base_layer.weight")):
                return int(file.get_slice(key).get_shape()[0])
    return None


def attach(base: PreTrainedModel, found: Artefact, *, name: str = "default") -> PreTrainedModel:
    """Puts an adapter on its base; every tensor of its file must find its place, and every place its tensor.

    Raises:
        UserError: the adapter does not fit the base, or cannot be loaded again exactly.
        MachineError: its file lacks tensors, or has others.
    """
    from peft import PeftModel

    rows = embedding_rows(base.config)
    loadable(found)
    bottleneck.register()
    try:
        model = PeftModel.from_pretrained(base, str(found.folder), adapter_name=name, torch_device="cpu")
    except (ValueError, RuntimeError, KeyError, AttributeError, IndexError) as error:
        what = f"the {found.kind_word} adapter does not fit the base '{found.base.name if found.base else ''}'"
        raise UserError(f"{what}: {first_line(error)}", where=str(found.folder)) from error
    make_ready(model)
    check_tensors(model, found, name, grown=rows != found.base_facts.get("rows", rows))
    return model.eval()


def loadable(found: Artefact) -> None:
    """Refuses an adapter whose starting point PEFT computes anew, to other numbers, when it is loaded.

    Raises:
        UserError: with the way out.
    """
    start = str((found.adapter or {}).get("init_lora_weights"))
    if start.startswith(_NOT_REPEATABLE):
        raise UserError(
            f"the adapter was saved with init_lora_weights={start}: loading it would compute that start anew, and "
            "differently",
            where=str(found.folder / ADAPTER_CONFIG),
            fix="save it with path_initial_model_for_weight_conversion, as a plain LoRA of twice the rank",
        )


def check_tensors(model: PreTrainedModel, found: Artefact, name: str, *, grown: bool) -> None:
    """PEFT passes over tensors that are missing in an adapter's file, and over those that it does not know.

    Args:
        model: with the adapter loaded.
        found: the adapter's folder.
        name: of the adapter in the model.
        grown: whether embedding rows were added, which must be in the file then.

    Raises:
        MachineError: the first of them, by name.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    path = found.folder / ADAPTER_WEIGHTS
    with safe_open(str(path), "pt") as file:
        there = set(file.keys())
    wanted = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=grown))
    known = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=True))
    for faults, what in ((wanted - there, "is missing in"), (there - known, "is not one of this model's, in")):
        if faults:
            count = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise MachineError(f"the tensor '{min(faults)}' {what} the adapter's file{count}", where=str(path),
                               fix="is this the base that it was trained on, and the file whole?")  # fmt: skip

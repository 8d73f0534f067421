"""The matrix of adapters: every kind on tiny trained models, full and quantized, and what it does there."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

STEPS, ROWS, LENGTH = 30, 8, 24
SIZES = {
    "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.08, "tie_word_embeddings": False, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GATED = {"num_key_value_heads": 2, "intermediate_size": 128}
ARCHS: dict[str, dict[str, Any]] = {
    "llama": GATED,
    "qwen3": GATED | {"head_dim": 16},
    "gpt2": dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
}
# what a kind needs to be told, or to be told smaller on matrices of 32 x 64
KEYS: dict[str, dict[str, Any]] = {
    "adalora": {"every": 1},  # so that ranks are taken away before it is resumed
    "c3a": {"block_size": 32},
    "cartridge": {"num_virtual_tokens": 8},
    "freeze": {"last_layers": 1},
    "osf": {"effective_rank": 8},
    "road": {"group_size": 32},
    "shadow": {"targets": r".*(layers|h)\.\d+"},
    "shira": {"r": 8},
    "trainable_tokens": {"tokens": list(range(3, 64))},
    "vblora": {"vector_length": 32},
    "waveft": {"n_frequency": 512},
}
# of kinds that have no rate of their own, or one that is too careful for 30 steps (AdaLoRA's numbers and
# LLaMA-Adapter's gates begin at 0)
RATES = {
    **dict.fromkeys(("waveft",), 1e-3),
    **dict.fromkeys(
        ("adalora", "bottleneck", "deft", "delora", "glora", "gralora", "osf", "peanut", "psoft", "shadow", "tinylora",
         "vblora"), 1e-2,
    ),
    **dict.fromkeys(
        ("beft", "c3a", "cartridge", "frod", "hira", "llama_adapter", "pvera", "road", "supertuning", "unilora"), 1e-1
    ),
}  # fmt: skip

LIBRARY_ERRORS = (
    RuntimeError, ValueError, TypeError, AttributeError, LookupError, ImportError, AssertionError,
)  # fmt: skip


@dataclass
class Cell:
    """One kind on one model: what was measured. Differences are the largest of the logits."""

    kind: str
    arch: str
    bits: int | None = None
    refused: str = ""
    crash: str = ""
    parameters: int = 0
    rate: float = 0.0
    losses: list[float] = field(default_factory=list)
    without_gradient: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    init: float = math.nan
    moved: float = math.nan
    disabled: float = math.nan
    merged: float | str = math.nan
    resumed: float = math.nan
    went_on: float = math.nan
    reloaded: float | str = math.nan
    folder: Path | None = None
    logits: Any = None

    @property
    def fell(self) -> bool:
        """Whether the loss fell clearly."""
        return bool(self.losses) and sum(self.losses[-3:]) / 3 < 0.95 * self.losses[0]


def rows(shift: int, count: int = ROWS):
    """Tokens (count, LENGTH): each is three times the one before, plus ``shift``."""
    import torch

    found = [torch.randint(3, 64, (count, 1), generator=torch.Generator().manual_seed(0))]
    for _ in range(LENGTH - 1):
        found.append((found[-1] * 3 + shift) % 61 + 3)
    return torch.cat(found, 1)


def loss_of(model, tokens):
    """Mean cross-entropy of the next token; virtual tokens before the row are passed over."""
    import torch

    logits = model(input_ids=tokens, use_cache=False).logits[:, -tokens.shape[1] :].float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def logits_of(model):
    """(ROWS, LENGTH, V) in evaluation mode."""
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=rows(5), use_cache=False).logits[:, -LENGTH:].float()


def far(a, b) -> float:
    """The largest difference."""
    return float((a - b).abs().max())


def plan_for(kind: str, model: dict[str, Any], **keys: Any):
    """A plan whose adapter is of this kind, on full weights."""
    from tunekit.plan.hardware import probe
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.document import parse
    from tunekit.recipe.load import check

    recipe = {
        "method": "sft",
        "model": model,
        "adapter": {"kind": kind} | KEYS.get(kind, {}) | keys,
        "data": {"train": [{"path": "builtin:instructions"}]},
        "train": {"max_steps": STEPS, "precision": "fp32"},
    }
    return resolve(check(parse(json.dumps(recipe), "recipe.yaml")), Path("recipe.yaml"), probe())


class Matrix:
    """Base models in a folder, and the cells measured on them.

    Args:
        folder: empty; bases and adapters are written there, for a fresh process to read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = cache(self._base)
        self.quantized = cache(self._quantized)
        self.cell = cache(self.measure)

    def place(self, arch: str) -> Path:
        """Where a base model lies."""
        return self.folder / f"base_{arch}"

    def _base(self, arch: str):
        """Trained until it knows one task; adapters are trained on another."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        names = {name: value for name, value in SIZES.items() if arch != "gpt2" or name != "head_dim"}
        config = AutoConfig.for_model(arch.removesuffix("_tied"), **names | ARCHS[arch.removesuffix("_tied")])
        model = AutoModelForCausalLM.from_config(config)
        _optimize(model, torch.optim.AdamW(model.parameters(), lr=3e-3), lambda: loss_of(model, rows(1, 16)), 150)
        model.config.use_cache = False
        model.save_pretrained(self.place(arch))
        model.name_or_path = str(self.place(arch))
        return model.eval()

    def _quantized(self, arch: str, bits: int):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from tunekit.core.registry import QUANTIZERS
        from tunekit.model import kbit

        self.base(arch)
        block = QUANTIZERS.load("bnb").Config(kind="bnb", bits=bits)
        options = kbit.load_options(block, torch.float32, "cpu", AutoConfig.from_pretrained(self.place(arch)))
        model = AutoModelForCausalLM.from_pretrained(self.place(arch), dtype=torch.float32, **options)
        model.config.use_cache = False
        kbit.prepare(model, checkpointing=False)
        return model.eval()

    def fresh(self, arch: str, bits: int | None = None):
        """A model without an adapter, of its own."""
        model = self.base(arch) if bits is None else self.quantized(arch, bits)
        own = copy.deepcopy(model)
        own.name_or_path = str(self.place(arch))
        return own

    def adapted(self, kind: str, arch: str, bits: int | None = None, **keys: Any):
        """(model with the kind's adapter, its plan), as `load_model` makes them.

        Raises:
            UserError: the kind does not go with the model.
        """
        from transformers import set_seed

        from tunekit.model.adapt import with_adapter

        plan = plan_for(kind, {"name": str(self.place(arch)), "tokenizer": "builtin:tiny"}, **keys)
        set_seed(0)
        return with_adapter(self.fresh(arch, bits), plan, STEPS), plan

    def measure(self, kind: str, arch: str, bits: int | None = None) -> Cell:
        """Trains a cell and measures it; errors other than a refusal are its ``crash``.

        Args:
            kind: of adapter.
            arch: of the base.
            bits: of its weights, of which only beginning and learning are measured; None: full.
        """
        from tunekit.core.errors import TunekitError

        cell = Cell(kind, arch, bits)
        try:
            self._fill(cell, whole=bits is None)
        except TunekitError as error:
            cell.refused = str(error)
        except LIBRARY_ERRORS as error:
            cell.crash = f"{type(error).__name__}: {str(error).strip()[:200]}"
        return cell

    def _fill(self, cell: Cell, *, whole: bool) -> None:
        import torch

        from tunekit.core.registry import ADAPTERS

        before = logits_of(self.base(cell.arch) if cell.bits is None else self.quantized(cell.arch, cell.bits))
        model, plan = self.adapted(cell.kind, cell.arch, cell.bits)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        cell.parameters = sum(p.numel() for p in trained.values())
        cell.rate = RATES.get(cell.kind, plan.recipe.train.learning_rate)
        cell.init = far(logits_of(model), before)
        trainer = Trainer(model, ADAPTERS.load(cell.kind), cell.rate)
        cell.losses += trainer.train(3)
        cell.without_gradient = [name for name in trained if name not in trainer.touched]
        cell.not_finite = sorted(trainer.not_finite)
        if whole:
            self._resume(cell, trainer)
        cell.losses += trainer.train(STEPS - len(cell.losses))
        cell.logits = logits_of(model)
        cell.moved = far(cell.logits, before)
        if not whole:
            return
        if hasattr(model, "disable_adapter"):
            with model.disable_adapter():
                cell.disabled = far(logits_of(model), before)
            assert torch.equal(logits_of(model), cell.logits), "enabled again, the adapter is another"
        cell.folder = self.folder / f"{cell.kind}_{cell.arch}"
        model.save_pretrained(cell.folder)
        cell.merged = _merged(model, cell.logits)

    def _resume(self, cell: Cell, trainer: Trainer) -> None:
        """A second model takes over after three steps; both go three steps further."""
        import torch

        from tunekit.model.adapt import restore_trained, trained_state

        kind = trainer.kind
        state = copy.deepcopy(trained_state(trainer.model, kind))
        model, _ = self.adapted(cell.kind, cell.arch, cell.bits)
        restore_trained(model, state, kind)
        cell.resumed = far(logits_of(model), logits_of(trainer.model))
        other = Trainer(model, kind, cell.rate)
        other.optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))
        other.step = trainer.step
        chance = torch.get_rng_state()
        cell.losses += trainer.train(3)
        torch.set_rng_state(chance)
        other.train(3)
        after, its = trained_state(trainer.model, kind), trained_state(model, kind)
        cell.went_on = max(far(after[name].float(), its[name].float()) for name in after)

    def reload(self, cells: list[Cell]) -> None:
        """Loads the saved folders in one fresh process, as tunekit loads them, and compares."""
        from safetensors.torch import load_file

        wanted = [cell for cell in cells if cell.folder]
        job = [[cell.arch, str(self.place(cell.arch)), str(cell.folder)] for cell in wanted]
        result = self.folder / "reloaded.safetensors"
        command = [sys.executable, __file__, str(result)]
        done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        faults, found = json.loads(done.stdout.splitlines()[-1]), load_file(result)
        for cell in wanted:
            name = str(cell.folder)
            cell.reloaded = faults[name] if name in faults else far(found[name], cell.logits)


def run_whole(kind: str, folder: Path) -> str:
    """What becomes of three steps of `tunekit sft` with this kind: the status of its record."""
    from tunekit.core.progress import Silent
    from tunekit.plan.hardware import probe
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.document import parse
    from tunekit.recipe.load import check
    from tunekit.train.pipeline import Job, run

    data = {"train": [{"path": "builtin:instructions", "limit": 64}], "eval": {"count": 8}, "max_length": 96}
    train = {"max_steps": 10 if kind == "adalora" else 3, "batch_size": 8, "threads": 1, "save_every": 2}
    recipe = {
        "method": "sft",
        "model": {"name": "builtin:random?layers=2&hidden=64&heads=4"},
        "adapter": {"kind": kind} | KEYS.get(kind, {}),
        "data": data | {"cache": False},
        "train": train,
        "output": {"dir": str(folder / "run")},
    }
    text = json.dumps(recipe)
    plan = resolve(check(parse(text, "recipe.yaml")), folder / "recipe.yaml", probe())
    return run(Job(plan, text), Silent()).status


def unmeasured(names) -> list[str]:
    """Kinds that are neither refused nor in the table of what they can do."""
    from tunekit.core.registry import ADAPTERS
    from tunekit.plan.allowed import is_measured

    return [name for name in names if not is_measured(name) and not hasattr(ADAPTERS.load(name), "REFUSED")]


class Trainer:
    """Plain AdamW, and what the pipeline calls of a kind's plug-in."""

    def __init__(self, model, kind, rate: float) -> None:
        import torch

        self.model, self.kind, self.step = model, kind, 0
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(list(self.trained.values()), lr=rate, weight_decay=0)
        self.touched: set[str] = set()
        self.not_finite: set[str] = set()

    def train(self, steps: int) -> list[float]:
        """The loss before each step; further terms of the kind are left out of it."""
        return [self._step() for _ in range(steps)]

    def _step(self) -> float:
        self.model.train()
        loss = loss_of(self.model, rows(5))
        further = getattr(self.kind, "further_loss", lambda model: None)(self.model)
        (loss if further is None else loss + further).backward()
        for name, parameter in self.trained.items():
            if parameter.grad is not None:
                self.touched.add(name)
                if not parameter.grad.isfinite().all():
                    self.not_finite.add(name)
        self.optimizer.step()
        getattr(self.kind, "after_step", lambda model, step: None)(self.model, self.step)
        self.optimizer.zero_grad()
        self.step += 1
        return loss.item()


def _optimize(model, optimizer, loss, steps: int) -> None:
    model.train()
    for _ in range(steps):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()


def _merged(model, logits) -> float | str:
    """How far the merged model is off, or why there is none."""
    from tunekit.core.errors import TunekitError

    if not hasattr(model, "merge_and_unload"):
        return "there is no merge_and_unload"
    try:
        return far(logits_of(model.merge_and_unload()), logits)
    except (TunekitError, *LIBRARY_ERRORS) as error:
        return f"{type(error).__name__}: {str(error).strip()[:100]}"


def _reload() -> None:
    """The fresh process: a list of (arch, base, folder) on stdin, logits to the named file, faults to stdout."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from tunekit.core.errors import TunekitError
    from tunekit.model.restore import attach, find

    bases, found, faults = {}, {}, {}
    for arch, place, folder in json.load(sys.stdin):
        if arch not in bases:
            bases[arch] = AutoModelForCausalLM.from_pretrained(place)
            bases[arch].config.use_cache = False
        artefact = find(Path(folder))
        try:
            if artefact.adapter is None:
                model = AutoModelForCausalLM.from_pretrained(folder)
            else:
                model = attach(copy.deepcopy(bases[arch]), artefact)
            found[folder] = logits_of(model).contiguous()
        except TunekitError as error:
            faults[folder] = str(error)
    save_file(found, sys.argv[1])
    print(json.dumps(faults))


if __name__ == "__main__":
    _reload()

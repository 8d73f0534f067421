"""Every kind of adapter on tiny models: what it does is what `plan/allowed.py` and docs/adapters.md say.

Llama is measured in every run of the tests, with what GPT-2 and quantized weights refuse; the rest is slow.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from matrix_for_tests import KEYS, RATES, Cell, Matrix, plan_for, run_whole, unmeasured

from tunekit.core.errors import UserError
from tunekit.core.registry import ADAPTERS
from tunekit.plan.allowed import allowed

# nothing of the matrix is there to be measured
REFUSED = {"cpt", "lily", "poly", "xlora"}
ANOTHER_OPTIMIZER = {"layerwise"}
MISSING = {kind for kind, module in {"adamss": "sklearn"}.items() if find_spec(module) is None}
KINDS = [kind for kind in ADAPTERS.names if kind not in REFUSED | ANOTHER_OPTIMIZER | MISSING]

QUICK = {*ADAPTERS.files, "c3a", "gralora", "shadow", "unilora"} & set(KINDS)
QUICK_QUANTIZED = {"lora", "ia3", "prompt", "ln_tuning", "hra", "unilora", "delora"}
"""Measured in every run of the tests, on Llama; all else is slow."""

ROUNDED = {"deft", "frod", "hra", "osf"}
"""They begin as the base up to rounding: what they take out of the weights they put back in."""
ELSEWHERE = {
    "cartridge", "multitask_prompt", "p_tuning", "prefix", "prompt",  # the text attends to virtual tokens
    "c3a", "unilora", "vblora",  # PEFT draws their first values at random
}  # fmt: skip
UNUSED = {"shadow": ("shadow_update", "shadow_backbone.default.wte")}
"""What follows the last layer moves a state that nothing reads; nor is anything read of the embeddings GPT-2 gets."""
WRONG_ON = {
    4: {"unilora": "nothing"},
    8: {"deft": "elsewhere", "hra": "elsewhere", "shira": "elsewhere", "vblora": "elsewhere", "unilora": "nothing"},
}
"""Refused because they train, but begin with another output than the quantized base's, or change nothing."""
ROUNDING = 5e-5


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Matrix(tmp_path_factory.mktemp("matrix"))
    torch.set_num_threads(threads)


def check_learns(cell: Cell) -> None:
    """It builds, begins where it says, and learns; no parameter is trained in vain."""
    assert (cell.crash, cell.refused) == ("", ""), cell
    assert cell.parameters > 0
    if cell.kind in ELSEWHERE:
        assert cell.init > 1e-3
    else:
        assert cell.init <= (ROUNDING if cell.kind in ROUNDED else 0), cell.init
    unused = UNUSED.get(cell.kind, ())
    assert [name for name in cell.without_gradient if not any(part in name for part in unused)] == []
    assert cell.not_finite == []
    assert cell.fell, (cell.rate, cell.losses)
    assert cell.moved > 0.1


def check_whole(cell: Cell) -> None:
    """What holds on full weights: disabling, resuming, merging."""
    check_learns(cell)
    if cell.kind != "freeze":  # it has nothing to disable
        assert cell.disabled == 0
    assert (cell.resumed, cell.went_on) == (0, 0)
    if allowed(cell.kind).merges:
        assert not isinstance(cell.merged, str) and cell.merged <= ROUNDING, cell.merged
    else:
        assert isinstance(cell.merged, str), "it merges: the table may say so"


def test_every_kind_is_in_the_table():
    new = unmeasured(ADAPTERS.names)
    assert new == [], f"PEFT has new kinds: measure {new} here, then enter them in plan/allowed.py, or refuse them"


def test_a_new_kind_would_be_noticed(monkeypatch):
    newer = SimpleNamespace(Config=object)
    monkeypatch.setattr(ADAPTERS.__class__, "load", lambda self, name: newer)
    assert unmeasured(["lora", "newest"]) == ["newest"]


def test_the_exceptions_of_the_matrix_are_kinds():
    named = {*REFUSED, *ANOTHER_OPTIMIZER, *ROUNDED, *ELSEWHERE, *UNUSED, *WRONG_ON[4], *WRONG_ON[8], *KEYS, *RATES}
    assert named - set(ADAPTERS.names) == set()
    assert {kind for kind in ADAPTERS.names if hasattr(ADAPTERS.load(kind), "REFUSED")} == REFUSED


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_llama(matrix, kind):
    check_whole(matrix.cell(kind, "llama"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_qwen3(matrix, kind):
    cell = matrix.cell(kind, "qwen3")
    if kind == "llama_adapter":
        assert cell.refused.endswith("an adapter of kind llama_adapter has no form for qwen3")
    else:
        check_whole(cell)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if allowed(kind).conv1d])
def test_gpt2(matrix, kind):
    check_whole(matrix.cell(kind, "gpt2"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not allowed(kind).conv1d])
def test_what_has_no_form_for_gpt2_is_refused(matrix, kind):
    cell = matrix.cell(kind, "gpt2")
    assert cell.crash == ""
    assert any(word in cell.refused for word in ("Conv1D", "nothing to train")), cell.refused


def test_a_fresh_process_loads_what_was_saved(matrix):
    """The same logits, for every kind; and the comparison fires on a changed and on a lost tensor."""
    cells, planted = [matrix.cell(kind, "llama") for kind in sorted(QUICK)], broken(matrix)
    matrix.reload([*cells, *planted])
    assert {cell.kind: cell.reloaded for cell in cells if not same(cell)} == {}
    changed, lost = (cell.reloaded for cell in planted)
    assert changed > 1e-3
    assert "is missing in the adapter's file" in lost


@pytest.mark.slow
def test_a_fresh_process_loads_what_was_saved_of_all_kinds_and_architectures(matrix):
    cells = [matrix.cell(kind, "gpt2") for kind in KINDS if allowed(kind).conv1d]
    cells += [matrix.cell(kind, "qwen3") for kind in KINDS if kind != "llama_adapter"]
    cells += [matrix.cell(kind, "llama") for kind in KINDS if kind not in QUICK]
    matrix.reload(cells)
    assert {(cell.kind, cell.arch): cell.reloaded for cell in cells if not same(cell)} == {}


def same(cell: Cell) -> bool:
    """To rounding: some processors sum in an order that depends on where a file's numbers lie in memory."""
    return isinstance(cell.reloaded, float) and cell.reloaded < 1e-5


def broken(matrix) -> list[Cell]:
    """A saved LoRA with one tensor of zeros, and one without that tensor."""
    from safetensors.torch import load_file, save_file

    cell, found = matrix.cell("lora", "llama"), []
    for lost in (False, True):
        folder = matrix.folder / f"broken_{lost}"
        folder.mkdir()
        (folder / "adapter_config.json").write_bytes((cell.folder / "adapter_config.json").read_bytes())
        values = load_file(cell.folder / "adapter_model.safetensors")
        name = min(key for key in values if "lora_B" in key)
        value = values.pop(name)
        save_file(values if lost else values | {name: value * 0}, folder / "adapter_model.safetensors")
        found.append(replace(cell, folder=folder))
    return found


def quantized(kind: str, bits: int) -> bool:
    return allowed(kind).four if bits == 4 else allowed(kind).eight


ON_QUANTIZED = [
    pytest.param(kind, bits, marks=() if kind in QUICK_QUANTIZED else pytest.mark.slow)
    for kind in KINDS
    for bits in (4, 8)
]


@pytest.mark.parametrize(("kind", "bits"), ON_QUANTIZED)
def test_quantized_llama(matrix, kind, bits):
    """The table in both directions: what it allows works; what it refuses fails, or would be wrong silently."""
    pytest.importorskip("bitsandbytes")
    cell = matrix.cell(kind, "llama", bits)
    if quantized(kind, bits):
        check_learns(cell)
        return
    wrong = WRONG_ON[bits].get(kind)
    if wrong is None:
        assert cell.crash or cell.refused, "it works: the table may say so"
    elif wrong == "nothing":
        assert cell.moved == 0 and not cell.fell
    else:
        assert cell.init > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_run(kind, tmp_path):
    assert run_whole(kind, tmp_path) == "done"


def test_packages_that_are_missing_are_named(matrix):
    matrix.base("llama")
    for kind in (*sorted(MISSING), "layerwise"):
        cell = matrix.cell(kind, "llama")
        assert "needs" in cell.refused or cell.parameters, cell


def test_there_is_no_causal_model_of_an_encoder(tmp_path):
    """Encoders come with their own tasks; until then they are refused, whatever the adapter."""
    from transformers import DistilBertConfig

    from tunekit.model.adapter_facts import Counter

    DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=64).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="DistilBertConfig"):
        Counter(str(tmp_path)).trained("lora")


def test_an_encoder_that_transformers_would_take_is_refused(tmp_path):
    """transformers lets an encoder be a causal model, with attention to both sides."""
    from transformers import BertConfig, BertForMaskedLM

    from tunekit.model.load import load_model
    from tunekit.train.isolation import check_causal

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=2048, **sizes)).save_pretrained(tmp_path)
    model = load_model(plan_for("lora", {"name": str(tmp_path), "tokenizer": "builtin:tiny"})).model
    with pytest.raises(UserError, match="'bert' is not a causal language model here"):
        check_causal(model, nullcontext())

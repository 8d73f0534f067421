"""Tiny models of many families, documents, and what transformers itself says of each document alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

SIZES = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 128,
}  # fmt: skip
WINDOW = 8
LENGTHS = (11, 19, 7, 19)  # two of a length, two longer than the window
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SCALAR = {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}
MLA = {
    "n_routed_experts": 4, "n_shared_experts": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 12, "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1, **EXPERTS,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"head_dim": 16, "sliding_window": WINDOW},
    "gemma2": SCALAR | {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0},  # low enough to bend
    "gemma3_text": SCALAR,
    "gpt2": {},
    "phi3": {"sliding_window": WINDOW},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "qwen2": {},
    "phi": {},
    "cohere": {},
    "cohere2": {"sliding_window": WINDOW},
    "granite": {"logits_scaling": 8.0, "attention_multiplier": 0.1},
    "starcoder2": {"sliding_window": WINDOW},
    "olmo2": {},
    "glm4": {"head_dim": 16},
    "gpt_neox": {},
    "smollm3": {},
    "gpt_bigcode": {},
    "stablelm": {},
    "nemotron": {},
    "falcon": {},
    "bloom": {"n_head": 4, "n_layer": 2},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "gptj": {"rotary_dim": 8},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16, "sliding_window": WINDOW},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 32},
    "qwen3_moe": EXPERTS | {"num_experts": 4, "head_dim": 16},
    "deepseek_v2": MLA | {"topk_method": "greedy", "head_dim": 8},
    "deepseek_v3": MLA,
    "phimoe": {"num_local_experts": 4},
    "llama4_text": {"num_local_experts": 4, "head_dim": 16, "intermediate_size_mlp": 96},
    "modernbert-decoder": {"local_attention": 2 * WINDOW, "global_attn_every_n_layers": 2},
    "mamba": {"state_size": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {
        "lru_width": 64, "head_dim": 16, "attention_window_size": 64, "block_types": ["recurrent", "attention"],
    },
}  # fmt: skip
RECIPE = """\
method: sft
model: {name: "builtin:random"}
data: {train: [{path: rows.jsonl}]}
train: {max_steps: 1}
"""


@cache
def any_plan():
    """A plan with ``model.attention: auto``; the model that is built is another."""
    from tunekit.plan.hardware import probe
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.document import parse
    from tunekit.recipe.load import check

    return resolve(check(parse(RECIPE, "recipe.yaml")), Path("recipe.yaml"), probe())


def made_flat(model):
    """Why a model runs padded, empty when it is now ready for flat rows; without mixed precision."""
    from contextlib import nullcontext

    from tunekit.train.isolation import run_flat

    return run_flat(model, any_plan(), nullcontext())


def build(kind: str, **changes):
    """A random model; its vectors are moved off their ones and zeros, its matrices are large enough to matter."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | FAMILIES[kind] | changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn_like(parameter) * 0.05)
            else:
                parameter.mul_(2)
    return model


def documents(lengths=LENGTHS, seed=1):
    """Rows as the data code makes them; the first three tokens of each are not trained."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(4, 97, (length,), generator=generator).tolist()
        row = {"number": number, "length": length, "input_ids": ids, "turn_ends": [length - 1], "truncated": False}
        labels = [-100] * min(3, length) + ids[3:]
        rows.append(row | {"labels": labels, "prompt_tokens": 3, "prompt": "", "reference": ""})
    return rows


def gradients(model):
    """A copy of every parameter's gradient."""
    import torch

    return {
        name: torch.zeros_like(each) if each.grad is None else each.grad.clone()
        for name, each in model.named_parameters()
    }


def alone(model, row):
    """transformers' own logits (T, V) of one document."""
    import torch

    return model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0].float()


def alone_loss(model, rows):
    """Summed loss and gradients of the documents, one at a time, by transformers and F.cross_entropy."""
    import torch

    model.zero_grad()
    total = 0.0
    for row in rows:
        labels = torch.tensor(row["labels"][1:])
        loss = torch.nn.functional.cross_entropy(alone(model, row)[:-1], labels, reduction="sum", ignore_index=-100)
        loss.backward()
        total += float(loss.detach())
    return total, gradients(model)


def flat_batch(rows):
    """(inputs of the model, keep, targets): two documents an example, through the collator that training uses."""
    from tunekit.data.collate import Collator
    from tunekit.data.store import join
    from tunekit.kernels.attention import mask_of
    from tunekit.kernels.segments import flatten

    batch = flatten(Collator(0)([join(rows[at : at + 2], True) for at in range(0, len(rows), 2)]))
    keep, targets, _ = (batch.pop(name) for name in ("keep", "targets", "owner"))
    return batch | {"attention_mask": mask_of(batch["segments"])}, keep, targets


def padded_batch(rows):
    """(inputs of the model, keep, targets): a document a row, as a model that runs padded gets them."""
    from tunekit.data.collate import Collator
    from tunekit.data.store import join
    from tunekit.kernels.segments import label_positions

    batch = Collator(0)([join([row], True) for row in rows])
    found = label_positions(batch["labels"])
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    return inputs, found["keep"], found["targets"]


def places(rows):
    """Where each document begins in the flat row: the longest first, those of a length in their order."""
    order = sorted(range(len(rows)), key=lambda number: -rows[number]["length"])
    starts, at = {}, 0
    for number in order:
        starts[number] = at
        at += rows[number]["length"]
    return [starts[number] for number in range(len(rows))]


def distance(found, expected):
    """The largest distance of a gradient, as a share of its norm; tiny ones count as a share of the whole."""
    whole = sum(float(each.double().square().sum()) for each in expected.values()) ** 0.5
    return max(
        float((found[name].double() - each.double()).norm()) / (float(each.double().norm()) + 1e-2 * whole)
        for name, each in expected.items()
    )

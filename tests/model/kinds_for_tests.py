"""Tiny models of three architectures, and an adapter put on one in the order in which the pipeline does it."""

import torch
from peft import get_peft_model

from tunekit.core.registry import ADAPTERS
from tunekit.model.targets import resolve_targets

KINDS = (
    "lora", "adalora", "ia3", "prefix", "prompt", "p_tuning", "multitask_prompt", "oft", "boft", "vera", "lokr",
    "loha", "ln_tuning", "randlora", "fourierft", "hra", "miss", "shira", "trainable_tokens", "llama_adapter",
)  # fmt: skip
NEEDED = {"trainable_tokens": {"tokens": (3, 5, 7)}, "shira": {"r": 4}, "fourierft": {"frequencies": 200}}
NEEDED |= {"miss": {"r": 8}, "prefix": {"virtual_tokens": 8}, "llama_adapter": {"layers": 2}}
VOCAB, STEPS = 64, 100


def config_of(arch, **sizes):
    from transformers import GPT2Config, LlamaConfig, Qwen3Config

    shape = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2} | sizes
    if arch == "gpt2":
        shape |= {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
        return GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=64, **shape)
    shape |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape = {"num_key_value_heads": 2, "tie_word_embeddings": False} | shape
    # wider heads than hidden / heads: as Qwen3 has them
    return Qwen3Config(head_dim=16, **shape) if arch == "qwen3" else LlamaConfig(**shape)


def tiny(arch="llama", seed=0, **sizes):
    """A model whose weights are the same for the same seed, large enough that an SVD has something to find."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(arch, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return model


def block(kind, **keys):
    return ADAPTERS.load(kind).Config(kind=kind, **(NEEDED.get(kind, {}) | keys))


def put(model, kind, *, tokenizer=None, data=(), steps=STEPS, **keys):
    """The model with an adapter: the plug-in's names, each called where the pipeline calls it."""
    plugin, wanted = ADAPTERS.load(kind), block(kind, **keys)
    if tokenizer is not None and hasattr(plugin, "tokenize"):
        wanted = plugin.tokenize(wanted, tokenizer)
    if hasattr(plugin, "apply"):
        return plugin.apply(wanted, model)
    config = plugin.peft_config(wanted, model, steps)
    for name, value in getattr(wanted, "extra", {}).items():
        setattr(config, name, value)
    if getattr(wanted, "targets", None) is not None:
        config.target_modules = resolve_targets(model, wanted.targets)
    if getattr(wanted, "train_modules", ()):
        config.modules_to_save = list(wanted.train_modules)
    adapted = get_peft_model(model, config)
    if hasattr(plugin, "prepare"):
        plugin.prepare(adapted)
    if hasattr(plugin, "initialise"):
        plugin.initialise(adapted, wanted, data)
    return adapted


def batches(count=3, rows=4, length=12, seed=1):
    """Rows that end in the same tokens, so that there is something to learn."""
    made = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        ids = torch.randint(3, VOCAB, (rows, length), generator=made)
        ids[:, 6:] = torch.arange(3, 3 + length - 6)
        labels = ids.clone()
        labels[:, :6] = -100
        found.append({"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)})
    return found


def logits(model, ids=None):
    model.eval()
    with torch.no_grad():
        return model(input_ids=batches(1)[0]["input_ids"] if ids is None else ids).logits.clone()


def train(model, lr, steps=5, data=None, plugin=None):
    """Some AdamW steps; the losses."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0)
    data, losses = data or batches(), []
    for step in range(steps):
        loss = model(**data[step % len(data)]).loss
        losses.append(loss.item())
        added = plugin.further_loss(model) if hasattr(plugin, "further_loss") else None
        (loss if added is None else loss + added).backward()
        optimizer.step()
        if hasattr(plugin, "after_step"):
            plugin.after_step(model, step)
        optimizer.zero_grad()
    return losses


def gradients(model):
    model.train()
    model(**batches(1)[0]).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

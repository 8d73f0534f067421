"""Tiny models with bottleneck adapters, and a Llama with such adapters written out in plain torch."""

from __future__ import annotations

WIDTH, LAYERS, SIZE = 32, 2, 5
SIZES = {
    "num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
NARROW = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
FAMILIES = {
    "llama": {}, "qwen3": {"head_dim": 8}, "mistral": {}, "gemma2": NARROW, "gemma3_text": NARROW, "phi3": {},
    "gpt2": {}, "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
STYLES = ("pfeiffer", "houlsby", "parallel")


def base(kind="llama", **changes):
    """A random model, the same each time; its matrices are large enough for every part to matter."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | FAMILIES.get(kind, {}) | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def config_of(model, **keys):
    """PEFT's configuration from the keys of a recipe's `adapter:` block."""
    from tunekit.model.adapters.bottleneck import Config, peft_config

    return peft_config(Config(kind="bottleneck", **{"size": SIZE} | keys), model)


def adapted(kind="llama", model=None, *, trained=True, **keys):
    """A model with an adapter; trained: of random values, biases and all."""
    from peft import get_peft_model

    model = base(kind) if model is None else model
    whole = get_peft_model(model, config_of(model, **keys)).eval()
    return scatter(whole) if trained else whole


def scatter(model, seed=1):
    """Random values for everything that is trained."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def ids(rows=2, length=11, seed=2):
    """Tokens (rows, length)."""
    import torch

    return torch.randint(3, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model, tokens=None):
    """(B, T, V)."""
    import torch

    with torch.no_grad():
        return model(input_ids=ids() if tokens is None else tokens, use_cache=False).logits


def llama_by_hand(weights, saved, tokens, style, act, scale):
    """Logits of the tiny Llama with the adapters of a saved file, from the papers and from nothing of ours.

    Args:
        weights: the state dict of the base model.
        saved: the tensors of adapter_model.safetensors.
        tokens: (T,), one document.
        style: of the adapters.
        act: their nonlinearity.
        scale: their factor, a number; or None: the saved ones.
    """
    import torch

    heads, groups, size = 4, 2, WIDTH // 4

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[name]

    def adapter(x, place):
        part = {name: saved[f"base_model.model.{place}.bottleneck_{name}"] for name in
                ("down.weight", "down.bias", "up.weight", "up.bias")}  # fmt: skip
        factor = saved[f"base_model.model.{place}.bottleneck_scale"] if scale is None else scale
        hidden = act(torch.einsum("sd,td->ts", part["down.weight"], x) + part["down.bias"])
        return factor * (torch.einsum("ds,ts->td", part["up.weight"], hidden) + part["up.bias"])

    def turned(x):  # (T, heads, size): rotary embedding
        angle = torch.arange(len(x))[:, None] / 10_000 ** (torch.arange(0, size, 2) / size)
        cos, sin = (each.repeat(1, 2)[:, None] for each in (angle.cos(), angle.sin()))
        half = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1)
        return x * cos + half * sin

    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"

        def linear(x, name, at=at):
            return x @ weights[f"{at}.{name}.weight"].T

        h = norm(x, f"{at}.input_layernorm.weight")
        q, k, v = (linear(h, f"self_attn.{name}_proj").view(len(h), -1, size) for name in "qkv")
        q, k = turned(q), turned(k)
        k, v = (each.repeat_interleave(heads // groups, 1) for each in (k, v))
        score = torch.einsum("thd,shd->hts", q, k) / size**0.5
        score = score.masked_fill(torch.ones(len(h), len(h)).triu(1).bool(), float("-inf")).softmax(-1)
        attended = linear(torch.einsum("hts,shd->thd", score, v).flatten(1), "self_attn.o_proj")
        if style == "houlsby":
            attended = attended + adapter(attended, f"{at}.self_attn.o_proj")
        x = x + attended
        h = norm(x, f"{at}.post_attention_layernorm.weight")
        gate = linear(h, "mlp.gate_proj")
        out = linear(gate * gate.sigmoid() * linear(h, "mlp.up_proj"), "mlp.down_proj")
        out = out + (adapter(h, f"{at}.mlp") if style == "parallel" else adapter(out, f"{at}.mlp.down_proj"))
        x = x + out
    return norm(x, "model.norm.weight") @ weights["lm_head.weight"].T

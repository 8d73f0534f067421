"""What identifies a model's answers, so that kept ones are never taken for another's."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from tunekit.core.files import sha256_file, sha256_json
from tunekit.evaluate import likelihoods
from tunekit.evaluate.mode import plain_model
from tunekit.model.fingerprint import weights_fingerprint
from tunekit.model.tokenizer import tokenizer_hash
from tunekit.runs.environment import library_versions


def identity_of(model: Any, tokenizer: Any, config: Any) -> list[Any]:
    """All that shapes an answer but its request: weights, how they are computed with, the code that asks."""
    inner = plain_model(model)
    adapters = getattr(model, "peft_config", None) or {}
    packages = ("torch", "transformers", "peft", "bitsandbytes", "torchao")
    return [
        weights_fingerprint(model, frozen_only=False, whole=True),
        {key: value for key, value in inner.config.to_dict().items() if not key.startswith("_name")},
        str(inner.config._attn_implementation),
        [_settings(adapter) for adapter in adapters.values()],
        [_scales(module.weight.quant_state) for module in model.modules() if _is_packed(module)],
        tokenizer_hash(tokenizer),
        {name: library_versions().get(name) for name in packages},
        str(model.device.type),
        code_version(),
        config.model_dump(mode="json", exclude={"batch_size", "batch_tokens"}),
    ]


def _settings(adapter: Any) -> dict[str, str]:
    """An adapter's configuration but where its base lies."""
    return {key: str(value) for key, value in sorted(adapter.to_dict().items()) if "path" not in key}


def _is_packed(module: Any) -> bool:
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def _scales(state: Any) -> str:
    """Hash of what bitsandbytes keeps beside packed weights, which is no parameter."""
    from torch import uint8

    digest = hashlib.sha256()
    for key, value in sorted(state.as_dict(packed=True).items()):
        digest.update(f"{key} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()


@cache
def code_version() -> str:
    """Hash of the code that computes answers: editing it makes old ones unreachable."""
    here = Path(likelihoods.__file__).parent
    return sha256_json([(path.name, sha256_file(path)) for path in sorted(here.glob("*.py"))])

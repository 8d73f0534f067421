"""transformers, as most users load a model: `AutoModelForCausalLM.from_pretrained(folder)`."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError, first_line
from tunekit.core.registry import ENGINES
from tunekit.evaluate.contract import Engine
from tunekit.evaluate.logits import logits_at
from tunekit.evaluate.mode import evaluating
from tunekit.model.quiet import hushed

if TYPE_CHECKING:
    import numpy as np

LIBRARIES = ("torch", "accelerate", "transformers", "transformers.models.auto.modeling_auto", "transformers.generation")


class TransformersReading:
    """A loaded model with its tokenizer.

    Args:
        model: in evaluation mode.
        tokenizer: of the same folder.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        from transformers import GenerationConfig

        self._model, self._tokenizer = model, tokenizer
        found = model.generation_config.eos_token_id
        found = tokenizer.eos_token_id if found is None else found
        ids = found if isinstance(found, list) else [found]
        self._stops = sorted({int(token) for token in ids if token is not None})
        model.generation_config = GenerationConfig()  # its own may draw, or punish repetitions
        self.vocabulary = int(model.config.get_text_config().vocab_size)

    def logits(self, ids: Sequence[int], columns: Sequence[int]) -> np.ndarray:
        """(columns, V) float32: what follows each of these positions, after the row read from its start."""
        import torch

        with evaluating(self._model):
            at = torch.tensor(list(columns), device=self._model.device)
            row = torch.tensor([list(ids)], device=self._model.device)
            found: np.ndarray = logits_at(self._model, row, torch.zeros_like(at), at).float().cpu().numpy()
        return found

    def answer(self, ids: Sequence[int], new_tokens: int, stops: Sequence[int]) -> list[int]:
        """The likeliest tokens after ``ids``, one by one; the stop is the last one, where one comes."""
        import torch
        from transformers import GenerationConfig

        row = torch.tensor([list(ids)], device=self._model.device)
        config = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=list(stops) or None, pad_token_id=0, use_cache=True
        )
        with evaluating(self._model):
            mask = torch.ones_like(row)
            out = self._model.generate(row, attention_mask=mask, generation_config=config)
        return [int(token) for token in out[0, row.shape[1] :]]

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text in which special tokens may be written out, without added ones."""
        return [int(token) for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ids, special tokens left out, or written out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special))

    def stops(self) -> list[int]:
        """The ids that end an answer, as the folder's generation config says; the tokenizer's, where that is silent."""
        return self._stops

    def template(self) -> str | None:
        """The chat template inside the artefact; of several the one that is used where none is named."""
        found: str | dict[str, str] | None = self._tokenizer.chat_template
        return found.get("default") if isinstance(found, dict) else found

    def engine(self, tokenizer: Any) -> Engine:
        """The same model for the tasks of an evaluation; its tokenizer is the artefact's own."""
        module = ENGINES.load("transformers")
        found: Engine = module.around(module.Config(), self._model, self._tokenizer, self._stops)
        return found


def load(folder: Path, *, threads: int) -> TransformersReading:
    """Loads model and tokenizer of a folder, on the GPU where there is one.

    Raises:
        MachineError: it cannot be read.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    # for each layer of 8 bits, at each token, one line: that it rounds its input
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with hushed(), redirect_stderr(io.StringIO()):  # compressed-tensors has bars of its own
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", use_safetensors=True, trust_remote_code=False, device_map={"": device},
                output_loading_info=True,
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, RuntimeError, ImportError, OSError, SafetensorError) as error:
        what = f"transformers cannot load it: {first_line(error)}"
        raise MachineError(what, where=str(folder), fix="make it again") from error
    if info["missing_keys"]:  # transformers makes them up, and says so in a warning
        what = f"the weights lack the tensor '{min(info['missing_keys'])}'"
        raise MachineError(what, where=str(folder), fix="make it again")
    return TransformersReading(model.eval(), tokenizer)

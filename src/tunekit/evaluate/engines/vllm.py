"""A model in vLLM, in this process, on CUDA."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunekit.core.errors import DataError, MachineError, UserError, first_line
from tunekit.core.progress import Screen
from tunekit.evaluate.contract import Generated, Likelihood, Prompt, Scored
from tunekit.evaluate.prompting import Prompter
from tunekit.evaluate.writer import Writer

_AT_ONCE = 256  # requests handed over together: vLLM batches them itself, and answers are kept after each lot


class Config(BaseModel):
    """Options of the engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: str | None = Field(None, description="branch, tag or commit of a Hub id")
    tokenizer: str | None = Field(None, description="local folder or Hub id, where it is not the model's own")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of weights and activations")
    quantization: str | None = Field(None, description="how the weights are quantized, where they do not say it")
    max_length: int | None = Field(None, ge=1, description="tokens of prompt and answer together; default the model's")
    memory: float = Field(0.9, gt=0, le=1, description="share of the GPU's memory that vLLM takes")
    gpus: int = Field(1, ge=1, description="GPUs that the weights are spread over")
    eager: bool = Field(False, description="no CUDA graphs: starts sooner, runs slower")


@contextmanager
def open(config: Config, name: str, screen: Screen) -> Iterator[VllmEngine]:
    """The engine with the model loaded; its memory is given back at the end.

    Raises:
        UserError: vLLM is not installed.
        MachineError: there is no CUDA device, or vLLM cannot load the model.
    """
    vllm = _vllm()
    import torch

    if not torch.cuda.is_available():
        raise MachineError("vLLM needs a CUDA device, and there is none", fix="use the default engine")
    try:
        model = vllm.LLM(
            model=name,
            revision=config.revision,
            tokenizer=config.tokenizer,
            dtype=config.dtype,
            quantization=config.quantization,
            max_model_len=config.max_length,
            gpu_memory_utilization=config.memory,
            tensor_parallel_size=config.gpus,
            enforce_eager=config.eager,
            trust_remote_code=False,
            seed=0,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise MachineError(
            f"vLLM could not load '{name}': {first_line(error)}",
            fix="lower `memory` or `max_length`, or see vLLM's own messages",
        ) from error
    engine = VllmEngine(model, vllm.SamplingParams)
    del model
    try:
        yield engine
    finally:
        engine.drop()
        gc.collect()
        torch.cuda.empty_cache()


def _vllm() -> Any:
    try:
        return importlib.import_module("vllm")
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise MachineError(f"vLLM is installed, but lacks the package '{error.name}'") from error
        raise UserError("the engine vllm needs the package 'vllm'", fix="pip install vllm") from error
    except ImportError as error:
        raise MachineError(f"vLLM is installed, but cannot be loaded: {error}") from error


def identity(config: Config, name: str) -> list[Any]:
    """What tells this model's kept answers from others'; of a folder, its files as they were last written."""
    folder = Path(name).expanduser()
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    written = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    options = config.model_dump(mode="json", exclude={"memory", "eager"})
    return [str(folder.resolve()) if files else name, written, options, str(_vllm().__version__)]


class VllmEngine(Writer):
    """An `Engine` around vLLM's `LLM`.

    Args:
        model: the `LLM`.
        sampling: the class `SamplingParams`.
    """

    def __init__(self, model: Any, sampling: Any) -> None:
        self._model, self._sampling = model, sampling

    def drop(self) -> None:
        """Lets go of the model; nothing can be asked after."""
        self._model = None

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._model.get_tokenizer()

    @property
    def positions(self) -> int | None:
        """How many tokens the model reads and writes together."""
        positions: int = self._model.llm_engine.model_config.max_model_len
        return positions

    def generate(
        self,
        requests: Sequence[Prompt],
        screen: Screen,
        what: str,
        done: Callable[[int, Generated], None] = lambda index, answer: None,
    ) -> list[Generated]:
        """Answers prompts; vLLM ends an answer where the model's positions end.

        Raises:
            DataError: a prompt leaves no room for an answer.
        """
        found = self._all(
            [self._ids(request) for request in requests], [self._drawn(r) for r in requests], screen, what
        )
        answers: list[Generated] = []
        for index, output in enumerate(found):
            text, ended = output.outputs[0].text, output.outputs[0].finish_reason == "stop"
            answers.append(Generated(text, len(output.outputs[0].token_ids), ended))
            done(index, answers[-1])
        return answers

    def likelihoods(
        self,
        requests: Sequence[Likelihood],
        screen: Screen,
        what: str,
        done: Callable[[int, Scored], None] = lambda index, answer: None,
    ) -> list[Scored]:
        """Scores texts by the log-probabilities of a prompt's tokens; one new token is drawn, as vLLM draws no fewer.

        Raises:
            DataError: a text is as long as the model's positions, or longer.
        """
        alone = self._sampling(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False)
        scored: list[Scored] = []
        found = self._all([request.ids for request in requests], [alone] * len(requests), screen, what)
        for index, (request, output) in enumerate(zip(requests, found, strict=True)):
            scored.append(_scored(request, output.prompt_logprobs))
            done(index, scored[-1])
        return scored

    def _ids(self, request: Prompt) -> tuple[int, ...]:
        if request.ids:
            return request.ids
        messages = [{"role": role, "content": content} for role, content in request.messages]
        return Prompter(self.tokenizer, chat=True).ids_of(messages)

    def _drawn(self, request: Prompt) -> Any:
        return self._sampling(
            temperature=request.temperature,
            top_p=request.top_p if request.temperature > 0 else 1.0,
            seed=request.seed if request.temperature > 0 else None,
            stop=list(request.stops) or None,
            max_tokens=request.max_new_tokens,
        )

    def _all(self, texts: Sequence[Sequence[int]], sampling: Sequence[Any], screen: Screen, what: str) -> Iterator[Any]:
        """vLLM's outputs in the order of ``texts``, lot by lot."""
        room = self.positions
        for number, ids in enumerate(texts, start=1):
            if room is not None and len(ids) >= room:
                raise DataError(
                    f"{len(ids)} tokens fill the model's {room} positions",
                    where=f"{what}, request {number}",
                    fix="leave the row out, shorten it, or raise `max_length` if the model allows it",
                )
        with screen.step(what, len(texts), "requests") as step:
            for start in range(0, len(texts), _AT_ONCE):
                lot = [{"prompt_token_ids": list(ids)} for ids in texts[start : start + _AT_ONCE]]
                yield from self._model.generate(lot, list(sampling[start : start + _AT_ONCE]), use_tqdm=False)
                step.advance(len(lot))


def _scored(request: Likelihood, chances: Sequence[Any]) -> Scored:
    """From vLLM's ``prompt_logprobs``: for each token but the first, a mapping of ids to what is known of them."""
    assert len(chances) == len(request.ids), (len(chances), len(request.ids))
    found = [(chances[place], request.ids[place]) for place, scored in enumerate(request.scored) if scored]
    value = sum(known[token].logprob for known, token in found)
    greedy = all(known[token].logprob >= max(other.logprob for other in known.values()) for known, token in found)
    return Scored(float(value), len(found), greedy)

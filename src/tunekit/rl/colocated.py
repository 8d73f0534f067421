"""Answers drawn by vLLM, in the process and on the GPU of the policy, whose weights it is given before each window."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError, Problem, UserError, first_line, raise_all
from tunekit.evaluate.contract import Prompt
from tunekit.evaluate.mode import plain_model
from tunekit.recipe.schema import Recipe

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from tunekit.rl.policy import PolicyTrainer

_KEEPS, _REPLACED = "modules_to_save.default.", "original_module"
"""How PEFT names a module that is trained beside the adapter, and the one in whose place it stands."""


def problems(recipe: Recipe) -> Iterator[Problem]:
    """What stands against `engine: vllm`, beside what this machine lacks."""
    where = f"{recipe.method}.engine"
    if recipe.model.quantize is not None:
        what = "vLLM is given the policy's weights, and those of a quantized base are no plain ones"
        yield Problem(what, where, "leave model.quantize out, or draw with `engine: transformers`")
    kind = getattr(recipe.adapter_block, "kind", None)
    if kind is not None and not _merges(kind):
        what = f"an adapter of kind {kind} cannot be merged into weights that vLLM could be given"
        yield Problem(what, where, "take lora, or draw with `engine: transformers`")


def _merges(kind: str) -> bool:
    from tunekit.plan.allowed import allowed

    return allowed(kind).merges


def check(recipe: Recipe) -> None:
    """Whether vLLM can draw for a recipe, on this machine.

    Raises:
        UserError: the recipe's model or adapter cannot be handed over.
        MachineError: vLLM or a CUDA device is missing.
    """
    raise_all(UserError, list(problems(recipe)))
    _library(f"{recipe.method}.engine")


def _library(where: str) -> Any:
    import torch

    fix = "draw with `engine: transformers`"
    try:
        found = importlib.import_module("vllm")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "vllm"
        what = "the engine vllm needs the package 'vllm'" if missing else f"vLLM cannot be loaded: {first_line(error)}"
        raise MachineError(what, where=where, fix=f"pip install vllm; or {fix}") from error
    if not torch.cuda.is_available():
        raise MachineError("vLLM needs a CUDA device, and there is none", where=where, fix=fix)
    return found


class Colocated:
    """vLLM beside a policy; between two windows it keeps no memory.

    Which tokens are drawn is vLLM's matter: answers depend on what is drawn beside them, so that a run that was
    stopped does not go on bit for bit. The log-probabilities that are learnt from are the policy's own.

    Args:
        policy: the model, or the PEFT model around it.
        tokenizer: the policy's.
        length: tokens of the longest prompt with its answer.
        memory: share of the GPU that vLLM may take while it draws.
        dtype: of weights and activations, such as ``bfloat16``.
        rank: of this process, which seeds vLLM.
        world: how many processes there are, each with a vLLM of its own.

    Raises:
        MachineError: vLLM cannot be loaded, or knows no such model.
    """

    def __init__(
        self, policy: Any, tokenizer: Any, *, length: int, memory: float, dtype: str, rank: int = 0, world: int = 1
    ) -> None:
        library = _library("engine")
        self._sampling, self._policy = library.SamplingParams, policy
        os.environ.update(_rendezvous(rank, world))
        with TemporaryDirectory(prefix="tunekit-vllm-") as folder:  # the weights are handed over, never written
            plain_model(policy).config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            try:
                self._model = library.LLM(
                    model=folder,
                    load_format="dummy",
                    dtype=dtype,
                    max_model_len=length,
                    gpu_memory_utilization=memory,
                    tensor_parallel_size=1,
                    distributed_executor_backend="external_launcher",
                    enable_sleep_mode=True,
                    trust_remote_code=False,
                    seed=rank,
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise MachineError(
                    f"vLLM could not be started beside the policy: {first_line(error)}",
                    fix="lower `vllm_memory`, or draw with `engine: transformers`",
                ) from error
        self._model.sleep(level=2)

    @classmethod
    def beside(cls, trainer: PolicyTrainer) -> Colocated:
        """That of a trainer's policy."""
        policy, block, ranks = trainer.accelerator.unwrap_model(trainer.model), trainer.block, trainer.ranks
        longest = max(trainer.train_dataset["length"][:]) + block.max_new_tokens
        positions = getattr(plain_model(policy).config.get_text_config(), "max_position_embeddings", None)
        return cls(
            policy, trainer.tokenizer, length=min(longest, positions or longest), memory=block.vllm_memory,
            dtype=trainer.plan.arithmetic, rank=ranks.rank, world=ranks.world,
        )  # fmt: skip

    def tokens(self, requests: Sequence[Prompt], stops: frozenset[int]) -> list[list[int]]:
        """The answers of the policy as it is now: token ids, with the end token where it came."""
        self._model.wake_up(tags=["weights"])
        inner = self._model.llm_engine.model_executor.driver_worker.model_runner.model
        with whole_weights(self._policy) as weights:
            for named in weights:
                inner.load_weights([named])
        self._model.reset_prefix_cache()
        self._model.wake_up(tags=["kv_cache"])
        try:
            found = self._model.generate(
                [{"prompt_token_ids": list(request.ids)} for request in requests],
                [self._drawn(request, stops) for request in requests],
                use_tqdm=False,
            )
        finally:
            self._model.sleep(level=2)
        return [list(output.outputs[0].token_ids) for output in found]

    def _drawn(self, request: Prompt, stops: frozenset[int]) -> Any:
        return self._sampling(
            temperature=request.temperature,
            seed=request.seed,
            max_tokens=request.max_new_tokens,
            stop_token_ids=sorted(stops),
            detokenize=False,
        )


def _rendezvous(rank: int, world: int) -> dict[str, str]:
    """What vLLM reads of the environment to join the processes; what is there already stays."""
    given = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            given["MASTER_PORT"] = str(free.getsockname()[1])
    return {name: value for name, value in given.items() if name not in os.environ}


@contextmanager
def whole_weights(policy: Any) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    """The weights of a policy by their names in the plain model, its adapter merged into them.

    The policy is bit for bit as before afterwards: an adapter that is merged and taken out again leaves rounding
    behind, so it is merged into copies.
    """
    from peft import PeftModel

    if not isinstance(policy, PeftModel):
        yield ((name, value.data) for name, value in policy.named_parameters() if not _of_values(name))
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module.get_base_layer() for module in policy.modules() if isinstance(module, BaseTunerLayer)]
    parameters = {id(each): each for layer in layers for each in layer.parameters()}.values()
    kept = [(each, each.data) for each in parameters]
    for each, value in kept:
        each.data = value.clone()
    policy.merge_adapter()
    try:
        yield _merged(policy)
    finally:
        policy.unmerge_adapter()
        for each, value in kept:
            each.data = value


def _merged(policy: PeftModel) -> Iterator[tuple[str, torch.Tensor]]:
    own = policy.base_model.prefix
    for full, parameter in policy.named_parameters():
        name = full.removeprefix("base_model.model.").replace(".base_layer", "").replace(_KEEPS, "")
        if own not in name and _REPLACED not in name and not _of_values(name):
            yield name, parameter.data


def _of_values(name: str) -> bool:
    from tunekit.rl.drawing import VALUES

    return name.startswith(VALUES)

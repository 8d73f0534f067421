"""The score of a reward model, as `tunekit reward` trains them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field

from tunekit.core.errors import UserError
from tunekit.core.types import Message
from tunekit.model.names import resolve_name
from tunekit.recipe.schema import ModelBlock
from tunekit.rl.contract import Answer
from tunekit.rl.rewards._shared.block import RewardBlock
from tunekit.rl.rewards._shared.places import find


class Config(RewardBlock):
    """A reward model's score."""

    kind: Literal["model"]
    model: str = Field(min_length=1, description="a reward model's run, its folder, or an adapter's; or a Hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub id")
    batch_size: int = Field(16, ge=1, description="answers a forward pass, at most")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: a GPU where there is one")


def default_name(config: Config) -> str:
    """That of the model's folder."""
    return Path(config.model).name or "model"


def _place(config: Config, folder: Path) -> Path | ModelBlock:
    """The folder that is named; what has the form of a Hub id, and no folder before its slash, is one.

    ``runs/...`` is where runs lie, whether that folder is there or not.
    """
    first, slash, _ = config.model.partition("/")
    if (
        slash
        and first != "runs"
        and not any((at / config.model).exists() or (at / first).is_dir() for at in (folder, Path()))
    ):
        with suppress(UserError):
            if resolve_name(config.model).kind == "hub":
                return ModelBlock(name=config.model, revision=config.revision)
    if config.revision is not None:
        raise UserError(f"'{config.model}' is a folder, which has no revisions", fix="leave `revision` out")
    return find(config.model, folder, "folder", "train a reward model with `tunekit reward`, and name its run")


def check(config: Config, folder: Path) -> None:
    """Reads what the model's folder says of itself; loads no weights.

    Raises:
        UserError, MachineError: as `reward_model.find`, and where the device is not there.
    """
    from tunekit.model.device import device_of
    from tunekit.rl import reward_model

    reward_model.find(_place(config, folder))
    device_of(config.device)


def open(config: Config, folder: Path) -> Callable[[Sequence[Answer]], list[float]]:
    """Loads the model.

    Raises:
        UserError, MachineError: as `RewardModel.load`.
    """
    from tunekit.rl.reward_model import RewardModel

    model = RewardModel.load(_place(config, folder), device=config.device)

    def scores(answers: Sequence[Answer]) -> list[float]:
        conversations = [_conversation(answer) for answer in answers]
        return model.scores(conversations, config.batch_size, places=[answer.where for answer in answers])

    return scores


def _conversation(answer: Answer) -> str | tuple[Message, ...]:
    if not answer.messages:  # a text that was continued
        return answer.prompt + answer.text
    return (*answer.messages, Message("assistant", answer.text))

"""The chance that one of k programs passes the row's tests; it runs what the model wrote."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from tunekit.core.errors import UserError
from tunekit.evaluate import sandbox

HIGHER_IS_BETTER = True
NEEDS_SAMPLES = True


class Config(BaseModel):
    """Options of the metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int = Field(default=1, ge=1, description="how many of a prompt's answers are looked at")
    allow_code_execution: bool = Field(default=False, description="run what the model writes on this machine")
    seconds: float = Field(default=10.0, gt=0, description="how long a program may run")
    memory_mib: int = Field(default=1024, ge=64, description="how much memory a program may have")
    processes: int = Field(default=2, ge=1, description="programs that run at a time")


def check(references: Sequence[Sequence[str]], config: Config) -> None:
    """Asks whether programs may run.

    Raises:
        UserError: they may not.
    """
    if not config.allow_code_execution:
        raise UserError(
            "metric 'pass_at_k' runs Python programs that the model writes, on this machine and as its user; bounds "
            "on time, memory and network guard against accidents, not against an attack",
            fix="allow_code_execution: true, if you want that; in a container or a virtual machine for a model that "
            "you do not trust",
        )


def score(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], config: Config) -> list[float]:
    """The unbiased estimate of pass@k for each row, from its n answers of which c pass: 1 - C(n - c, k) / C(n, k).

    A program is an answer followed by the row's references, all of them: statements that raise an error when the
    answer is wrong.

    M. Chen et al., Evaluating large language models trained on code, arXiv:2107.03374 (2021).

    Raises:
        UserError: programs may not run, or a row has fewer than k answers.
    """
    check(references, config)
    rows = list(zip(predictions, references, strict=True))
    fewest = min((len(answers) for answers, _ in rows), default=config.k)
    if fewest < config.k:
        raise UserError(
            f"metric 'pass_at_k' with k: {config.k} needs {config.k} answers or more to a prompt; there are {fewest}",
            fix="ask for more answers, or lower k",
        )
    programs = [f"{answer}\n" + "\n".join(tests) for answers, tests in rows for answer in answers]
    limits = sandbox.Limits(config.seconds, config.memory_mib)
    outcomes = iter(sandbox.run_all(programs, limits, config.processes))
    found = []
    for answers, _ in rows:
        passed = sum(next(outcomes).passed for _ in answers)
        found.append(1 - math.comb(len(answers) - passed, config.k) / math.comb(len(answers), config.k))
    return found

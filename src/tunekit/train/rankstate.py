"""What one process has to remember between a checkpoint and the run that goes on from it, beside weights and RNG."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class RankState:
    """Plain values of one rank; floats keep every bit in JSON.

    Args:
        loss_sum: losses since the last logged step, and ``last_logged``, that step.
        total_loss: losses before it.
        tokens: tokens seen by this rank; ``trained``: those with a label; ``positions``: those and the padding;
            ``flops``: the model's for them; ``logged``: the first three as they were at the last logged step.
        seconds: of training so far.
        ended: training came to its end by itself before its last step (early stopping).
        pending_evaluation: an evaluation was due at this step, but the run was asked to stop.
        patience: evaluations without an improvement so far.
        skipped: steps whose batches a rollback leaves out.
        spikes: what the watch over the loss knows.
        method: what the method's own trainer adds.
    """

    loss_sum: float = 0.0
    last_logged: int = 0
    total_loss: float = 0.0
    tokens: int = 0
    trained: int = 0
    positions: int = 0
    flops: int = 0
    logged: list[int] = field(default_factory=lambda: [0, 0, 0])
    seconds: float = 0.0
    ended: bool = False
    pending_evaluation: bool = False
    patience: int = 0
    skipped: list[int] = field(default_factory=list)
    spikes: Any = None
    method: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, rank: int) -> None:
        """Writes ``rank-N.json`` into a checkpoint."""
        text = json.dumps(dataclasses.asdict(self))
        (folder / f"rank-{rank}.json").write_text(text, encoding="utf-8")  # flushed with the whole checkpoint

    @classmethod
    def load(cls, folder: Path, rank: int) -> RankState:
        """Reads this rank's state; a rank that the checkpoint's run did not have begins with rank 0's, counts at 0."""
        own = folder / f"rank-{rank}.json"
        if own.exists():
            return cls(**json.loads(own.read_bytes()))
        first = cls(**json.loads((folder / "rank-0.json").read_bytes()))
        none = {"tokens": 0, "trained": 0, "positions": 0, "flops": 0, "logged": [0, 0, 0]}
        return dataclasses.replace(first, loss_sum=0.0, total_loss=0.0, **none)  # type: ignore[arg-type]

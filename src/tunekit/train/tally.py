"""What a training did, counted over all ranks: the record's figures, and the shares that every logged line has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunekit.train.trainer import TunekitTrainer


def shares(tokens: float, trained: float, positions: float) -> dict[str, float]:
    """``padding_share`` of the positions that were computed, ``trained_share`` of the tokens; none of nothing."""
    if not tokens or not positions:
        return {}
    return {"padding_share": round(1 - tokens / positions, 4), "trained_share": round(trained / tokens, 4)}


def training_facts(trainer: TunekitTrainer, mean_loss: float, seconds: float) -> dict[str, Any]:
    """What the record says of the training; every rank must be here.

    Args:
        trainer: it came to its end.
        mean_loss: stands for the last loss where none was logged.
        seconds: that this run took, without those before its checkpoint.
    """
    state = trainer.state
    counted = [trainer.tokens_seen, trainer.trained_seen, trainer.positions_seen, trainer.flops_seen]
    tokens, trained, positions, flops = trainer.ranks.sum([float(each) for each in counted])
    losses = [entry for entry in state.log_history if "loss" in entry]
    evals = [entry for entry in state.log_history if "eval_loss" in entry]
    took = seconds + trainer.seconds_before
    facts: dict[str, Any] = {
        "steps": state.global_step,
        "epochs": round(state.epoch or 0.0, 4),
        "tokens": int(tokens),
        "trained_tokens": int(trained),
        "tokens_per_second": round(tokens / took, 1),
        "trained_tokens_per_second": round(trained / took, 1),
        **shares(tokens, trained, positions),
        "model_flops": flops,
        "padded_because": trainer.padded_because or None,
        "final_loss": losses[-1]["loss"] if losses else mean_loss,
        "final_eval_loss": evals[-1]["eval_loss"] if evals else None,
    }
    if trainer.ceiling:
        facts["matmul_tflops"] = round(trainer.ceiling / trainer.ranks.world / 1e12, 4)
        facts["mfu"] = round(flops / took / trainer.ceiling, 4)
    if state.best_global_step:
        facts["best"] = {"step": state.best_global_step, "metric": "eval_loss", "value": state.best_metric}
    return facts

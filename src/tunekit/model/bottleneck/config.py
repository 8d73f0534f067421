"""What is saved as adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from peft import PeftConfig

from tunekit.core.errors import UserError
from tunekit.model.bottleneck import KIND, Nonlinearity, Style


@dataclass
class BottleneckConfig(PeftConfig):
    """PEFT's configuration of a bottleneck adapter.

    Args:
        style: pfeiffer: after each MLP (arXiv 2005.00247); houlsby: after each attention and each MLP
            (arXiv 1902.00751); parallel: beside each MLP, from its input (arXiv 2110.04366).
        size: width of the bottleneck.
        nonlinearity: between the two projections; gelu is the exact one.
        dropout: on the bottleneck, after the nonlinearity.
        scale: the adapter's output is multiplied by it; learned: by a parameter that begins at 1.
        modules_to_save: further modules that are trained in full and saved.
        target_modules: filled in from the model, whatever stood here.

    Raises:
        UserError: a value that is none of these, as in a file that was edited by hand.
    """

    style: Style = "pfeiffer"
    size: int = 64
    nonlinearity: Nonlinearity = "relu"
    dropout: float = 0.0
    scale: float | Literal["learned"] = 1.0
    modules_to_save: list[str] | None = None
    target_modules: list[str] | set[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = KIND
        learned = self.scale == "learned"
        for name, fine in (
            ("style", self.style in get_args(Style)),
            ("size", isinstance(self.size, int) and self.size >= 1),
            ("nonlinearity", self.nonlinearity in get_args(Nonlinearity)),
            ("dropout", isinstance(self.dropout, (int, float)) and 0 <= self.dropout < 1),
            ("scale", learned or (isinstance(self.scale, (int, float)) and self.scale > 0)),
        ):
            if not fine:
                raise UserError(f"a bottleneck adapter has no {name} {getattr(self, name)!r}", where="adapter")

    def to_dict(self) -> dict[str, Any]:
        """For adapter_config.json: sorted, so that the file is the same each time."""
        found: dict[str, Any] = super().to_dict()
        return found | {"target_modules": sorted(self.target_modules or ())}

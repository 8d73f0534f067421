"""What the ways of pruning have in common: what they are given, what they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tunekit.core.errors import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunekit.compress.contract import Weight
    from tunekit.compress.prune.layers import Decoder


@dataclass(frozen=True)
class Pruning:
    """A loaded model that is to be pruned.

    Args:
        model: in evaluation mode; it is changed in place.
        decoder: its layers.
        config: the way's validated options.
        rows: token ids of the calibration, (row, token); empty for a way that looks at none.
        until_shrunk: hooks that stand for what is not cut away yet; closed before it is.
    """

    model: PreTrainedModel
    decoder: Decoder
    config: Any
    rows: Sequence[Sequence[int]]
    until_shrunk: ExitStack = field(default_factory=ExitStack)


class Way(Protocol):
    """A plug-in of `tunekit.compress.prune.ways`.

    Its module is light: libraries are imported inside its functions.
    """

    Config: type[Any]
    """A frozen `recipe.schema.Block` of its options."""
    CALIBRATED: bool
    """Whether it looks at rows of text."""
    TRAINABLE: bool
    """Whether training leaves alone what was cut away: zeros would be filled again, a missing layer would not."""

    def problems(self, config: Any, decoder: Decoder) -> list[Problem]:
        """What stands against it by the model's shapes: asked before weights are loaded, and of the loaded model.

        Args:
            config: the options.
            decoder: of a model that may have no numbers in it.
        """

    def choose(self, pruning: Pruning) -> dict[str, Any]:
        """Chooses what goes, and leaves a model that answers as the pruned one will: with zeros, or hooks on it.

        Returns:
            What was chosen, for the record: plain values.

        Raises:
            TunekitError: the model cannot be pruned so.
        """

    def shrink(self, pruning: Pruning, chosen: Mapping[str, Any]) -> None:
        """Cuts away what was chosen, and tells the model's config; nothing to do where zeros stay as zeros.

        Raises:
            TunekitError: the config has no way to say so.
        """

    def kept(self, chosen: Mapping[str, Any], weight: Weight) -> float:
        """The share of a source's tensor that is still on the disk: 1 for one that is whole, 0 for one that is not."""

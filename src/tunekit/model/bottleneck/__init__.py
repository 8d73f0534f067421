"""Bottleneck adapters (Houlsby, Pfeiffer, parallel) as one more kind of PEFT; PEFT itself has none.

PEFT types `PeftConfig.peft_type` as an enum member or a plain string, and looks it up in three dictionaries when it
wraps a model, saves an adapter and loads one. `register` enters a plain string there. PEFT's own
`register_peft_method` does the same but takes only members of its enum, and an enum cannot be added to.
"""

from __future__ import annotations

from typing import Literal

KIND = "TUNEKIT_BOTTLENECK"
"""The `peft_type` of adapter_config.json: PEFT alone, without tunekit, names it when it refuses the folder."""
PREFIX = "bottleneck_"

Style = Literal["pfeiffer", "houlsby", "parallel"]
Nonlinearity = Literal["relu", "gelu", "silu", "tanh"]


def register() -> None:
    """Makes the kind known to PEFT; to be called before a folder with an adapter is loaded. Again does nothing."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    from tunekit.model.bottleneck.config import BottleneckConfig
    from tunekit.model.bottleneck.tuner import BottleneckModel

    PEFT_TYPE_TO_CONFIG_MAPPING[KIND] = BottleneckConfig
    PEFT_TYPE_TO_TUNER_MAPPING[KIND] = BottleneckModel
    PEFT_TYPE_TO_PREFIX_MAPPING[KIND] = PREFIX

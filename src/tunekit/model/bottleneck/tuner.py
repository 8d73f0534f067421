"""How PEFT puts bottleneck adapters on a model."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from tunekit.core.errors import UserError
from tunekit.model.bottleneck import PREFIX
from tunekit.model.bottleneck.config import BottleneckConfig
from tunekit.model.bottleneck.layer import BottleneckLayer
from tunekit.model.bottleneck.places import find_places


class BottleneckModel(BaseTuner):
    """PEFT's tuner for bottleneck adapters; made by `peft.get_peft_model` and `PeftModel.from_pretrained`."""

    prefix = PREFIX
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}  # told from the model's structure instead

    def _check_new_adapter_config(self, config: BottleneckConfig) -> None:
        super()._check_new_adapter_config(config)
        styles = {each.style for each in self.peft_config.values()}
        if "parallel" in styles and len(styles) > 1:
            raise UserError(
                f"parallel bottleneck adapters do not go together with those of style {min(styles - {'parallel'})}",
                where="adapter",
                fix="load them one at a time, each on a fresh model",
            )

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict[str, Any]) -> BottleneckConfig:
        peft_config.target_modules = find_places(self.model, peft_config.style)
        return peft_config

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            layer = target
        else:
            layer = BottleneckLayer(target, self.model.config.get_text_config(decoder=True).hidden_size)
            layer.set_adapter(self.active_adapters)
            self._replace_module(parent, target_name, layer, target)
        layer.update_layer(adapter_name, peft_config)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own hands the weight on to the new module, and a whole MLP has none
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> NoReturn:
        raise UserError(
            "bottleneck adapters cannot be merged into the weights: there is a nonlinearity between their projections",
            fix="use the base model together with the adapter, or train a kind that merges, such as lora",
        )

"""How far a forward pass is, told while it runs."""

from collections.abc import Callable
from typing import Any

from torch import nn


def tell_progress_inplace(model: nn.Module, beat: Callable[[], None]) -> None:
    """Call ``beat`` whenever the model comes to one of its layers: to a member of any of its lists of modules.

    A pass over a long prompt may take minutes, one layer of it does not: so a pass that takes long can be told from
    one that hangs. Costs some microseconds per layer and pass.
    """

    def before_layer(_module: nn.Module, _arguments: Any) -> None:
        beat()

    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                layer.register_forward_pre_hook(before_layer)

"""The ways to make a frozen encoder learn, by name, at the sizes at which 3DSAM-adapter's table compares them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from volsam.adapters.bottleneck import add_houlsby, add_pro_tuning, add_st_adapter
from volsam.adapters.lowrank import add_fact, add_lora
from volsam.adapters.med_tuning import add_med_tuning
from volsam.adapters.slices import add_gated_surround
from volsam.adapters.spatial import add_spatial_adapters
from volsam.errors import BadInput
from volsam.models.encoder import Encoder

Method = Literal[
    "full", "adapter", "pro-tuning", "st-adapter", "med-tuning", "fact", "lora", "3dsam-adapter", "sam-med2d"
]
"""Those of the table, and FacT, LoRA and SAM-Med2D's adapter; `full` adds nothing and lets everything learn."""

METHODS: tuple[Method, ...] = get_args(Method)


def require_method(method: str) -> None:
    """Refuse a name that is none of a method's."""
    if method not in METHODS:
        raise BadInput(f"the method {method!r} is not known: choose one of {', '.join(METHODS)}")


def add_method(encoder: Encoder, method: Method) -> None:
    """Fill the places of an encoder as a method does; widths are the published share of the encoder's."""
    require_method(method)
    _ADD[method](encoder)


def _half(encoder: Encoder) -> int:
    """384 of 768 channels."""
    return encoder.config.width // 2


_ADD: dict[Method, Callable[[Encoder], None]] = {
    "full": lambda encoder: None,
    # The table gives no layout; two a block with 205 of 768 channels have the number of weights that it states.
    "adapter": lambda encoder: add_houlsby(encoder, max(1, round(encoder.config.width * 205 / 768))),
    "pro-tuning": lambda encoder: add_pro_tuning(encoder, _half(encoder)),
    "st-adapter": lambda encoder: add_st_adapter(encoder, _half(encoder)),
    "med-tuning": lambda encoder: add_med_tuning(encoder, _half(encoder)),
    "fact": add_fact,
    "lora": add_lora,
    "3dsam-adapter": lambda encoder: add_spatial_adapters(encoder, _half(encoder)),
    "sam-med2d": add_gated_surround,
}

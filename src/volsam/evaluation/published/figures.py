"""What the originals weigh and cost, so that nothing is compared with a reference that is not one.

Parameters in millions and GFLOP of one call at the usual size, both measured on the originals: floating point
operations are twice the multiply-adds of matrix products, convolutions and attention, as `torch.utils.flop_counter`
counts them. The products with relative position tables are among them; interpolation is not. SAM-Med2D was not
measured; its parameters are those of its released checkpoint. 3DSAM-adapter's prompt encoder is stored four times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from volsam.errors import BadInput
from volsam.evaluation.published import auto_sam, ma_sam, sam, sam_adapter_3d

TOLERANCE = 0.01
"""Largest relative difference of the operations, beside the rounding of the published number."""


@dataclass(frozen=True)
class Printed:
    """Numbers as published, with their digits: millions of parameters, and GFLOP where they are known."""

    parameters: str
    gflop: str | None


@dataclass(frozen=True)
class Figures:
    """Millions of parameters, and GFLOP of one call."""

    parameters: float
    gflop: float


PUBLISHED: dict[str, Printed] = {
    "fastsam3d.encoder": Printed("45.6", "49.6"),
    "sam-med3d.click": Printed("7.6", "1.47"),
    "sam-med3d.encoder": Printed("92.9", "368.6"),
    "sam.encoder": Printed("89.7", "972"),
    "sam.decoder": Printed("4.1", "3.6"),
    "sam-256.encoder": Printed("86.7", "69"),
    "sam-256.decoder": Printed("4.1", "0.27"),
    "sam-med2d": Printed("271.2", None),
    "3dsam-adapter.encoder": Printed("104", "7806"),
    # 4 × 3,164,160 + 7,088,256 weights; 19.8 in one listing, which rounds up.
    "3dsam-adapter.decoder": Printed("19.7", "1290"),
    "ma-sam": Printed("117", "1413"),
    "autosam": Printed("93.5", "1022"),
}


def check(name: str) -> Figures:
    """The figures of our reference for a part of a published network; refused unless they are those of the original."""
    printed, found = PUBLISHED[name], count(name)
    if not agrees(found.parameters, printed.parameters, 0.0):
        wrong = f"has {found.parameters:.3f} M parameters, the original {printed.parameters}"
    elif printed.gflop is not None and not agrees(found.gflop, printed.gflop, TOLERANCE):
        wrong = f"takes {found.gflop:.3f} GFLOP, the original {printed.gflop}"
    else:
        return found
    raise BadInput(f"the reference {name} {wrong}: it is not the published network, so no ratio to it is printed")


def agrees(value: float, printed: str, tolerance: float) -> bool:
    """Whether a value is a printed one, within its rounding or a relative tolerance."""
    rounding = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    return abs(value - float(printed)) <= max(rounding * (1 + 1e-9), tolerance * float(printed))


def count(name: str) -> Figures:
    """Build the reference without memory for its weights, and count."""
    with torch.device("meta"):
        modules, call = _CALLS[name]()
        for module in modules:
            module.requires_grad_(False)
        with torch.no_grad():
            operations = flops(call)
    weights = {parameter: parameter.numel() for module in modules for parameter in module.parameters()}
    return Figures(sum(weights.values()) / 1e6, operations / 1e9)


def flops(call: Callable[[], object]) -> int:
    """Operations of one call; attention is counted as its two products, whatever kernel would run."""
    with FlopCounterMode(display=False, custom_mapping=_FUSED) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return int(counter.get_total_flops())


def _of_linear(x: Sequence[int], weight: Sequence[int], *_others: object, **_more: object) -> int:
    return 2 * prod(x) * weight[0]


# A linear layer with its activation in one step, which the counter does not know.
_FUSED = {torch.ops.mkldnn._linear_pointwise: _of_linear} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else {}


Call = tuple[list[nn.Module], Callable[[], object]]


def _encoder(network: sam.Sam, *size: int) -> Call:
    return [network.image_encoder], lambda: network.image_encoder(torch.empty(1, *size))


def _decoder(network: sam.Sam, mask: bool) -> Call:
    """Prompt encoder with one point and decoder. Tokens are given to the decoder by hand: boolean indices, by which the
    prompt encoder marks its points, have no size where there is no memory. They cost no counted operation but the code.
    """
    parts = network.prompt_encoder, network.mask_decoder
    rank, grid = parts[0].rank, parts[0].grid
    width = parts[0].no_mask_embed.weight.shape[1]

    def call() -> Tensor:
        sparse = parts[0].pe_layer(torch.empty(1, 2, rank))
        _, dense = parts[0](mask=torch.empty(1, 1, *[4 * grid] * rank) if mask else None)
        return parts[1](torch.empty(1, width, *[grid] * rank), parts[0].dense_code(), sparse, dense)[0]

    return list(parts), call


def _adapter_encoder() -> Call:
    network = sam_adapter_3d.SamAdapter3D()
    return [network.image_encoder], lambda: network.encode(torch.empty(1, 1, 128, 128, 128))


def _adapter_decoder() -> Call:
    network = sam_adapter_3d.SamAdapter3D()
    features = [torch.empty(1, 256, 32, 32, 32)] * 4
    parts: list[nn.Module] = [network.prompt_encoders, network.mask_decoder]
    return parts, lambda: network.decode(torch.empty(1, 1, 128, 128, 128), features, torch.empty(1, 1, 3))


def _whole(network: nn.Module, *size: int) -> Call:
    return [network], lambda: network(torch.empty(size))


_CALLS: dict[str, Callable[[], Call]] = {
    "fastsam3d.encoder": lambda: _encoder(sam.fast_sam_3d(), 1, 128, 128, 128),
    "sam-med3d.click": lambda: _decoder(sam.fast_sam_3d(), mask=True),
    "sam-med3d.encoder": lambda: _encoder(sam.sam_med3d(), 1, 128, 128, 128),
    "sam.encoder": lambda: _encoder(sam.sam_b(), 3, 1024, 1024),
    "sam.decoder": lambda: _decoder(sam.sam_b(), mask=False),
    "sam-256.encoder": lambda: _encoder(sam.sam_b(256), 3, 256, 256),
    "sam-256.decoder": lambda: _decoder(sam.sam_b(256), mask=False),
    "sam-med2d": lambda: ([network := sam.sam_med2d()], lambda: network.image_encoder(torch.empty(1, 3, 256, 256))),
    "3dsam-adapter.encoder": _adapter_encoder,
    "3dsam-adapter.decoder": _adapter_decoder,
    "ma-sam": lambda: _whole(ma_sam.MaSam(), 1, 5, 3, 512, 512),
    "autosam": lambda: _whole(auto_sam.AutoSam(), 1, 3, 1024, 1024),
}

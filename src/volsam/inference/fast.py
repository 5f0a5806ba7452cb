"""A segmenter for a GPU: both steps recorded once as CUDA graphs in half precision, and replayed.

At batch 1 a GPU waits for the host to launch kernels one by one; a recorded graph is one launch. It always works on the
same memory and the same shapes, so inputs are copied to where it reads them, results from where it writes them, and the
number of points is rounded up with points that are absent and change nothing.

The recording itself has not been tried on a GPU yet; everything around it is tested on the CPU, with a stand-in that
runs the step again instead of replaying it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.errors import BadInput
from volsam.models.features import Features, Prediction
from volsam.models.folded import FoldedTwoWay, folded
from volsam.models.mask_head import Candidates
from volsam.models.prompt_encoder import NOT_A_POINT, PromptBatch
from volsam.models.segmenter import Part, Segmenter, SegmenterConfig

Capture: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a step does to its memory; what comes back does it again."""


def cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Record a step as a CUDA graph, after three runs in which libraries choose their kernels and take their memory."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@dataclass(frozen=True)
class _Recorded:
    """A step with the memory it reads and writes."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        for place, tensor in zip(self.inputs, given, strict=True):
            place.copy_(tensor, non_blocking=True)
        self.replay()
        return tuple(output.clone() for output in self.outputs)  # the next replay writes over them


class FastSegmenter:
    """Answers as the segmenter it was made of does at that moment: `encode`, `draft`, `refine` and `decode`.

    Every new shape (batch, points up to the next power of two, boxes, mask or none) is recorded at its first use. Not
    for training, and not for several threads at once.

    precision: of matrix products and convolutions; norms, sums and the position code stay in float32. capture: another
    way to record than a CUDA graph.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        device: str | torch.device = "cuda",
        precision: torch.dtype = torch.bfloat16,
        capture: Capture | None = None,
    ) -> None:
        self.device = torch.device(device)
        if capture is None and (self.device.type != "cuda" or not torch.cuda.is_available()):
            raise BadInput(
                f'CUDA graphs need a GPU of NVIDIA, got device "{self.device}" '
                f"({'one is there' if torch.cuda.is_available() else 'none is there'}): use the segmenter itself"
            )
        self.precision = precision
        self._capture = capture or cuda_graph
        self._steps: dict[tuple[object, ...], _Recorded] = {}
        self._segmenter = in_precision(folded(copy.deepcopy(segmenter).to(self.device).eval()), precision)

    @property
    def config(self) -> SegmenterConfig:
        """That of the segmenter."""
        return self._segmenter.config

    @torch.inference_mode()
    def encode(self, image: Float[Tensor, "b c d h w"]) -> Features:
        """The costly step."""
        step = self._recorded(("encode", image.shape), self._encode, (image,))
        embedding, *taps = step(image)
        return Features(embedding, tuple(taps), image)

    @torch.inference_mode()
    def draft(
        self, features: Features, prompts: PromptBatch | None = None, candidates: Candidates = "one"
    ) -> tuple[Float[Tensor, "b n d h w"], Float[Tensor, "b n"]]:
        """Mask logits at low resolution and their qualities."""
        said = filled_up(PromptBatch() if prompts is None else prompts)
        parts = (said.points, said.labels, said.boxes, said.mask, said.absent)
        present = [part is not None for part in parts]
        given = (features.embedding, *(part for part in parts if part is not None))

        def decode(embedding: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            left = list(tensors)
            asked = PromptBatch(*(left.pop(0) if there else None for there in present))
            return self._segmenter.draft(Features(embedding, (), embedding), asked, candidates)

        key = ("draft", candidates, *present, *(tensor.shape for tensor in given))
        low_res, quality = self._recorded(key, decode, given)(*given)
        return low_res, quality

    @torch.inference_mode()
    def refine(self, features: Features, low_res: Float[Tensor, "b n d h w"], part: Part) -> Float[Tensor, "b n D H W"]:
        """A part of the logits at the size of the image; its shape is another every time, so it is not recorded."""
        return self._segmenter.refine(features, low_res, part)

    @torch.inference_mode()
    def decode(
        self, features: Features, prompts: PromptBatch | None = None, candidates: Candidates = "one"
    ) -> Prediction:
        """The cheap step."""
        low_res, quality = self.draft(features, prompts, candidates)
        d, h, w = features.image.shape[2:]
        whole = (slice(0, d), slice(0, h), slice(0, w))
        return Prediction(self.refine(features, low_res, whole), quality, low_res)

    def _encode(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self._segmenter.encode(image)
        return (features.embedding, *features.taps)

    def _recorded(
        self, key: tuple[object, ...], step: Callable[..., tuple[Tensor, ...]], like: tuple[Tensor, ...]
    ) -> _Recorded:
        if key not in self._steps:
            inputs = tuple(tensor.detach().to(self.device, copy=True) for tensor in like)
            outputs: list[Tensor] = []

            def run() -> None:
                # Nothing that autocast keeps between two calls may be part of a recording.
                with torch.autocast(
                    self.device.type, self.precision, enabled=self.precision != torch.float32, cache_enabled=False
                ):
                    found = [part.float() for part in step(*inputs)]
                if not outputs:
                    outputs.extend(torch.empty_like(part) for part in found)
                for place, part in zip(outputs, found, strict=True):
                    place.copy_(part)

            run()
            self._steps[key] = _Recorded(inputs, tuple(outputs), self._capture(run))
        return self._steps[key]


def filled_up(prompts: PromptBatch) -> PromptBatch:
    """The same prompts, their points filled up to the next power of two by absent ones."""
    if prompts.points is None or prompts.labels is None:
        return prompts
    batch, count = prompts.labels.shape
    more = bucket(count) - count
    absent = prompts.labels.new_zeros((batch, count), dtype=torch.bool) if prompts.absent is None else prompts.absent
    return PromptBatch(
        F.pad(prompts.points, (0, 0, 0, more)),
        F.pad(prompts.labels, (0, more), value=NOT_A_POINT),
        prompts.boxes,
        prompts.mask,
        F.pad(absent, (0, more), value=True),
    )


def bucket(count: int) -> int:
    """The next power of two, at least one."""
    return 1 << max(0, count - 1).bit_length()


def in_precision(segmenter: Segmenter, precision: torch.dtype) -> Segmenter:
    """The same segmenter with the weights of its matrix products in `precision`, or mixed precision would convert them
    at every call. Those of the prompt encoder stay: they are few, and positions need all their digits.
    """
    for part in (segmenter.encoder, segmenter.mask_head):
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Conv3d | nn.ConvTranspose3d):
                module.to(precision)
            elif isinstance(module, FoldedTwoWay):
                module.weights_to(precision)
    return segmenter

"""A segmenter whose clicks OpenVINO computes: hundreds of small steps become few, in one call.

A click takes milliseconds, and torch spends a third of them between its steps. An image takes large matrix products,
which torch computes as fast, so encoding stays with it. The weights are the same, in float32; results differ by
rounding.

Recording the network takes seconds, so what OpenVINO needs is kept in a folder, under a name that follows from all that
it was made of. Even then it takes some tenths of a second to be ready, so the first clicks go through torch.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from volsam.errors import NotSupported
from volsam.models.features import Features, Prediction
from volsam.models.mask_head import Candidates
from volsam.models.prompt_encoder import PromptBatch
from volsam.models.segmenter import Part, Segmenter, SegmenterConfig, enlarge

log = logging.getLogger(__name__)

TOKENS = 2
"""A click and the point that ends the list: what the published 3D models are given. Other prompts go through torch."""

FIRST_CLICKS = 4
"""So many clicks are answered by torch, unless `ready` was called: one who asks for few need not wait."""

KEPT = 4
"""Recorded networks in the folder, the newest; one of SAM-Med3D takes 30 MB."""

FORM = 1
"""Of what is recorded: a new number for a change of `_Click` that is not in the weights."""


def openvino() -> Any:
    """The library; refused in a line where it is not."""
    try:
        import openvino as library
    except ImportError as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({error})"
        raise NotSupported(
            f'the engine openvino was asked for and {reason}: pip install "volsam[openvino]", or take the engine torch'
        ) from None
    return library


class OpenVinoSegmenter:
    """Answers as the segmenter it was made of: `encode`, `draft`, `refine` and `decode`, without gradients.

    One click on one image, with the mask before it or without, goes through OpenVINO, on as many threads as torch has
    at that moment; the first few do not. The segmenter's weights must not change any more. Not for several threads of a
    program at once.

    folder: where recorded networks are kept; None for nowhere.
    """

    def __init__(self, segmenter: Segmenter, folder: Path | None = None) -> None:
        self._library = openvino()
        self._segmenter = segmenter.eval()
        self._folder = folder
        self._threads = 0
        self._request: Any = None
        self._answered = 0
        self._failed = False

    @property
    def segmenter(self) -> Segmenter:
        """The one it was made of."""
        return self._segmenter

    @property
    def device(self) -> torch.device:
        """Where it takes tensors and gives them."""
        return torch.device("cpu")

    @property
    def config(self) -> SegmenterConfig:
        """That of the segmenter."""
        return self._segmenter.config

    def ready(self) -> None:
        """Make everything that a click needs, for the threads that torch has now."""
        threads = torch.get_num_threads()
        if self._request is None or threads != self._threads:
            options = {
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",
            }
            compiled = self._library.Core().compile_model(self._recorded(), "CPU", options)
            self._request, self._threads = compiled.create_infer_request(), threads

    @torch.inference_mode()
    def encode(self, image: Float[Tensor, "b c d h w"]) -> Features:
        """The costly step."""
        found = self._segmenter.encode(image)
        return Features(found.embedding.contiguous(), found.taps, image)

    @torch.inference_mode()
    def draft(
        self, features: Features, prompts: PromptBatch | None = None, candidates: Candidates = "one"
    ) -> tuple[Float[Tensor, "b n d h w"], Float[Tensor, "b n"]]:
        """Mask logits at low resolution and their qualities."""
        said = PromptBatch() if prompts is None else prompts
        tokens, _ = self._segmenter.prompt_encoder(PromptBatch(said.points, said.labels, said.boxes))
        alone = features.embedding.shape[0] == said.batch == 1 and tokens.shape[1] == TOKENS and said.absent is None
        if not alone or candidates != "one" or not self._takes_over():
            return self._segmenter.draft(features, said, candidates)
        mask = torch.zeros(1, 1, *_mask_shape(self.config)) if said.mask is None else said.mask
        given = torch.full((1,), float(said.mask is not None))
        for index, tensor in enumerate((features.embedding, tokens, mask, given)):
            array = tensor.contiguous().numpy()
            self._request.set_input_tensor(index, self._library.Tensor(array, shared_memory=True))
        self._request.infer()
        low_res, quality = (torch.from_numpy(self._request.get_output_tensor(i).data.copy()) for i in range(2))
        return low_res, quality

    @torch.inference_mode()
    def refine(self, features: Features, low_res: Float[Tensor, "b n d h w"], part: Part) -> Float[Tensor, "b n D H W"]:
        """A part of the logits at the size of the image."""
        return self._segmenter.refine(features, low_res, part)

    @torch.inference_mode()
    def decode(
        self, features: Features, prompts: PromptBatch | None = None, candidates: Candidates = "one"
    ) -> Prediction:
        """The cheap step."""
        low_res, quality = self.draft(features, prompts, candidates)
        d, h, w = features.image.shape[2:]
        return Prediction(enlarge(low_res, (d, h, w)), quality, low_res)

    def _takes_over(self) -> bool:
        """Whether OpenVINO answers the next click, for which it is made ready; not the first few, nor if it fails."""
        self._answered += 1
        if self._failed or (self._request is None and self._answered <= FIRST_CLICKS):
            return False
        try:
            self.ready()
        except RuntimeError as error:
            reason = str(error).strip().rpartition("\n")[2]
            log.warning("OpenVINO cannot compute the clicks of this network (%s): torch does", reason)
            self._failed = True
        return not self._failed

    def _recorded(self) -> Any:
        """The network of a click as OpenVINO has it: from the folder, or made, and put there."""
        core = self._library.Core()
        if self._folder is None:
            return recorded(self._segmenter)
        place = self._folder / fingerprint(self._segmenter)
        try:
            return core.read_model(place / "click.xml")
        except RuntimeError:  # not there, or not whole
            network = recorded(self._segmenter)
        try:
            with _new_folder(place) as new:
                self._library.save_model(network, new / "click.xml", compress_to_fp16=False)
        except (OSError, RuntimeError) as error:
            log.warning("the recorded network cannot be kept in %s (%s): it is made again next time", place, error)
        return network


class _Click(nn.Module):
    """Embedding, tokens, mask and whether there is one (1 or 0) to low-resolution logits and their quality."""

    place: Tensor

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.mask, self.head = segmenter.prompt_encoder.mask, segmenter.mask_head
        self.no_mask = segmenter.prompt_encoder.no_mask
        self.register_buffer("place", segmenter.prompt_encoder.code.of_grid, persistent=False)

    def forward(self, embedding: Tensor, tokens: Tensor, mask: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        dense = given * self.mask(mask) + (1 - given) * self.no_mask.view(1, -1, 1, 1, 1)
        return self.head(embedding, self.place, tokens, dense)


def recorded(segmenter: Segmenter) -> Any:
    """The network of one click, as a model of OpenVINO."""
    config = segmenter.config
    shapes = (
        (1, config.encoder.out, *config.encoder.grid),
        (1, TOKENS, config.prompts.width),
        (1, 1, *_mask_shape(config)),
        (1,),
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that shapes become constants, which they are here
        like = tuple(torch.zeros(shape) for shape in shapes)
        traced = torch.jit.trace(_Click(segmenter).eval(), like, check_trace=False)
        return openvino().convert_model(traced, input=[list(shape) for shape in shapes])


def fingerprint(segmenter: Segmenter) -> str:
    """A name that follows from the weights of a click, their sizes, and what made the recording of them."""
    digest = hashlib.sha256(f"{FORM} {openvino().__version__} {torch.__version__}".encode())
    digest.update(segmenter.config.model_dump_json().encode())
    for part in (segmenter.prompt_encoder, segmenter.mask_head):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()[:32]


def _mask_shape(config: SegmenterConfig) -> tuple[int, ...]:
    """Voxels of a mask prompt."""
    return tuple(size * step**2 for size, step in zip(config.prompts.grid, config.prompts.mask_stride, strict=True))


@contextmanager
def _new_folder(place: Path) -> Iterator[Path]:
    """A folder that appears under its name when it is complete; the oldest beside it go."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = [path for path in place.parent.iterdir() if path.is_dir()]
    for old in sorted(beside, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    new = place.with_name(f".{place.name}-{uuid4().hex}")
    new.mkdir()
    try:
        yield new
        if place.exists():  # what was there could not be read
            shutil.rmtree(place)
        new.rename(place)
    finally:
        shutil.rmtree(new, ignore_errors=True)

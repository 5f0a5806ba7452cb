from collections.abc import Iterator

import pytest
import torch
from jaxtyping import install_import_hook

_PARTS = (
    "aggregation_head", "attention", "dense_heads", "encoder", "mask_head", "prompt_encoder", "segmenter",
    "slice_merge", "two_way", "visual_sampler",
)  # fmt: skip

# Shapes in signatures are checked while these tests run; in use they cost nothing.
install_import_hook([f"volsam.models.{part}" for part in _PARTS], "beartype.beartype")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Toy sizes run fastest on one thread, and share a busy machine best."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

"""A user's own checkout of an original as the reference, instead of what is written out here.

Its classes are imported from their files in a package namespace of their own, so that two checkouts, or one and an
installed `segment_anything`, do not meet; what stands in `__init__.py` (imports of training and test utilities) is left
out. Until a network is built, files are looked at and nothing is executed.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import zlib
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from volsam.errors import BadInput

HOMES = ("segment_anything/modeling", "modeling")
PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")


class Checkout:
    """A folder with an original's `segment_anything` package. `fits` names the published networks it holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        home = next((path / home for home in HOMES if (path / home).is_dir()), None)
        if home is None:
            raise BadInput(f"{path} has no segment_anything/modeling: give the folder of a checkout of the original")
        self.home = home
        self.rank = 3 if (home / "image_encoder3D.py").is_file() else 2
        missing = [name for name in self._files() if not (home / name).is_file()]
        if missing:
            raise BadInput(f"{home} lacks {', '.join(missing)}: give a whole checkout of SAM, or of a relative of it")

    @property
    def fits(self) -> tuple[str, ...]:
        """Which networks it can stand for, told from the words in its files."""
        text = (self.home / self._files()[0]).read_text(encoding="utf-8", errors="replace")
        if self.rank == 3:
            return ("fastsam3d",) if "skip_layer" in text else ("sam-med3d",)
        return ("sam-med2d",) if "adapter" in text.lower() else ("sam", "sam-256")

    def _files(self) -> list[str]:
        suffix = "3D" if self.rank == 3 else ""
        return [f"{part}{suffix}.py" for part in PARTS] + ([] if self.rank == 3 else ["transformer.py"])

    def build(self, name: str, image: int) -> nn.Module:
        """The network `name` for an image of that edge; it is called like `published.sam.Sam`."""
        if name not in self.fits:
            raise BadInput(f"{self.path} holds {' and '.join(self.fits)}, not {name}: choose --models accordingly")
        try:
            return CheckoutSam(self, name, image)
        except BadInput:
            raise
        except Exception as error:  # whatever the code of others raises
            reason = str(error).strip().partition("\n")[0]
            raise BadInput(
                f"{self.path}: its {name} could not be built ({type(error).__name__}: {reason}); it must be a working "
                "checkout, with what it imports installed"
            ) from error

    def find(self, module: str, name: str) -> Any:
        """A class of the checkout."""
        found = getattr(self._module(module), name, None)
        if found is None:
            raise BadInput(f"{self.home / f'{module}.py'} defines no {name}, which the released package does")
        return found

    def _module(self, name: str) -> ModuleType:
        package = f"_volsam_checkout_{zlib.crc32(str(self.home.resolve()).encode()):08x}"
        for own, folder in ((package, self.home.parent), (f"{package}.modeling", self.home)):
            if own not in sys.modules:
                module = ModuleType(own)
                module.__path__ = [str(folder)]
                sys.modules[own] = module
        return importlib.import_module(f"{package}.modeling.{name}")


def accepted(factory: Any, **arguments: Any) -> Any:
    """Call a class with those arguments that it knows; releases differ in a few."""
    known = inspect.signature(factory).parameters
    return factory(**{name: value for name, value in arguments.items() if name in known})


class CheckoutSam(nn.Module):
    """The three parts of a checkout, behind the calls of `published.sam.Sam`."""

    def __init__(self, checkout: Checkout, name: str, image: int) -> None:
        super().__init__()
        rank, grid, width = checkout.rank, image // 16, 384 if checkout.rank == 3 else 256
        student = name == "fastsam3d"
        suffix = "3D" if rank == 3 else ""
        self.image_encoder = accepted(
            checkout.find(f"image_encoder{suffix}", f"ImageEncoderViT{suffix}"),
            depth=6 if student else 12,
            embed_dim=768,
            img_size=image,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=6 if student else 12,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=[2, 5, 8, 11],
            window_size=0 if student else 14,
            out_chans=width,
            skip_layer=2 if student else 0,
            adapter_train=True,
        )
        self.image_encoder.register_forward_hook(lambda _module, _given, output: embedding_in(output))
        self.prompt_encoder = accepted(
            checkout.find(f"prompt_encoder{suffix}", f"PromptEncoder{suffix}"),
            embed_dim=width,
            image_embedding_size=(grid,) * rank,
            input_image_size=(image,) * rank,
            mask_in_chans=16,
        )
        self.prompt_encoder.rank, self.prompt_encoder.image, self.prompt_encoder.grid = rank, image, grid
        transformer: dict[str, Any] = {}
        if rank == 2:
            two_way = checkout.find("transformer", "TwoWayTransformer")
            transformer["transformer"] = two_way(depth=2, embedding_dim=width, mlp_dim=2048, num_heads=8)
        self.mask_decoder = accepted(
            checkout.find(f"mask_decoder{suffix}", f"MaskDecoder{suffix}"),
            num_multimask_outputs=3,
            transformer_dim=width,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
            **transformer,
        )

    def forward(
        self, embedding: Tensor, points: Tensor, labels: Tensor, boxes: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The single mask (b 1 *size) and its quality."""
        sparse, dense = self.prompt_encoder(points=(points, labels), boxes=boxes, masks=mask)
        return self.mask_decoder(
            image_embeddings=embedding,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )


def embedding_in(output: Any) -> Tensor:
    """The embedding in what an encoder gives: FastSAM3D's gives all stages, in some versions with their seconds."""
    while not isinstance(output, Tensor):
        tensors = [part for part in output if isinstance(part, torch.Tensor | list | tuple)]
        output = tensors[-1]
    return output

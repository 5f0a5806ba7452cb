"""Does a training fit a graphics card? What every method holds at the sizes of its paper, computed without computing.

    python benchmarks/adaptation/memory.py

Networks, tasks and losses are those of `volsam train`, on torch's meta device (counting.py); no GPU is needed, and none
was at hand. What is done already, in memory.json, is not done again; memory.md is written after every case.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from counting import Step, step
from torch import Tensor

from volsam.data.preparation import Preparation
from volsam.evaluation.published.sam import Sam
from volsam.models import sizes
from volsam.models.encoder import Encoder
from volsam.recipes.methods.method import load_methods
from volsam.training.run import Plan

HERE = Path(__file__).parent
SAMS = {"ViT-B": sizes.SAM_B, "ViT-L": sizes.SAM_L, "ViT-H": sizes.SAM_H}
GB = 2**30
# What a card has, and what of it the numbers here may fill: the device's context, workspaces of convolutions and what
# lies idle between blocks take the rest.
CARDS = {8: 6.5, 12: 10.0}


@dataclass(frozen=True)
class Case:
    """A method at some size; a step is of `batch` items, which go through in so many `parts`."""

    method: str
    patch: tuple[int, int, int]
    classes: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    sam: str = ""
    batch: int = 1
    parts: int = 1

    @property
    def name(self) -> str:
        """For the table, and to know it again."""
        told = " ".join(f"{key}={value}" for key, value in self.settings.items())
        size = " × ".join(map(str, self.patch))
        return f"{self.method} {self.sam} | {size} | {self.batch}{' twice' * (self.parts > 1)} | {told}".replace(
            "  ", " "
        )


MANY = 20
"""Training cases, of which some methods let their settings depend."""
VOLUME = {"edge": 256, "enlarged": 2}
CASES = (
    Case("ma-sam", (5, 512, 512), 13, {"edge": 512}, "ViT-H"),
    Case("ma-sam", (5, 512, 512), 13, {"edge": 512, "recompute": True}, "ViT-H"),
    Case("ma-sam", (5, 512, 512), 13, {"edge": 512}, "ViT-B"),
    Case("3dsam-adapter", (128,) * 3, 2, {"edge": 128}, "ViT-B"),
    Case("3dsam-adapter", (128,) * 3, 2, {"edge": 128, "recompute": True}, "ViT-B"),
    Case("3dsam-adapter", (128,) * 3, 2, {"edge": 128, "recompute": True, "out": 64}, "ViT-B"),
    Case("3dsam-adapter", (96,) * 3, 2, {"edge": 96, "recompute": True, "out": 64}, "ViT-B"),
    Case("3dsam-adapter-auto", (128,) * 3, 2, {"edge": 128, "enlarged": 2}, "ViT-B"),
    Case("3dsam-adapter-auto", (256,) * 3, 2, VOLUME, "ViT-B"),
    Case("3dsam-adapter-auto", (256,) * 3, 2, {**VOLUME, "recompute": True}, "ViT-B"),
    Case("lora", (256,) * 3, 2, VOLUME, "ViT-B"),
    Case("full", (256,) * 3, 2, VOLUME, "ViT-B"),
    Case("autosam", (1, 1024, 1024), 4, {"edge": 1024}, "ViT-B", 4),
    Case("sam-med3d", (128,) * 3, 2, {"edge": 128, "patch": 16, "width": 768, "heads": 12, "out": 384, "turns": 11}),
    Case("adapt", (64,) * 3, 14, {}, batch=2),
    Case("unet", (96,) * 3, 14, {"edge": 96, "width": 32}, batch=2),
    Case("swin-unetr", (128,) * 3, 14, {"edge": 128, "width": 48}),
    Case("ma-sam", (5, 384, 384), 13, {"edge": 384}, "ViT-B"),
    Case("ma-sam", (3, 512, 512), 13, {"edge": 512, "slices": 3}, "ViT-B"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE)
    output = parser.parse_args().output
    warnings.filterwarnings("ignore")  # of weights that are loaded and have no values
    output.mkdir(parents=True, exist_ok=True)
    path = output / "memory.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found = {case.name: found[case.name] for case in CASES if case.name in found}
    for case in CASES:
        if case.name not in found:
            found[case.name] = {kind: asdict(made) for kind, made in counted(case)}
            found = {case.name: found[case.name] for case in CASES if case.name in found}
            print(case.name, {kind: round(made["peak"] / GB, 1) for kind, made in found[case.name].items()}, flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
            (output / "memory.md").write_text(table(found))


def counted(case: Case) -> Iterator[tuple[str, Step]]:
    """A step in float32 and one in mixed precision."""
    method = load_methods()[case.method]
    config = method.settled(method.config(**case.settings), MANY)
    classes = range(case.classes)
    plan = Plan(
        labels=tuple(map(str, classes)),
        values=tuple(classes),
        channels=1,
        preparation=Preparation(),
        patch=case.patch,
        flip=True,
    )
    with torch.device("meta" if case.sam else "cpu"):  # not every network can be made without values
        task = method.task(method.network(plan, config, sam(case.sam) if case.sam else None), plan, config)
    task.to("meta")
    for module in task.modules():
        if isinstance(module, Encoder):
            module.recompute = config.recompute
    with torch.device("meta"):
        batch = batch_of(case)
    for kind in ("32-true", "bf16-mixed"):
        yield kind, step(task, batch, mixed=kind == "bf16-mixed", parts=case.parts)


@lru_cache
def sam(name: str) -> dict[str, Tensor]:
    """Names and shapes of a released SAM."""
    config = SAMS[name].encoder
    encoder = {"width": config.width, "depth": config.depth, "heads": config.heads, "wide": config.wide_blocks}
    with torch.device("meta"):
        return dict(Sam(2, 1024, encoder=encoder).state_dict())


def batch_of(case: Case) -> dict[str, Tensor]:
    """What the items of a method hold."""
    d, h, w = case.patch
    count = case.batch // case.parts
    batch = {"label": torch.empty(count, d, h, w, dtype=torch.long)}
    if case.method == "autosam":
        return batch | {"embedding": torch.empty(count, 256, 1, h // 16, w // 16)}
    channels = {"ma-sam": 3, "adapt": 6}.get(case.method, 1)
    batch["image"] = torch.empty(count, channels, d, h, w)
    if case.method == "3dsam-adapter":
        batch["points"] = torch.empty(count, 30, 3)
    return batch


def table(found: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """The results file."""
    lines = [
        "# Memory of a training step",
        "",
        "Made by `benchmarks/adaptation/memory.py`: **computed, not measured, since no GPU was at hand.** GB are 2^30 "
        "bytes. Peak is weights, gradients, AdamW's numbers and all that the passes hold at the worst moment; it fits "
        + " and ".join(f"a card of {card} GB where it is at most {most:g}" for card, most in CARDS.items())
        + ", so that there is room for the device's context, workspaces of convolutions and what lies idle between "
        "blocks. Left for the backward pass: what grows with the size of the input.",
        "",
        "| method | input | batch | settings | weights that learn, frozen | AdamW | left for backward, fp32, bf16 | "
        "peak, fp32, bf16 | fits |",
        "| --- " * 9 + "|",
    ]
    for name, kinds in found.items():
        full, mixed = kinds["32-true"], kinds["bf16-mixed"]
        method, size, batch, settings = name.split(" | ")
        fits = [
            next((f"{card} GB" for card, most in CARDS.items() if each["peak"] <= most * GB), "larger only")
            for each in (full, mixed)
        ]
        told = settings.replace(" ", ", ")
        weights = f"{full['learning'] / 4e6:.1f} M, {full['frozen'] / 4e6:.1f} M"
        kept, peak = (f"{full[part] / GB:.1f}, {mixed[part] / GB:.1f}" for part in ("kept", "peak"))
        row = [method, size, batch, told, weights, f"{full['optimiser'] / GB:.2f}", kept, peak, ", ".join(fits)]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""What trainings from nothing share: copies that agree, weights averaged over steps, and files that appear whole."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

Config = TypeVar("Config")


def read(kind: type[Config], path: Path) -> Config:
    """A dataclass from a YAML file that may give each of its fields."""
    values = yaml.safe_load(path.read_text())
    unknown = set(values) - {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise SystemExit(f"error: {path} holds unknown fields: {', '.join(sorted(unknown))}")
    return kind(**values)


class Copies:
    """Copies of a model that learn together, each in a process of its own."""

    def __init__(self, rank: int, count: int, port: int, backend: str = "gloo") -> None:
        self.rank = rank
        self.count = count
        if count > 1:
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
            os.environ.setdefault("MASTER_PORT", str(port))
            dist.init_process_group(backend, rank=rank, world_size=count)

    def agree(self, progress: float) -> float:
        """How far the schedule is, as the first copy has it: clocks differ, and all must end with the same step."""
        if self.count == 1:
            return progress
        shared = torch.tensor([progress])
        dist.broadcast(shared, 0)
        return float(shared)

    def share(self, model: nn.Module) -> None:
        """Average the gradients over all copies, as one flat tensor."""
        if self.count == 1:
            return
        used = [p for p in model.parameters() if p.requires_grad]
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in used])
        dist.all_reduce(flat)
        flat /= self.count
        for p, part in zip(used, flat.split([p.numel() for p in used]), strict=True):
            p.grad = part.view_as(p)

    def leave(self) -> None:
        """Go apart when all is learnt."""
        if self.count > 1:
            dist.destroy_process_group()


@torch.no_grad()
def follow(mean: Mapping[str, Tensor], model: nn.Module, count: int, most: float) -> None:
    """Move the averaged weights towards those after `count` steps: quickly at first, then with the decay `most`."""
    decay = min(most, (count + 1) / (count + 10))
    for name, value in model.state_dict().items():
        mean[name].lerp_(value, 1 - decay)


def keep(run: Path, state: Mapping[str, Any], name: str, weights: Mapping[str, Tensor]) -> None:
    """All that is needed to go on, and the weights by themselves; both files appear whole or not at all."""
    torch.save(dict(state), run / "last.tmp")
    (run / "last.tmp").replace(run / "last.pt")
    save_file(dict(weights), run / f"{name}.tmp", metadata={"format": "pt"})
    (run / f"{name}.tmp").replace(run / f"{name}.safetensors")


def rest(pause: Path | None) -> float:
    """Wait while the file exists; how long that was, in seconds."""
    began = time.monotonic()
    while pause is not None and pause.exists():
        time.sleep(1)
    return time.monotonic() - began

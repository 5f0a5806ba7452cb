"""Train volsam-s from nothing.

    python benchmarks/default_model/train.py --config benchmarks/default_model/cpu.yaml --data ../shared/data
    python benchmarks/default_model/calibrate.py --data ../shared/data
    python benchmarks/default_model/evaluate.py --model runs/default_model/volsam-s.safetensors --data ../shared/data

The schedule is in minutes, not steps, so that a configuration means the same anywhere. A run that was stopped goes on
from its last checkpoint. Everything a checkpoint needs is in `RUN/last.pt`; the averaged weights are written to
`RUN/volsam-s.safetensors` with every checkpoint.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from scenes import Crop, Sampler, load
from torch import Tensor, nn

from volsam.models.dense_prompt import DensePromptNet
from volsam.training.dense_clicks import Targets, converse

sys.path.append(str(Path(__file__).parents[1]))

from pretraining import Copies, follow, keep, read


@dataclass(frozen=True)
class Config:
    """One run. Every field can be given in the YAML file."""

    minutes: float = 100
    """Wall time of the whole schedule, data preparation not included."""
    processes: int = 2
    """Copies of the model, each on one thread (or one GPU), with gradients averaged."""
    device: str = "cpu"
    crops: int = 4
    """Crops per process and step."""
    small: int = 48
    large: int = 64
    large_from: float = 0.68
    """Part of the schedule after which crops grow from `small` to `large`."""
    rate: float = 1.5e-3
    weight_decay: float = 0.02
    warm_up: int = 80
    average: float = 0.998
    """Decay of the running average of the weights."""
    shares: tuple[float, float, float] = (0.5, 0.2, 0.3)
    """How often a crop's target is an expert's label, a scan's own region, an invented object."""
    invented: int = 800
    seed: int = 0
    early_until: float = 0.45
    """Part of the schedule in which conversations are short."""
    start: str | None = None
    """Weights to begin with (safetensors); without it from nothing."""


def collate(crops: list[Crop], device: str) -> Targets:
    """Crops side by side, each with two objects."""
    image = torch.from_numpy(np.stack([crop.image for crop in crops])).float()
    masks = torch.from_numpy(np.concatenate([crop.masks for crop in crops]))[:, None].float()
    wholes = torch.from_numpy(np.concatenate([crop.wholes for crop in crops])).float()
    clicks = torch.from_numpy(np.concatenate([crop.clicks for crop in crops])).float()
    return Targets(image.to(device), masks.to(device), wholes.to(device), clicks.to(device))


# --- the loop ------------------------------------------------------------------------------------------------------


def train(rank: int, config: Config, data: Path, run: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    copies = Copies(rank, config.processes, 29511, "gloo" if config.device == "cpu" else "nccl")
    device = config.device if config.device == "cpu" else f"{config.device}:{rank}"
    real, invented = load(data, Path(__file__).with_name("split.json"), run, config.invented, 80, config.seed)
    model = DensePromptNet().to(device)
    if config.start is not None:
        model.load_state_dict(load_file(config.start))
    mean = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    count, spent = 0, 0.0
    last = run / "last.pt"
    if last.exists():
        saved = torch.load(last, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        mean, count, spent = saved["mean"], saved["count"], saved["spent"]
    sampler = Sampler(real, invented, config.shares, np.random.default_rng((config.seed, rank, count)))
    generator = torch.Generator().manual_seed(config.seed + 1000 * rank + count)
    started = time.monotonic() - spent
    told, saved_at, history = time.monotonic(), time.monotonic(), []
    while True:
        progress = copies.agree(min(1.0, (time.monotonic() - started) / 60 / config.minutes))
        if progress >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = (
                config.rate
                * min(1, (count + 1) / config.warm_up)
                * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
            )
        size = config.small if progress < config.large_from else config.large
        batch = collate([sampler.draw(size) for _ in range(config.crops)], device)
        loss, scores = converse(model, batch, progress < config.early_until, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        copies.share(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        count += 1
        follow(mean, model, count, config.average)
        history.append((loss.item(), scores[0], scores[min(2, len(scores) - 1)], scores[-1]))
        now = time.monotonic()
        if rank == 0 and now - told > 60:
            told = now
            loss_, one, three, end = np.mean(history, axis=0)
            minutes = (now - started) / 60
            print(f"{minutes:6.1f} min  step {count:5d}  {size}^3  loss {loss_:.3f}", end="  ")
            print(f"dice 1st {one:.3f}  up to 3rd {three:.3f}  last {end:.3f}", flush=True)
            history.clear()
        if rank == 0 and now - saved_at > 240:
            saved_at = now
            _save(run, model, optimiser, mean, count, now - started)
    if rank == 0:
        _save(run, model, optimiser, mean, count, time.monotonic() - started)
    copies.leave()


def _save(
    run: Path, model: nn.Module, optimiser: torch.optim.Optimizer, mean: dict[str, Tensor], count: int, spent: float
) -> None:
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "mean": mean}
    weights = {name: value.contiguous().cpu() for name, value in mean.items()}
    keep(run, {**state, "count": count, "spent": spent}, "volsam-s", weights)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--config", type=Path, default=Path(__file__).with_name("cpu.yaml"))
    words.add_argument("--data", type=Path, default=Path("../shared/data"))
    words.add_argument("--run", type=Path, default=Path("runs/default_model"))
    given = words.parse_args()
    config = read(Config, given.config)
    given.run.mkdir(parents=True, exist_ok=True)
    load(given.data, Path(__file__).with_name("split.json"), given.run, config.invented, 80, config.seed)
    if config.processes == 1:
        train(0, config, given.data, given.run)
    else:
        torch.multiprocessing.spawn(train, (config, given.data, given.run), nprocs=config.processes)


if __name__ == "__main__":
    main()

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
import os
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file, save_file
from scenes import Crop, Sampler, load
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.models.dense_prompt import DensePromptNet
from volsam.models.features import Features
from volsam.models.prompt_maps import NOWHERE, Prompts

CLICKS = 12  # most points in one prompt
PART = 24  # side of the part in which the finest stage is trained
# How often a conversation has so many turns: short ones first, they teach the most per minute.
TURNS = (1, 2, 3, 4, 5, 6, 8, 10)
EARLY_TURNS = (0.40, 0.30, 0.20, 0.10, 0.0, 0.0, 0.0, 0.0)
LATE_TURNS = (0.20, 0.20, 0.20, 0.14, 0.10, 0.08, 0.05, 0.03)


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

    @classmethod
    def read(cls, path: Path) -> Config:
        values = yaml.safe_load(path.read_text())
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise SystemExit(f"error: {path} holds unknown fields: {', '.join(sorted(unknown))}")
        return cls(**values)


# --- what a step sees ----------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """image (b 3 n n n); masks (2b 1 n n n) in 0..1; half: the same at half size; wholes (2b,), in voxels; first clicks
    (2b 3), NOWHERE for the second target of a crop."""

    image: Tensor
    masks: Tensor
    half: Tensor
    wholes: Tensor
    clicks: Tensor


def collate(crops: list[Crop], device: str) -> Batch:
    image = torch.from_numpy(np.stack([crop.image for crop in crops])).float()
    masks = torch.from_numpy(np.concatenate([crop.masks for crop in crops]))[:, None].float()
    wholes = torch.from_numpy(np.concatenate([crop.wholes for crop in crops])).float()
    clicks = torch.from_numpy(np.concatenate([crop.clicks for crop in crops])).float()
    image, masks, wholes, clicks = (x.to(device) for x in (image, masks, wholes, clicks))
    return Batch(image, masks, F.avg_pool3d(masks, 2), wholes, clicks)


def deepest(error: Tensor, generator: torch.Generator) -> Tensor:
    """(b 3) voxel of the input in the middle of `error` (b 1 d h w, 0 or 1, at half size); 35 % anywhere in it.

    A sum of box means of several widths is highest where the error is thickest: near enough to a distance transform,
    and one call for the whole batch.
    """
    score = sum(F.avg_pool3d(error, k, 1, k // 2) for k in (3, 5, 9, 15)) * error
    noise = torch.rand(error.shape, generator=generator).to(error.device)
    anywhere = torch.rand(len(error), generator=generator).to(error.device) < 0.35
    score = torch.where(anywhere[:, None, None, None, None], noise * error, score + 0.1 * noise * error)
    place = score.flatten(1).argmax(1)
    _, h, w = error.shape[-3:]
    index = torch.stack([place // (h * w), place // w % h, place % w], dim=1)
    return 2 * index + torch.randint(0, 2, index.shape, generator=generator).to(index)


def first_prompts(batch: Batch, generator: torch.Generator) -> Prompts:
    """A click, or (15 %) a box with or without one. The crop's own click is where the region was centred."""
    masks = (batch.half > 0.5).float()
    points = torch.full((len(masks), CLICKS, 3), NOWHERE, device=masks.device)
    labels = torch.full((len(masks), CLICKS), -1, device=masks.device)
    found = deepest(masks, generator).float()
    given = batch.clicks[:, :1] > 0
    keep = given & (torch.rand(len(masks), 1, generator=generator).to(masks.device) < 0.8)
    n = batch.masks.shape[-1]
    points[:, 0] = torch.where(keep, batch.clicks.clamp(0, n - 1), found)
    labels[:, 0] = 1
    box = torch.zeros_like(batch.masks)
    for index in range(len(masks)):
        if torch.rand(1, generator=generator).item() > 0.15:
            continue
        places = (batch.masks[index, 0] > 0.5).nonzero()
        if len(places) < 8:
            continue
        low, high = places.amin(0).float(), places.amax(0).float()
        slack = (high - low) * 0.06
        low = (low + slack * torch.randn(3, generator=generator).to(low)).round().clamp(0, n - 1).long()
        high = (high + slack * torch.randn(3, generator=generator).to(low)).round().clamp(0, n - 1).long()
        if torch.rand(1, generator=generator).item() < 0.3:  # a 2D box: one slice, tight there
            axis = int(torch.randint(0, 3, (1,), generator=generator))
            slice_ = int(points[index, 0, axis].round().clamp(0, n - 1))
            there = places[places[:, axis] == slice_]
            if len(there):
                low, high = there.amin(0), there.amax(0)
        box[index, 0, low[0] : high[0] + 1, low[1] : high[1] + 1, low[2] : high[2] + 1] = 1
        if torch.rand(1, generator=generator).item() < 0.6:
            labels[index, 0] = -1
            points[index, 0] = NOWHERE
    return Prompts(points, labels, box)


def next_prompts(prompts: Prompts, half: Tensor, batch: Batch, turn: int, generator: torch.Generator) -> Prompts:
    """One more click in the larger error; 4 % of the clicks fall anywhere near the object, with the right sign."""
    mask, target = (half > 0).float(), (batch.half > 0.5).float()
    missed, added = target * (1 - mask), mask * (1 - target)
    thickness = [F.avg_pool3d(error, 5, 1, 2).amax(dim=(1, 2, 3, 4)) for error in (missed, added)]
    positive = thickness[0] >= thickness[1]
    error = torch.where(positive[:, None, None, None, None], missed, added)
    place = deepest(error, generator).float()
    stray = torch.rand(len(place), generator=generator).to(place.device) < 0.04
    place = torch.where(stray[:, None], place + 4 * torch.randn(place.shape, generator=generator).to(place), place)
    place = place.clamp(0, batch.masks.shape[-1] - 1)
    index = (place / 2).long()
    d, h, w = target.shape[-3:]
    at = (index[:, 0].clamp(max=d - 1) * h + index[:, 1].clamp(max=h - 1)) * w + index[:, 2].clamp(max=w - 1)
    sign = target.flatten(1).gather(1, at[:, None])[:, 0] > 0.5
    points, labels = prompts.points.clone(), prompts.labels.clone()
    some = error.flatten(1).sum(1) > 0
    points[:, turn] = torch.where(some[:, None], place, NOWHERE)
    labels[:, turn] = torch.where(some, sign.long(), -1)
    fed = half.detach()
    if torch.rand(1, generator=generator).item() < 0.1:
        return Prompts(points, labels, prompts.box)
    if torch.rand(1, generator=generator).item() < 0.15:  # as after a change of zoom: the old mask, softened
        fed = F.avg_pool3d(fed, 3, 1, 1)
    return Prompts(points, labels, prompts.box, fed)


# --- what a step learns --------------------------------------------------------------------------------------------


def overlap_loss(logits: Tensor, target: Tensor) -> Tensor:
    """(b,): 1 - soft Dice, plus cross-entropy."""
    chance = logits.sigmoid()
    both = (chance * target).sum(dim=(1, 2, 3, 4))
    dice = (2 * both + 1) / (chance.sum(dim=(1, 2, 3, 4)) + target.sum(dim=(1, 2, 3, 4)) + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(1, 2, 3, 4))
    return 1 - dice + entropy


def click_loss(half: Tensor, target: Tensor, prompts: Prompts) -> Tensor:
    """(b,): cross-entropy in the two voxels around each click."""
    size = half.shape[-3:]
    near = torch.zeros_like(half)
    for axis_points, axis_labels in ((prompts.points, prompts.labels),):
        for turn in range(axis_points.shape[1]):
            if not (axis_labels[:, turn] >= 0).any():
                continue
            lines = []
            for axis, length in enumerate(size):
                line = torch.arange(length, device=half.device)
                lines.append((line - (axis_points[:, turn, axis, None] - 0.5) / 2).abs() < 1.5)
            near = torch.maximum(
                near,
                (lines[0][:, :, None, None] & lines[1][:, None, :, None] & lines[2][:, None, None]).float()[:, None],
            )
    entropy = F.binary_cross_entropy_with_logits(half, target, reduction="none")
    return (entropy * near).sum(dim=(1, 2, 3, 4)) / (near.sum(dim=(1, 2, 3, 4)) + 1)


def overlap(half: Tensor, batch: Batch) -> Tensor:
    """(b,): Dice with the whole object, also with what lies outside the crop."""
    mask = (half > 0).float()
    both = (mask * batch.half).sum(dim=(1, 2, 3, 4))
    whole = torch.maximum(batch.wholes / 8, batch.half.sum(dim=(1, 2, 3, 4)))
    return 2 * both / (mask.sum(dim=(1, 2, 3, 4)) + whole + 1e-3)


def step(model: DensePromptNet, batch: Batch, early: bool, generator: torch.Generator) -> tuple[Tensor, list[float]]:
    """Loss of one simulated conversation, a short one while it is `early`, and the mean Dice inside the crop after each
    click."""
    chances = torch.tensor(EARLY_TURNS if early else LATE_TURNS)
    turns = TURNS[int(torch.multinomial(chances, 1, generator=generator))]
    learned = {0, turns - 1, int(torch.randint(0, turns, (1,), generator=generator))}
    features = model.encode(batch.image).repeat(2)
    frozen = Features(features.embedding.detach(), tuple(tap.detach() for tap in features.taps), features.image)
    n = batch.image.shape[-1]
    low = [int(torch.randint(n // 8, n - n // 8 - PART + 1, (1,), generator=generator)) // 2 * 2 for _ in range(3)]
    part = (slice(low[0], low[0] + PART), slice(low[1], low[1] + PART), slice(low[2], low[2] + PART))
    skip = model.fine_skip(features, part)
    prompts = first_prompts(batch, generator)
    loss, scores = torch.zeros((), device=batch.image.device), []
    for turn in range(turns):
        with torch.set_grad_enabled(turn in learned):
            draft = model.draft(features if turn in learned else frozen, prompts)
            if turn in learned:
                fine = model.refine(features, prompts, draft, part, skip)
                dice = overlap(draft.half.detach(), batch)
                items = overlap_loss(draft.half, batch.half) + 0.5 * click_loss(draft.half, batch.half, prompts)
                items = items + 0.5 * overlap_loss(fine, batch.masks[(..., *part)])
                loss = loss + items.mean() + 0.5 * F.smooth_l1_loss(draft.quality[:, 0], dice, beta=0.1)
        inside = (
            2
            * ((draft.half > 0) * batch.half).sum(dim=(1, 2, 3, 4))
            / ((draft.half > 0).sum(dim=(1, 2, 3, 4)) + batch.half.sum(dim=(1, 2, 3, 4)) + 1e-3)
        )
        scores.append(float(inside.mean()))
        if turn + 1 < turns:
            prompts = next_prompts(prompts, draft.half.detach(), batch, turn + 1, generator)
    return loss / len(learned), scores


# --- the loop ------------------------------------------------------------------------------------------------------


def train(rank: int, config: Config, data: Path, run: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    if config.processes > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29511")
        dist.init_process_group("gloo" if config.device == "cpu" else "nccl", rank=rank, world_size=config.processes)
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
        progress = min(1.0, (time.monotonic() - started) / 60 / config.minutes)
        if config.processes > 1:
            shared = torch.tensor([progress])
            dist.broadcast(shared, 0)
            progress = float(shared)
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
        loss, scores = step(model, batch, progress < config.early_until, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if config.processes > 1:
            _share(model, config.processes)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        count += 1
        decay = min(config.average, (count + 1) / (count + 10))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                mean[name].lerp_(value, 1 - decay)
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
    if config.processes > 1:
        dist.destroy_process_group()


def _share(model: nn.Module, processes: int) -> None:
    """Average the gradients over all processes, as one flat tensor."""
    used = [p for p in model.parameters() if p.requires_grad]
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in used])
    dist.all_reduce(flat)
    flat /= processes
    for p, part in zip(used, flat.split([p.numel() for p in used]), strict=True):
        p.grad = part.view_as(p)


def _save(
    run: Path, model: nn.Module, optimiser: torch.optim.Optimizer, mean: dict[str, Tensor], count: int, spent: float
) -> None:
    """Both files appear whole or not at all."""
    torch.save(
        {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "mean": mean,
            "count": count,
            "spent": spent,
        },
        run / "last.tmp",
    )
    (run / "last.tmp").replace(run / "last.pt")
    save_file({name: value.contiguous().cpu() for name, value in mean.items()}, run / "volsam-s.tmp")
    (run / "volsam-s.tmp").replace(run / "volsam-s.safetensors")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--config", type=Path, default=Path(__file__).with_name("cpu.yaml"))
    words.add_argument("--data", type=Path, default=Path("../shared/data"))
    words.add_argument("--run", type=Path, default=Path("runs/default_model"))
    given = words.parse_args()
    config = Config.read(given.config)
    given.run.mkdir(parents=True, exist_ok=True)
    load(given.data, Path(__file__).with_name("split.json"), given.run, config.invented, 80, config.seed)
    if config.processes == 1:
        train(0, config, given.data, given.run)
    else:
        torch.multiprocessing.spawn(train, (config, given.data, given.run), nprocs=config.processes)


if __name__ == "__main__":
    main()

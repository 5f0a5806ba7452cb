"""Train sam-mini from nothing: a small 2D SAM that knows slices and prompts.

    python benchmarks/sam_mini/train.py --config benchmarks/sam_mini/cpu.yaml --data ../shared/data
    python benchmarks/sam_mini/evaluate.py --weights runs/sam_mini/sam-mini.safetensors --data ../shared/data

The schedule is in minutes, not steps. A run that was stopped goes on from its last checkpoint, `RUN/last.pt`; the
averaged weights are written to `RUN/sam-mini.safetensors` with every checkpoint, half precision, under SAM's names.

With `--pause-file FILE` (or the variable VOLSAM_PAUSE_FILE) training rests while that file exists, so that something
else may be timed on the same machine; such rests do not count as minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from muon import Muon
from network import fresh, original
from slices import EDGE, Slice, SliceSampler, load
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.inference.slices import SAM
from volsam.models.features import Features
from volsam.models.prompt_encoder import NEGATIVE, NOT_A_POINT, POSITIVE, PromptBatch
from volsam.models.segmenter import Segmenter

sys.path.append(str(Path(__file__).parents[1]))

from pretraining import Copies, follow, keep, read, rest

SPLIT = Path(__file__).parents[1] / "default_model" / "split.json"
# How often a conversation has one, two, three, four turns.
EARLY_TURNS, LATE_TURNS = (0.8, 0.2, 0.0, 0.0), (0.45, 0.25, 0.15, 0.15)


@dataclass(frozen=True)
class Config:
    """One run. Every field can be given in the YAML file."""

    minutes: float = 60
    """Wall time of the whole schedule, data preparation and rests not included."""
    processes: int = 1
    """Copies of the model, each on one thread, with gradients averaged."""
    mixed: bool = True
    """Whether matrix products run in bfloat16."""
    slices: int = 8
    """Slices per process and step."""
    targets: int = 8
    """Objects asked for in each slice."""
    rate: float = 1e-3
    """Of Muon, for the matrices of the transformers."""
    adam_rate: float = 2e-3
    """Of AdamW, for all other weights."""
    weight_decay: float = 0.02
    warm_up: int = 30
    average: float = 0.997
    """Decay of the running average of the weights."""
    shares: tuple[float, float, float] = (0.5, 0.2, 0.3)
    """How often a slice is drawn for an expert's label, a scan's own region, an invented object."""
    invented: int = 240
    seed: int = 1
    early_until: float = 0.4
    """Part of the schedule in which conversations are short."""
    balanced_until: float = 0.4
    """Part of the schedule in which object and background weigh alike, less and less."""
    likeness: float = 1.0
    """Weight of the loss that makes tokens of one object alike; it falls to none at the end."""


# --- what a step sees ------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """image (b 3 1 256 256) as the network wants it; masks (b·n 256 256); low (b·n 1 64 64) their shares, 0 to 1."""

    image: Tensor
    masks: Tensor
    low: Tensor


def collate(slices: list[Slice]) -> Batch:
    grey = torch.from_numpy(np.stack([part.image for part in slices])).float()[:, None, None]
    valid = torch.from_numpy(np.stack([part.valid for part in slices]))[:, None, None]
    mean, spread = (torch.tensor(part)[None, :, None, None, None] for part in (SAM.mean, SAM.spread))
    image = (grey.expand(-1, 3, -1, -1, -1) - mean) / spread * valid
    masks = torch.from_numpy(np.concatenate([part.masks for part in slices]))
    return Batch(image, masks, F.avg_pool2d(masks[:, None].float(), 4))


def somewhere(error: Tensor, masks: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    """(b 3) voxel in the part `error` (b 1 64 64, 0 or 1): in its middle, or (40 %) anywhere in it.

    Of the 16 pixels of a cell it is one that the object has (masks (b 256 256)), or has not if not `inside` (b).
    """
    score = sum(box_mean(error, k) for k in (3, 5, 9, 17)) * error
    noise = torch.rand(error.shape, generator=generator)
    anywhere = torch.rand(len(error), generator=generator) < 0.4
    score = torch.where(anywhere[:, None, None, None], noise * error, score + 0.1 * noise * error)
    place = score.flatten(1).argmax(1)
    row, column = place // error.shape[-1], place % error.shape[-1]
    each = torch.arange(len(error))
    cells = rearrange(masks, "b (r p) (c q) -> b r c (p q)", p=4, q=4)[each, row, column]
    right = (cells == inside[:, None]).float() + 1e-3
    pixel = (right * torch.rand(right.shape, generator=generator)).argmax(dim=1)
    pixels = torch.stack([4 * row + pixel // 4, 4 * column + pixel % 4], dim=1)
    return F.pad(pixels.float(), (1, 0))


def box_mean(image: Tensor, size: int) -> Tensor:
    """Means over squares, along one axis after the other."""
    rows = F.avg_pool2d(image, (size, 1), 1, (size // 2, 0))
    return F.avg_pool2d(rows, (1, size), 1, (0, size // 2))


def boxes_of(masks: Tensor, generator: torch.Generator) -> Tensor:
    """(b 1 2 3) boxes of masks (b 256 256), drawn by a hand that shakes by up to a tenth of a side."""
    found = []
    for axis in (2, 1):
        line = masks.any(dim=axis).int()
        low, high = line.argmax(1), line.shape[1] - 1 - line.flip(1).argmax(1)
        found.append(torch.stack([low, high], dim=1).float())
    corners = torch.stack(found, dim=-1)  # (b corner axis)
    sides = corners[:, 1] - corners[:, 0]
    shake = torch.randn(corners.shape, generator=generator).clamp(-2, 2) * (0.05 * sides[:, None]).clamp(0.5, 10)
    return F.pad((corners + shake).clamp(-0.5, EDGE - 0.5), (1, 0))[:, None]


def first_prompts(batch: Batch, generator: torch.Generator) -> PromptBatch:
    """A click, or (a third of the steps) a box, one in four with a click."""
    most = batch.low.amax(dim=(1, 2, 3), keepdim=True).clamp(max=0.5)
    positive = torch.ones(len(batch.masks), dtype=torch.bool)
    points = somewhere((batch.low >= most).float(), batch.masks, positive, generator)[:, None]
    labels = torch.full((len(points), 1), POSITIVE)
    if torch.rand(1, generator=generator).item() > 0.35:
        return PromptBatch(points, labels)
    absent = torch.rand(len(points), 1, generator=generator) > 0.25
    return PromptBatch(points, labels.masked_fill(absent, NOT_A_POINT), boxes_of(batch.masks, generator), absent=absent)


def next_prompts(prompts: PromptBatch, low: Tensor, batch: Batch, generator: torch.Generator) -> PromptBatch:
    """One more click in the larger error of the mask `low` (b 1 64 64), and (nine of ten) that mask."""
    assert prompts.points is not None
    assert prompts.labels is not None
    mask, target = (low > 0).float(), (batch.low > 0.5).float()
    missed, added = target * (1 - mask), mask * (1 - target)
    thickness = [box_mean(error, 3).amax(dim=(1, 2, 3)) for error in (missed, added)]
    positive = thickness[0] >= thickness[1]
    error = torch.where(positive[:, None, None, None], missed, added)
    some = error.flatten(1).any(dim=1)
    labels = torch.where(some, torch.where(positive, POSITIVE, NEGATIVE), NOT_A_POINT)
    absent = torch.zeros(prompts.labels.shape, dtype=torch.bool) if prompts.absent is None else prompts.absent
    fed = low[:, :, None] if torch.rand(1, generator=generator).item() > 0.1 else None
    return PromptBatch(
        torch.cat([prompts.points, somewhere(error, batch.masks, positive, generator)[:, None]], dim=1),
        torch.cat([prompts.labels, labels[:, None]], dim=1),
        prompts.boxes,
        fed,
        torch.cat([absent, ~some[:, None]], dim=1),
    )


# --- what a step learns ----------------------------------------------------------------------------------------------


def mask_loss(logits: Tensor, target: Tensor, balance: float) -> Tensor:
    """(b n): 1 - soft Dice, and cross-entropy; logits (b n 64 64), target (b 1 64 64).

    The part `balance` of the cross-entropy weighs object and background alike, without which a new network says
    "nothing" to everything; in the rest hard pixels weigh more.
    """
    chance = logits.sigmoid()
    both = (chance * target).sum(dim=(2, 3))
    dice = (2 * both + 1) / (chance.sum(dim=(2, 3)) + target.sum(dim=(2, 3)) + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    hard = (chance - target).abs().detach()
    plain = entropy.mean(dim=(2, 3)) + 5 * (hard**2 * entropy).mean(dim=(2, 3))
    share = target.mean(dim=(2, 3), keepdim=True).clamp(0.01, 0.9)
    weights = 0.5 * (target / share + (1 - target) / (1 - share))
    return 1 - dice + balance * (weights * entropy).mean(dim=(2, 3)) + (1 - balance) * plain


def agreement(logits: Tensor, target: Tensor) -> Tensor:
    """(b n): IoU of masks with the target."""
    mask, there = logits > 0, target > 0.5
    both = (mask & there).sum(dim=(2, 3))
    return both / (mask | there).sum(dim=(2, 3)).clamp(min=1)


def likeness_loss(embedding: Tensor, points: Tensor, low: Tensor, each: int) -> Tensor:
    """How badly likeness to the token under a click tells the object; embedding (b c 16 16), points (b·n 3)."""
    tokens = F.normalize(embedding.flatten(2), dim=1)  # b c l
    grid = embedding.shape[-1]
    index = (points[:, 1:] / (EDGE / grid)).long().clamp(0, grid - 1)
    place = (index[:, 0] * grid + index[:, 1]).view(len(tokens), each)
    asked = tokens.gather(2, place[:, None].expand(-1, tokens.shape[1], -1))  # b c n
    logits = 8 * (torch.einsum("bcn,bcl->bnl", asked, tokens) - 0.5)
    target = F.avg_pool2d(low, 4).view(len(tokens), each, -1)
    share = target.mean(dim=2, keepdim=True).clamp(0.02, 0.98)
    weight = target / share + (1 - target) / (1 - share)  # both sides count alike
    return 0.5 * (weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).mean()


def step(
    model: Segmenter, batch: Batch, config: Config, progress: float, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one simulated conversation about every object, and the mean Dice after its first and last turn."""
    chances = torch.tensor(EARLY_TURNS if progress < config.early_until else LATE_TURNS)
    turns = 1 + int(torch.multinomial(chances, 1, generator=generator))
    each = len(batch.masks) // len(batch.image)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.mixed):
        features = model.encode(batch.image)
        embedding = features.embedding.float()
        many = Features(embedding.repeat_interleave(each, dim=0), (), features.image)
        prompts = first_prompts(batch, generator)
        kind = "click" if prompts.boxes is None else "box"
        assert prompts.points is not None
        loss = torch.zeros(())
        if progress < 1 and config.likeness:
            alike = likeness_loss(embedding[:, :, 0], prompts.points[:, 0], batch.low, each)
            loss = config.likeness * (1 - progress) * alike
        told: dict[str, float] = {}
        for turn in range(turns):
            low, quality = model.draft(many, prompts, "all")
            low = low[:, :, 0].float()
            losses = mask_loss(low, batch.low, max(0.0, 1 - progress / config.balanced_until))
            best = losses[:, 1:].min(dim=1).values + 0.1 * losses[:, 1:].mean(dim=1)
            lone = turn == 0 and kind == "click"
            loss = loss + ((0.5 if lone else 1.0) * losses[:, 0] + (1.0 if lone else 0.5) * best).mean() / turns
            iou = agreement(low.detach(), batch.low)
            loss = loss + F.mse_loss(quality.float(), iou) / turns
            chosen = quality[:, 1:].argmax(dim=1) + 1 if lone else torch.zeros(len(low), dtype=torch.long)
            kept = low.detach().gather(1, chosen[:, None, None, None].expand(-1, 1, *low.shape[2:]))
            got = iou.gather(1, chosen[:, None])
            told[kind if turn == 0 else f"{turn + 1} turns"] = float((2 * got / (1 + got)).mean())
            if turn + 1 < turns:
                prompts = next_prompts(prompts, kept, batch, generator)
    return loss, told


# --- the loop --------------------------------------------------------------------------------------------------------


def optimisers(model: Segmenter, config: Config) -> list[torch.optim.Optimizer]:
    """Muon for what multiplies tokens inside the transformers, AdamW for the rest."""
    matrices, rest = [], []
    for name, weight in model.named_parameters():
        inside = "encoder.blocks" in name or "mask_head.transformer" in name
        (matrices if inside and weight.ndim == 2 and "tables" not in name else rest).append(weight)
    return [
        Muon(matrices, config.rate, weight_decay=config.weight_decay),
        torch.optim.AdamW(rest, config.adam_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay),
    ]


def train(rank: int, config: Config, data: Path, run: Path, pause: Path | None) -> None:
    torch.set_num_threads(1)
    copies = Copies(rank, config.processes, 29512)
    real, invented = load(data, SPLIT, run, config.invented, 80, config.seed)
    model = fresh(config.seed).train()
    mean = {name: value.clone() for name, value in model.state_dict().items()}
    both = optimisers(model, config)
    rates = [config.rate, config.adam_rate]
    count, spent = 0, 0.0
    last = run / "last.pt"
    if last.exists():
        saved = torch.load(last, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimiser, state in zip(both, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        mean, count, spent = saved["mean"], saved["count"], saved["spent"]
    sampler = SliceSampler(
        real, invented, config.shares, config.targets, np.random.default_rng((config.seed, rank, count))
    )
    generator = torch.Generator().manual_seed(config.seed + 1000 * rank + count)
    started = time.monotonic() - spent
    told, saved_at, losses, scores = time.monotonic(), time.monotonic(), [], {}
    while True:
        started += rest(pause)
        progress = copies.agree(min(1.0, (time.monotonic() - started) / 60 / config.minutes))
        if progress >= 1:
            break
        factor = min(1, (count + 1) / config.warm_up) * min(1.0, (1 - progress) / 0.75 + 0.01)
        for optimiser, rate in zip(both, rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
        batch = collate([sampler.draw() for _ in range(config.slices)])
        loss, dice = step(model, batch, config, progress, generator)
        model.zero_grad(set_to_none=True)
        loss.backward()
        copies.share(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in both:
            optimiser.step()
        count += 1
        follow(mean, model, count, config.average)
        losses.append(loss.item())
        for name, value in dice.items():
            scores.setdefault(name, []).append(value)
        now = time.monotonic()
        if rank == 0 and now - told > 60:
            told = now
            words = "  ".join(f"{name} {np.mean(scores[name]):.3f}" for name in sorted(scores, reverse=True))
            print(f"{(now - started) / 60:6.1f} min  step {count:5d}  loss {np.mean(losses):.3f}  {words}", flush=True)
            losses, scores = [], {}
        if rank == 0 and now - saved_at > 120:
            saved_at = now
            save(run, model, both, mean, count, now - started)
    if rank == 0:
        save(run, model, both, mean, count, time.monotonic() - started)
    copies.leave()


def save(
    run: Path,
    model: nn.Module,
    both: list[torch.optim.Optimizer],
    mean: dict[str, Tensor],
    count: int,
    spent: float,
) -> None:
    state = {"model": model.state_dict(), "optimisers": [optimiser.state_dict() for optimiser in both], "mean": mean}
    half = {name: tensor.half() for name, tensor in original(mean).items()}
    keep(run, {**state, "count": count, "spent": spent}, "sam-mini", half)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--config", type=Path, default=Path(__file__).with_name("cpu.yaml"))
    words.add_argument("--data", type=Path, default=Path("../shared/data"))
    words.add_argument("--run", type=Path, default=Path("runs/sam_mini"))
    words.add_argument(
        "--pause-file",
        type=Path,
        default=os.environ.get("VOLSAM_PAUSE_FILE") or None,
        help="rest while this file exists; default: the variable VOLSAM_PAUSE_FILE",
    )
    given = words.parse_args()
    config = read(Config, given.config)
    given.run.mkdir(parents=True, exist_ok=True)
    rest(given.pause_file)
    asked = (config, given.data, given.run, given.pause_file)
    if config.processes == 1:
        train(0, *asked)
    else:  # the scenes are made once, before several processes want them
        load(given.data, SPLIT, given.run, config.invented, 80, config.seed)
        torch.multiprocessing.spawn(train, asked, nprocs=config.processes)


if __name__ == "__main__":
    main()

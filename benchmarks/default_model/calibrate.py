"""Fit the quality head of a trained volsam-s to what its masks are really worth.

    python benchmarks/default_model/calibrate.py --run runs/default_model --data ../shared/data --minutes 12

During training the head chases a network that changes under it and stays vague; yet it chooses the zoom. Here the
network stands still. Three quarters of the time go to whole ladders of zooms on training scans as a user would have
them (ladders.py), one quarter to simulated conversations on the crops of the training, for the clicks after the first.
The head is fitted to the true overlap of each mask and, on ladders, to choosing well: what it loses is the overlap that
another zoom would have given. Only the head changes. Reads and rewrites RUN/volsam-s.safetensors.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ladders import Ladder, draw_ladders
from safetensors.torch import load_file, save_file
from scenes import Sampler, load
from torch import Tensor, nn
from torch.nn import functional as F
from train import Config, collate

from volsam.models.dense_prompt import DensePromptNet
from volsam.training.dense_clicks import first_prompts, next_prompts, overlap

TURNS = 4
PROCESSES = 2
FOLDS = 3
EPOCHS = 60
RATE = 2e-3
NOISE = 0.1
# How much choosing well counts beside foretelling well, and how sharp the choice is made while learning.
CHOICE = 4.0
SHARPNESS = 0.3
Masks = tuple[Tensor, Tensor]  # evidence (n c), true overlap (n)


@torch.inference_mode()
def gather(rank: int, weights: Path, config: Config, data: Path, run: Path, minutes: float) -> None:
    """Ladders and conversations, to RUN/calibration-RANK.pt."""
    torch.set_num_threads(1)
    network = DensePromptNet().eval()
    network.load_state_dict(load_file(weights))
    real, invented = load(data, Path(__file__).with_name("split.json"), run, config.invented, 80, config.seed)
    found = draw_ladders(network, real, np.random.default_rng((config.seed, 177, rank)), 0.75 * minutes)
    sampler = Sampler(real, invented, (0.6, 0.2, 0.2), np.random.default_rng((config.seed, 77, rank)))
    generator = torch.Generator().manual_seed(rank + 77)
    seen: list[Masks] = []
    until = time.monotonic() + 60 * 0.25 * minutes
    while time.monotonic() < until:
        batch = collate([sampler.draw(config.large) for _ in range(2)], "cpu")
        features = network.encode(batch.image).repeat(2)
        prompts = first_prompts(batch, generator)
        for turn in range(TURNS):
            draft = network.draft(features, prompts)
            seen.append((draft.evidence, overlap(draft.half, batch.half, batch.wholes)))
            if turn + 1 < TURNS:
                prompts = next_prompts(prompts, draft.half, batch, turn + 1, generator)
    talk = (torch.cat([e for e, _ in seen]), torch.cat([o for _, o in seen]))
    torch.save({"ladders": found, "talk": talk}, run / f"calibration-{rank}.pt")


@dataclass
class Material:
    """What the head is fitted to.

    evidence (n 2 z c) and true overlap (n 2 z) of both looks of n ladders of at most z zooms; known (n z), where there
    is one; scans (n), where they come from; said (m c) and said_worth (m): the same of masks of conversations.
    """

    evidence: Tensor
    worth: Tensor
    known: Tensor
    scans: Tensor
    said: Tensor
    said_worth: Tensor

    @classmethod
    def of(cls, ladders: list[Ladder], talk: Masks) -> Material:
        zooms = max(item["worth"].shape[1] for item in ladders)
        evidence = torch.zeros(len(ladders), 2, zooms, talk[0].shape[1])
        worth = torch.zeros(len(ladders), 2, zooms)
        known = torch.zeros(len(ladders), zooms, dtype=torch.bool)
        for index, item in enumerate(ladders):
            count = item["worth"].shape[1]
            evidence[index, :, :count], worth[index, :, :count] = item["evidence"], item["worth"]
            known[index, :count] = True
        return cls(evidence, worth, known, torch.tensor([item["scene"] for item in ladders]), *talk)


def fit(head: nn.Sequential, material: Material, which: Tensor) -> None:
    """Train `head` in place on some ladders, on standardised evidence; then fold the standard into its first layer."""
    torch.manual_seed(0)
    seen = material.evidence[which].transpose(1, 2)[material.known[which]].flatten(0, 1)
    everything = torch.cat([seen, material.said])
    mean, spread = everything.mean(0), everything.std(0) + 1e-3
    evidence = (material.evidence - mean) / spread * material.known[:, None, :, None]
    said = (material.said - mean) / spread
    for layer in head:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    optimiser = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=0.3)
    for epoch in range(EPOCHS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 - epoch / EPOCHS) + 1e-5
        for part in which[torch.randperm(len(which))].split(32):
            known, worth = material.known[part], material.worth[part]
            score = head(evidence[part] + NOISE * torch.randn_like(evidence[part]))[..., 0]
            wrong = F.binary_cross_entropy_with_logits(score, worth, reduction="none") * known[:, None]
            # The zoom is chosen by the first look; what counts is the mask of the second.
            chosen = torch.softmax((score[:, 0] / SHARPNESS).masked_fill(~known, -1e9), dim=1)
            loss = (wrong.sum() - CHOICE * (chosen * worth[:, 1]).sum()) / len(part)
            some = torch.randint(0, len(said), (256,))
            other = head(said[some] + NOISE * torch.randn_like(said[some]))[:, 0]
            loss = loss + F.binary_cross_entropy_with_logits(other, material.said_worth[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        first = head[0]
        first.bias.sub_(first.weight @ (mean / spread))
        first.weight.div_(spread)


@torch.no_grad()
def chosen(head: nn.Sequential, material: Material, which: Tensor) -> Tensor:
    """Overlap at the zoom that a head chooses, for some ladders."""
    score = head(material.evidence[which, 0])[..., 0].masked_fill(~material.known[which], -1e9)
    return material.worth[which, 1].gather(1, score.argmax(dim=1, keepdim=True))[:, 0]


def cross_validated(material: Material, before: nn.Sequential) -> str:
    """What fitting brings on scans that it has not seen, in words."""
    scans = np.unique(material.scans.numpy())
    fold = {int(scan): index % FOLDS for index, scan in enumerate(np.random.default_rng(0).permutation(scans))}
    folds = torch.tensor([fold[int(scan)] for scan in material.scans])
    held = []
    for index in range(FOLDS):
        head = DensePromptNet().quality
        fit(head, material, torch.nonzero(folds != index)[:, 0])
        held.append(chosen(head, material, torch.nonzero(folds == index)[:, 0]))
    best = (material.worth[:, 1] * material.known).amax(dim=1).mean()
    old = chosen(before, material, torch.arange(len(folds))).mean()
    new = torch.cat(held).mean()
    return f"best zoom {best:.3f}, chosen before {old:.3f}, chosen by a head fitted to other scans {new:.3f}"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--config", type=Path, default=Path(__file__).with_name("cpu.yaml"))
    words.add_argument("--data", type=Path, default=Path("../shared/data"))
    words.add_argument("--run", type=Path, default=Path("runs/default_model"))
    words.add_argument("--minutes", type=float, default=12)
    given = words.parse_args()
    config = Config.read(given.config)
    weights = given.run / "volsam-s.safetensors"
    torch.multiprocessing.spawn(gather, (weights, config, given.data, given.run, given.minutes), nprocs=PROCESSES)
    parts = [torch.load(given.run / f"calibration-{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    ladders = [item for part in parts for item in part["ladders"]]
    evidence, worth = (torch.cat(values) for values in zip(*(part["talk"] for part in parts), strict=True))
    network = DensePromptNet()
    network.load_state_dict(load_file(weights))
    zooms = sum(item["worth"].shape[1] for item in ladders)
    print(f"{len(ladders)} ladders of {zooms} zooms, {len(worth)} masks of conversations")
    material = Material.of(ladders, (evidence, worth))
    print(cross_validated(material, network.quality))
    fit(network.quality, material, torch.arange(len(ladders)))
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, weights)


if __name__ == "__main__":
    main()

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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ladders import Ladder, draw_ladders
from safetensors.torch import load_file, save_file
from scenes import Sampler, load
from torch import Tensor, nn
from torch.nn import functional as F
from train import Config, collate, first_prompts, next_prompts, overlap

from volsam.models.dense_prompt import DensePromptNet

TURNS = 4
PROCESSES = 2
FOLDS = 5
EPOCHS = 80
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
            seen.append((draft.evidence, overlap(draft.half, batch)))
            if turn + 1 < TURNS:
                prompts = next_prompts(prompts, draft.half, batch, turn + 1, generator)
    talk = (torch.cat([e for e, _ in seen]), torch.cat([o for _, o in seen]))
    torch.save({"ladders": found, "talk": talk}, run / f"calibration-{rank}.pt")


def fit(head: nn.Sequential, ladders: list[Ladder], talk: Masks) -> None:
    """Train `head` in place on standardised evidence, then fold the standard into its first layer."""
    torch.manual_seed(0)
    everything = torch.cat([*(item["evidence"].flatten(0, 1) for item in ladders), talk[0]])
    mean, spread = everything.mean(0), everything.std(0) + 1e-3
    for layer in head:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    optimiser = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.3)
    inputs = [((item["evidence"] - mean) / spread, item["worth"]) for item in ladders]
    said, worth = (talk[0] - mean) / spread, talk[1]
    for epoch in range(EPOCHS):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - epoch / EPOCHS) + 1e-5
        for part in torch.randperm(len(inputs)).split(32):
            loss = torch.zeros(())
            for index in part:
                evidence, true = inputs[index]
                score = head(evidence + 0.1 * torch.randn_like(evidence))[..., 0]
                chosen = torch.softmax(score[0] / SHARPNESS, dim=0)
                # The zoom is chosen by the first look; what counts is the mask of the second.
                loss = loss + F.binary_cross_entropy_with_logits(score, true) - CHOICE * (chosen * true[1]).sum()
            some = torch.randint(0, len(said), (256,))
            other = head(said[some] + 0.1 * torch.randn_like(said[some]))[:, 0]
            loss = loss / len(part) + F.binary_cross_entropy_with_logits(other, worth[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        first = head[0]
        first.bias.sub_(first.weight @ (mean / spread))
        first.weight.div_(spread)


@torch.no_grad()
def scores(judge: Callable[[Tensor], Tensor], ladders: list[Ladder]) -> list[tuple[float, float]]:
    """For each ladder: overlap of the best zoom, and of the one that a head chooses."""
    return [
        (float(item["worth"][1].max()), float(item["worth"][1][judge(item["evidence"][0])[:, 0].argmax()]))
        for item in ladders
    ]


def cross_validated(ladders: list[Ladder], talk: Masks, before: nn.Sequential) -> str:
    """What fitting brings on scans that it has not seen, in words."""
    scans = sorted({item["scene"] for item in ladders})
    fold = {scan: index % FOLDS for index, scan in enumerate(np.random.default_rng(0).permutation(scans))}
    held: list[tuple[float, float]] = []
    for index in range(FOLDS):
        head = DensePromptNet().quality
        fit(head, [item for item in ladders if fold[item["scene"]] != index], talk)
        held += scores(head, [item for item in ladders if fold[item["scene"]] == index])
    best, chosen = np.mean(held, axis=0)
    old = np.mean([choice for _, choice in scores(before, ladders)])
    return f"best zoom {best:.3f}, chosen before {old:.3f}, chosen by a head fitted to other scans {chosen:.3f}"


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
    print(cross_validated(ladders, (evidence, worth), network.quality))
    fit(network.quality, ladders, (evidence, worth))
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, weights)


if __name__ == "__main__":
    main()

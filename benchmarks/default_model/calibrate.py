"""Fit the quality head of a trained volsam-s to what its masks are really worth.

    python benchmarks/default_model/calibrate.py --run runs/default_model --data ../shared/data --minutes 8

During training the head chases a network that changes under it and stays vague; yet it chooses the zoom. Here the
network stands still: conversations are simulated on training scans at every zoom, the evidence and the true overlap of
each mask are kept, and the head is fitted to them. Only the head changes. Reads and rewrites RUN/volsam-s.safetensors.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scenes import Sampler, load
from torch import Tensor, nn
from torch.nn import functional as F
from train import Config, collate, first_prompts, next_prompts, overlap

from volsam.models.dense_prompt import DensePromptNet

TURNS = 3


@torch.inference_mode()
def gather(rank: int, weights: Path, config: Config, data: Path, run: Path, minutes: float) -> None:
    """Evidence and true overlap of as many masks as the time allows, to RUN/evidence-RANK.pt."""
    torch.set_num_threads(1)
    model = DensePromptNet().eval()
    model.load_state_dict(load_file(weights))
    real, invented = load(data, Path(__file__).with_name("split.json"), run, config.invented, 80, config.seed)
    sampler = Sampler(real, invented, (0.6, 0.2, 0.2), np.random.default_rng((config.seed, 77, rank)))
    generator = torch.Generator().manual_seed(rank + 77)
    seen: list[tuple[Tensor, Tensor]] = []
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        batch = collate([sampler.draw(config.large) for _ in range(2)], "cpu")
        features = model.encode(batch.image).repeat(2)
        prompts = first_prompts(batch, generator)
        for turn in range(TURNS):
            draft = model.draft(features, prompts)
            seen.append((draft.evidence, overlap(draft.half, batch)))
            if turn + 1 < TURNS:
                prompts = next_prompts(prompts, draft.half, batch, turn + 1, generator)
    torch.save((torch.cat([e for e, _ in seen]), torch.cat([o for _, o in seen])), run / f"evidence-{rank}.pt")


def fit(head: nn.Sequential, evidence: Tensor, worth: Tensor) -> float:
    """Train `head` in place on standardised evidence, fold the standard into its first layer; returns the held-out
    correlation of expectation and truth."""
    torch.manual_seed(0)
    mean, spread = evidence.mean(0), evidence.std(0) + 1e-3
    inputs = (evidence - mean) / spread
    order = torch.randperm(len(inputs) // 12) * 12  # masks of one crop stay on one side: 2 crops x 2 targets x 3 turns
    held = torch.zeros(len(inputs), dtype=torch.bool)
    for start in order[: len(order) // 8]:
        held[start : start + 12] = True
    for layer in head:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    optimiser = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.05)
    x, y = inputs[~held], worth[~held]
    best, kept = float("inf"), {}
    for epoch in range(60):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - epoch / 60) + 1e-5
        for part in torch.randperm(len(x)).split(256):
            noisy = x[part] + 0.1 * torch.randn_like(x[part])
            loss = F.binary_cross_entropy_with_logits(head(noisy)[:, 0], y[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            error = float(F.binary_cross_entropy_with_logits(head(inputs[held])[:, 0], worth[held]))
        if error < best:
            best, kept = error, {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(kept)
    with torch.no_grad():
        said = head(inputs[held])[:, 0].sigmoid()
        first = head[0]
        first.bias.sub_(first.weight @ (mean / spread))
        first.weight.div_(spread)
    return float(torch.corrcoef(torch.stack([said, worth[held]]))[0, 1])


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--config", type=Path, default=Path(__file__).with_name("cpu.yaml"))
    words.add_argument("--data", type=Path, default=Path("../shared/data"))
    words.add_argument("--run", type=Path, default=Path("runs/default_model"))
    words.add_argument("--minutes", type=float, default=8)
    given = words.parse_args()
    config = Config.read(given.config)
    weights = given.run / "volsam-s.safetensors"
    processes = 2
    torch.multiprocessing.spawn(gather, (weights, config, given.data, given.run, given.minutes), nprocs=processes)
    parts = [torch.load(given.run / f"evidence-{rank}.pt", weights_only=True) for rank in range(processes)]
    evidence, worth = (torch.cat(values) for values in zip(*parts, strict=True))
    model = DensePromptNet()
    model.load_state_dict(load_file(weights))
    with torch.no_grad():
        before = torch.corrcoef(torch.stack([model.quality(evidence)[:, 0].sigmoid(), worth]))[0, 1]
    after = fit(model.quality, evidence, worth)
    print(f"{len(worth)} masks; correlation of expected and true Dice {float(before):.3f} before, {after:.3f} after")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)


if __name__ == "__main__":
    main()

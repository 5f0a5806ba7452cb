"""What `volsam bench` runs in processes of their own: one candidate alone, or everything from the start to a mask.

    python -m volsam.recipes.bench.child memory '{"suite": "click", ...}'
    python -m volsam.recipes.bench.child published WEIGHTS.pt SCAN.npy I,J,K
    python -m volsam.recipes.bench.child ours WEIGHTS.pt SCAN.npy I,J,K
    python -m volsam.recipes.bench.child own - SCAN.npy I,J,K

Each imports no more than a program that did this alone would.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from volsam.evaluation.processes import own_peak


def main(arguments: list[str]) -> None:
    """Run one of the modes above; prints JSON, with the peak memory in MiB."""
    mode, *rest = arguments
    if mode == "memory":
        report = memory(json.loads(rest[0]))
    else:
        weights, scan, voxel = rest
        masks = {"published": published, "ours": ours, "own": own}
        report = {"voxels": masks[mode](weights, scan, tuple(map(int, voxel.split(","))))}
    sys.stdout.write(json.dumps(report | {"peak": own_peak()}) + "\n")


def memory(asked: dict[str, Any]) -> dict[str, float]:
    """Build one candidate with whatever weights, run one round, and say what a GPU had to hold, in MiB."""
    from pathlib import Path

    import torch

    from volsam.evaluation.published.checkout import Checkout
    from volsam.recipes.bench import compared, suites

    name, which, suite = asked["name"], asked["which"], asked["suite"]
    settings = suites.Settings(
        device=asked["device"],
        size=asked["size"],
        volume=tuple(asked["volume"]) if asked["volume"] else None,
        dtype=asked["dtype"],
        checkout=Checkout(Path(asked["against"])) if asked["against"] else None,
        engine=asked.get("engine", "torch"),
    )
    if name == compared.OWN:
        candidate = suites.own(suite, settings)[0]
    else:
        pair = compared.pair_of(name)
        checkout = settings.checkout if which == "published" else None
        sides = compared.alone(pair, which, suites.edge_of(pair, settings), checkout=checkout)
        candidate = suites.candidate(suite, sides, which, settings)
    candidate.ready()
    for _, call in candidate.steps[:2]:
        call()
    if not settings.device.startswith("cuda"):
        return {}
    torch.cuda.synchronize()
    return {
        "allocated": torch.cuda.max_memory_allocated() / 2**20,
        "reserved": torch.cuda.max_memory_reserved() / 2**20,
    }


def published(weights: str, scan: str, voxel: tuple[int, ...]) -> int:
    """FastSAM3D as published, from a checkpoint and an array on disk."""
    import numpy as np
    import torch

    from volsam.evaluation.published import sam

    network = sam.fast_sam_3d()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    with torch.no_grad():
        embedding = network.image_encoder(torch.from_numpy(np.load(scan))[None, None])
        point, label = torch.tensor([[voxel]], dtype=torch.float32), torch.ones(1, 1)
        logits, _ = sam.click(network, embedding, point, label, torch.zeros(1, 1, 32, 32, 32))
    return int(sam.mask_on_host(logits).sum())


def ours(weights: str, scan: str, voxel: tuple[int, ...]) -> int:
    """The same checkpoint in our network."""
    import numpy as np
    import torch

    from volsam.models.prompt_encoder import PromptBatch
    from volsam.models.segmenter import Segmenter
    from volsam.recipes.families.family import Described, family_of, fill, on_no_device

    tensors = torch.load(weights, weights_only=True, mmap=True)
    described = Described.of(weights, tensors)
    family = family_of(described)
    network = on_no_device(family, described)
    fill(network, family, tensors, weights)
    assert isinstance(network, Segmenter)
    with torch.no_grad():
        features = network.encode(torch.from_numpy(np.load(scan))[None, None])
        point, label = torch.tensor([[voxel]], dtype=torch.float32), torch.ones(1, 1, dtype=torch.long)
        answer = network.decode(features, PromptBatch(point, label, mask=torch.zeros(1, 1, 32, 32, 32)))
    return int((answer.logits > 0).sum())


def own(weights: str, scan: str, voxel: tuple[int, ...]) -> int:
    """Our own model in a session."""
    import numpy as np

    import volsam

    values = np.load(scan)
    volume = volsam.Volume(values, volsam.Grid(values.shape, np.diag([1.5, 1.5, 1.5, 1.0])), "scan")
    session = volsam.Session(volsam.load_model(device="cpu"), volume)
    session.add(volsam.Click(tuple(volume.grid.to_world(voxel))))
    return int(np.asarray(session.mask.data).sum())


if __name__ == "__main__":
    main(sys.argv[1:])

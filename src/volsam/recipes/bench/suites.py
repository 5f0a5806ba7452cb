"""What `volsam bench` runs: for each suite the candidates, with the calls of one round.

| suite  | tasks                     | a call                                                              |
|--------|---------------------------|---------------------------------------------------------------------|
| click  | click.cold, click.warm    | volume and first click to mask; clicks 2 to 5 on what is kept       |
| encode | encode                    | volume to embedding                                                 |
| volume | volume                    | all slices to masks (2D networks); first click in a scan of a size  |
| train  | train                     | forward, loss, backward and one step of the optimiser               |
| start  | start                     | a fresh process to its first mask: see `volsam.recipes.bench.child`|

Enlarging and thresholding belong to the call. On a GPU `click.cold` and `click.warm` end with a mask on the device, and
`click.cold_host`, `click.warm_host` with one on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.evaluation.benchmark import Candidate, Outputs
from volsam.evaluation.published.checkout import Checkout
from volsam.evaluation.sides import Answer, Automatic, Image, Press, Promptable
from volsam.geometry import Grid
from volsam.inference.openvino import OpenVinoSegmenter
from volsam.inference.session import Session
from volsam.prompts import Click
from volsam.recipes.bench import compared
from volsam.recipes.bench.compared import OWN, OWN_PEER, Built, Pair, Which
from volsam.recipes.engine import Engine, prepared
from volsam.recipes.recipe import load_model
from volsam.volume import Volume

Suite = Literal["click", "encode", "volume", "train", "start"]
Dtype = Literal["fp32", "bf16"]

SUITES: tuple[Suite, ...] = ("click", "encode", "volume", "train", "start")

TASKS: dict[Suite, tuple[str, ...]] = {
    "click": ("click.cold", "click.warm", "click.cold_host", "click.warm_host"),
    "encode": ("encode",),
    "volume": ("volume",),
    "train": ("train",),
    "start": ("start",),
}

CLICKS = 5
"""In one round: one cold, the others warm."""

OWN_SIZES: tuple[tuple[int, int, int], ...] = ((128, 128, 128), (256, 256, 256), (300, 512, 512))
"""Scans, in voxels along depth, height and width, in which our own model answers a first click."""

SLICES = 2
"""Slices of a volume for 2D networks: each costs the same, so more of them tell no more."""


@dataclass(frozen=True)
class Settings:
    """How candidates are made.

    size: edge of the cubes, None for each network's own; volume: (d h w) of the volume suite; dtype: of ours, the
    published networks run in float32 as released; checkout: published code that takes the place of references;
    against: the name of the one published network that all are compared with; engine: of our clicks, where a network
    can have another than torch; seed: of weights and volumes.
    """

    device: str = "cpu"
    size: int | None = None
    volume: tuple[int, int, int] | None = None
    dtype: Dtype = "fp32"
    checkout: Checkout | None = None
    against: str | None = None
    engine: Engine = "torch"
    seed: int = 0


def models_of(suite: Suite) -> list[str]:
    """Names that a suite can run."""
    pairs = [compared.PAIRS[name] for name in compared.present()]
    names = {
        "click": [pair.name for pair in pairs if pair.promptable] + [OWN],
        "encode": [pair.name for pair in pairs if pair.promptable],
        "volume": [pair.name for pair in pairs if pair.kind in ("slice", "stack", "single")] + [OWN],
        "train": [pair.name for pair in pairs if pair.kind == "cube"],
        "start": [pair.name for pair in pairs if pair.name == OWN_PEER] + [OWN],
    }
    return names[suite]


QUICK: dict[Suite, tuple[str, ...]] = {
    "click": ("fastsam3d", OWN),
    "encode": ("fastsam3d", "sam-256"),
    "volume": ("sam-256",),
    "train": ("fastsam3d",),
    "start": (OWN_PEER, OWN),
}
"""What fits into a minute."""


def published_name(name: str) -> str:
    """How a reference is called in a table."""
    return f"{name} (published)"


def candidates(suite: Suite, names: Sequence[str], settings: Settings) -> list[Candidate]:
    """Everything a suite compares, built: ours, and the references they are compared with."""
    found: list[Candidate] = []
    wanted = list(dict.fromkeys(name for name in names if name != OWN))
    peers = [settings.against] if settings.against else [OWN_PEER] if OWN in names and suite == "click" else []
    for name in dict.fromkeys([*wanted, *peers]):
        pair = compared.pair_of(name)
        sides = compared.build(pair, edge_of(pair, settings), checkout=settings.checkout, seed=settings.seed)
        if name in wanted:
            ours = candidate(suite, sides, "ours", settings)
            peer = settings.against or name
            found.append(replace(ours, peer=published_name(peer), same=peer == name))
        if settings.against in (None, name):
            found.append(candidate(suite, sides, "published", settings))
    if OWN in names:
        found += own(suite, settings)
    return found


def edge_of(pair: Pair, settings: Settings) -> int:
    """The edge of a pair's input; only cubes may have another."""
    return settings.size if settings.size and pair.kind == "cube" else pair.size


def candidate(suite: Suite, sides: Built, which: Which, settings: Settings) -> Candidate:
    """One side of a pair in a suite."""
    network = sides.ours if which == "ours" else sides.published
    assert network is not None
    network.to(settings.device).requires_grad_(suite == "train")
    name = sides.pair.name if which == "ours" else published_name(sides.pair.name)
    # The codes of FacT and the like are shared: every weight counts once.
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    used: Any = network
    if which == "ours" and suite != "train" and settings.dtype == "fp32":
        used = prepared(network, name, settings.device, "auto" if settings.engine == "openvino" else "torch")
    run = Running(used, sides.pair, which, settings)
    steps, outputs = run.steps(suite)
    found = Candidate(name, steps, count, outputs, flags=(settings.dtype,) if run.mixed else ())
    if isinstance(used, OpenVinoSegmenter) and suite == "click":
        counted, _ = Running(used.segmenter, sides.pair, which, settings).steps(suite)
        found = replace(found, flags=("openvino",), ready=used.ready, counted=counted)
    return found


Steps = tuple[list[tuple[str, Callable[[], object]]], Callable[[], Outputs]]


class Running:
    """One side at work on the same input as the other."""

    def __init__(self, network: Any, pair: Pair, which: Which, settings: Settings) -> None:
        self.network, self.pair, self.which, self.settings = network, pair, which, settings
        self.edge = edge_of(pair, settings)
        self.mixed = which == "ours" and settings.dtype == "bf16"
        self.kept: dict[str, Any] = {}

    def steps(self, suite: Suite) -> Steps:
        """The calls of one round of a suite."""
        make = {"click": self.clicks, "encode": self.encoding, "volume": self.volumes, "train": self.training}
        return make[suite]()

    def precision(self) -> AbstractContextManager[Any]:
        """Ours in the wanted one, the published network as released."""
        return torch.autocast(self.settings.device.split(":")[0], torch.bfloat16) if self.mixed else nullcontext()

    def clicks(self) -> Steps:
        """A first click on a new image, and four more on what is kept."""
        side = compared.promptable(self.network, self.pair, self.which)
        image, presses = self.image(), presses_in(self.edge, self.pair.kind == "slice", CLICKS)

        def press(count: int, to_host: bool) -> None:
            with torch.no_grad(), self.precision():
                if count == 1:
                    self.kept = {"features": side.encode(image), "fed": None}
                answer = side.click(self.kept["features"], presses[:count], self.kept["fed"], to_host)
            self.kept["fed"] = answer.fed
            self.kept["first" if count == 1 else "last"] = answer

        ways = [("", not self.settings.device.startswith("cuda"))]
        if self.settings.device.startswith("cuda"):
            ways.append(("_host", True))
        steps: list[tuple[str, Callable[[], object]]] = []
        for suffix, to_host in ways:
            for count in range(1, CLICKS + 1):
                task = ("click.cold" if count == 1 else "click.warm") + suffix
                steps.append((task, partial(press, count, to_host)))
        return steps, self._answers

    def _answers(self) -> Outputs:
        """Of the first and the last click of a round; masks as they came, unless bits or a device hold them."""
        found: Outputs = {}
        with torch.no_grad():
            for name in ("first", "last"):
                answer: Answer = self.kept[name]
                found[name] = logits = answer.logits()
                plain = isinstance(answer.mask, np.ndarray) and answer.mask.dtype == bool
                found[f"{name} mask"] = answer.mask if plain else (logits > 0).cpu().numpy()
        return found

    def encoding(self) -> Steps:
        """The embedding alone."""
        side, image = compared.promptable(self.network, self.pair, self.which), self.image()

        def encode() -> None:
            with torch.no_grad(), self.precision():
                self.kept["features"] = side.encode(image)

        return [("encode", encode)], lambda: {"embedding": side.embedding(self.kept["features"])}

    def volumes(self) -> Steps:
        """All slices of a volume, automatically or with a click on each."""
        depth = self.settings.volume[0] if self.settings.volume else SLICES
        volume = np.stack([scan((self.edge, self.edge), seed=index) for index in range(depth)])
        segment = self._click_on_each() if self.pair.promptable else self._automatic()

        def run() -> None:
            with torch.no_grad(), self.precision():
                self.kept["answer"] = segment(volume)

        return [("volume", run)], lambda: {
            "logits": self.kept["answer"].logits(),
            "classes": np.asarray(self.kept["answer"].mask),
        }

    def _automatic(self) -> Callable[[Image], Answer]:
        side: Automatic = compared.automatic(self.network, self.pair, self.which)
        return side.segment

    def _click_on_each(self) -> Callable[[Image], Answer]:
        side: Promptable = compared.promptable(self.network, self.pair, self.which)
        presses = presses_in(self.edge, flat=True, count=1)

        def segment(volume: Image) -> Answer:
            answers = [side.click(side.encode(one), presses, None) for one in volume]
            masks = np.stack([np.asarray(answer.mask) for answer in answers])
            return Answer(masks, lambda: torch.stack([answer.logits() for answer in answers]), None)

        return segment

    def training(self) -> Steps:
        """One step on one crop: the first click is answered, Dice and cross-entropy, AdamW."""
        side = compared.promptable(self.network, self.pair, self.which)
        image, presses = self.image(), presses_in(self.edge, flat=False, count=1)
        target = torch.from_numpy(ball((self.edge,) * 3).astype(np.float32)).to(self.settings.device)
        # Our training loop has the fused kernel, the published scripts have not.
        optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-5, fused=self.which == "ours")

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            with self.precision():
                logits = side.click(side.encode(image), presses, None, to_host=False).logits()
            loss = overlap_loss(logits.float(), target)
            loss.backward()
            optimiser.step()
            # Of the first step: the weights part by rounding from then on.
            self.kept.setdefault("logits", logits.detach())

        return [("train", step)], lambda: {"logits": self.kept["logits"]}

    def image(self) -> Image:
        """What this pair looks at."""
        return scan((self.edge,) * (2 if self.pair.kind == "slice" else 3))


def overlap_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice and cross-entropy, as the 3D systems train."""
    probability = logits.sigmoid()
    dice = (2 * (probability * target).sum() + 1) / (probability.square().sum() + target.square().sum() + 1)
    return 1 - dice + F.binary_cross_entropy_with_logits(logits, target)


# --- our own model -------------------------------------------------------------------------------------------------


def own(suite: Suite, settings: Settings) -> list[Candidate]:
    """volsam-s behind its session, from a volume in millimetres to a mask of its size."""
    model = load_model(OWN, device=settings.device)
    network: nn.Module = model.network  # type: ignore[union-attr]
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    if suite == "click":
        edge = settings.size or compared.PAIRS[OWN_PEER].size
        steps = _session_steps(model, (edge, edge, edge), ("click.cold", "click.warm"))
        return [Candidate(OWN, steps, count, peer=published_name(OWN_PEER))]
    sizes = [settings.volume] if settings.volume else list(OWN_SIZES)
    smallest = f"{OWN} {'×'.join(map(str, sizes[0]))}"
    found = []
    for size in sizes:
        name = f"{OWN} {'×'.join(map(str, size))}"
        # Against the smallest scan: how little the size of a scan matters.
        peer = None if name == smallest else smallest
        found.append(Candidate(name, _session_steps(model, size, ("volume",)), count, peer=peer))
    return found


def _session_steps(
    model: Any, size: tuple[int, int, int], tasks: tuple[str, ...]
) -> list[tuple[str, Callable[[], object]]]:
    """A new session and its first click; and if a second task is named, further clicks in the same session."""
    volume = Volume(scan(size), Grid(size, np.diag([1.5, 1.5, 1.5, 1.0])), "scan")
    clicks = [
        Click(tuple(volume.grid.to_world(p.voxel)), positive=p.positive) for p in presses_in(size[0], False, CLICKS)
    ]
    kept: dict[str, Session] = {}

    def first() -> None:
        kept["session"] = Session(model, volume)
        kept["session"].add(clicks[0])
        _ = kept["session"].mask

    def further(click: Click) -> None:
        kept["session"].add(click)
        _ = kept["session"].mask

    more = [(tasks[1], partial(further, click)) for click in clicks[1:]] if len(tasks) > 1 else []
    return [(tasks[0], first), *more]


# --- what is looked at ---------------------------------------------------------------------------------------------


def ball(size: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A ball in the middle, a fifth of the shortest edge in radius."""
    axes = np.ogrid[tuple(slice(0, edge) for edge in size)]
    squares = [(axis - edge / 2) ** 2 for axis, edge in zip(axes, size, strict=True)]
    return np.asarray(sum(squares) < (min(size) / 5) ** 2)


def scan(size: tuple[int, ...], seed: int = 0) -> Image:
    """A ball in noise, z-scored: the same voxels every time."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(size, dtype=np.float32) + 2 * ball(size)
    return np.asarray((values - values.mean()) / values.std(), dtype=np.float32)


def presses_in(edge: int, flat: bool, count: int) -> list[Press]:
    """Clicks in and around the ball of a cube or a slice, every third outside."""
    random = np.random.default_rng(edge)
    middle, reach = edge / 2, edge / 5
    presses = []
    for index in range(count):
        positive = index % 3 != 2
        shift = random.uniform(-0.4, 0.4, 3) * reach if positive else random.choice([-1.5, 1.5], 3) * reach
        d, h, w = (int(place) for place in middle + shift)
        presses.append(Press((0 if flat else d, h, w), positive))
    return presses

"""Conversations with volsam-s: a first prompt, then clicks on what is still wrong; some of them off, some unheeded.

The network answers at half size, where nearly all of its work is; the finest stage, made of pointwise layers, is learnt
in a part of the region. Only some turns of a conversation give gradients: what comes between teaches little and costs
as much. docs/concepts/default-model.md says why the prompts are drawn as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.data.preparation import UNKNOWN
from volsam.models.dense_prompt import DensePromptNet, Part
from volsam.models.features import Features
from volsam.models.prompt_maps import NOWHERE, Prompts
from volsam.training.losses import overlap_of_masks

CLICKS = 12
"""Most points in one prompt."""
PART = 24
"""Side of the part in which the finest stage is trained."""

TURNS = (1, 2, 3, 4, 5, 6, 8, 10)
"""Lengths of a conversation, and how often each is drawn: short ones first, they teach the most per minute."""
EARLY_TURNS = (0.40, 0.30, 0.20, 0.10, 0.0, 0.0, 0.0, 0.0)
LATE_TURNS = (0.20, 0.20, 0.20, 0.14, 0.10, 0.08, 0.05, 0.03)


@dataclass(frozen=True)
class Targets:
    """What a step is about.

    image: (b 3 n n n) as the network sees it; masks: (tb 1 n n n) in 0..1, t objects of each image, first ones first;
    wholes: (tb,) size of each object in voxels of the region, with what lies outside of it; clicks: (tb 3) where the
    region was centred, `NOWHERE` if that says nothing; known: (tb 1 n n n), 1 where the truth is known and 0 where it
    is not, where the masks are 0 too; None if it is everywhere.
    """

    image: Tensor
    masks: Tensor
    wholes: Tensor
    clicks: Tensor
    known: Tensor | None = None

    @property
    def half(self) -> Float[Tensor, "tb 1 d h w"]:
        """The masks at half size: how much of what is known of a voxel is object."""
        half = F.avg_pool3d(self.masks, 2)
        return half if self.half_known is None else half / self.half_known.clamp(min=1 / 8)

    @property
    def half_known(self) -> Float[Tensor, "tb 1 d h w"] | None:
        """How far the truth is known, at half size."""
        return None if self.known is None else F.avg_pool3d(self.known, 2)


class DenseClickTask(nn.Module):
    """volsam-s in simulated conversations.

    A batch holds `image` (b 3 n n n), `label` (b n n n), 1 in the object and `UNKNOWN` where nothing is to be learnt,
    and `whole` (b,), the size of the object in voxels with what lies outside of the image.

    early: part of the schedule in which conversations are short.
    """

    def __init__(self, network: DensePromptNet, early: float = 0.45) -> None:
        super().__init__()
        self.network = network
        self.early = early
        self.is_early = early > 0

    def at(self, part: float) -> None:
        """How far the schedule is, 0 to 1."""
        self.is_early = part < self.early

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`loss` of the turns that were learnt from, `first` and `dice`: after the first turn and the last."""
        label = rearrange(batch["label"], "b d h w -> b 1 d h w")
        masks, known = ((label == 1).to(batch["image"].dtype), label != UNKNOWN)
        nowhere = torch.full((len(masks), 3), NOWHERE, device=masks.device)
        given = None if known.all() else known.to(masks.dtype)
        targets = Targets(batch["image"], masks, batch["whole"].to(masks.dtype), nowhere, given)
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        loss, dice = converse(self.network, targets, self.is_early, generator)
        return {"loss": loss, "first": torch.tensor(dice[0]), "dice": torch.tensor(dice[-1])}


def converse(
    network: DensePromptNet, targets: Targets, early: bool, generator: torch.Generator
) -> tuple[Tensor, list[float]]:
    """Loss of one simulated conversation, a short one while it is `early`, and the mean Dice inside the region after
    each click.
    """
    chances = torch.tensor(EARLY_TURNS if early else LATE_TURNS)
    turns = TURNS[int(torch.multinomial(chances, 1, generator=generator))]
    learned = {0, turns - 1, int(torch.randint(0, turns, (1,), generator=generator))}
    features = network.encode(targets.image).repeat(len(targets.masks) // len(targets.image))
    frozen = Features(features.embedding.detach(), tuple(tap.detach() for tap in features.taps), features.image)
    part = _drawn_part(targets.image.shape[-3:], generator)
    skip = network.fine_skip(features, part)
    half, known = targets.half, targets.half_known
    known_part = None if targets.known is None else targets.known[(..., *part)]
    prompts = first_prompts(targets, generator)
    loss, scores = torch.zeros((), device=targets.image.device), []
    for turn in range(turns):
        with torch.set_grad_enabled(turn in learned and torch.is_grad_enabled()):
            draft = network.draft(features if turn in learned else frozen, prompts)
            if turn in learned:
                fine = network.refine(features, prompts, draft, part, skip)
                items = overlap_of_masks(draft.half, half, known) + 0.5 * near_clicks(draft.half, half, prompts, known)
                items = items + 0.5 * overlap_of_masks(fine, targets.masks[(..., *part)], known_part)
                dice = overlap(draft.half.detach(), half, targets.wholes, known)
                loss = loss + items.mean() + 0.5 * F.smooth_l1_loss(draft.quality[:, 0], dice, beta=0.1)
        scores.append(float(overlap(draft.half.detach(), half, known=known).mean()))
        if turn + 1 < turns:
            prompts = next_prompts(prompts, draft.half.detach(), targets, turn + 1, generator)
    return loss / len(learned), scores


def _drawn_part(shape: torch.Size, generator: torch.Generator) -> Part:
    """Even bounds of a cube, not at the border of the region where there is room."""
    parts = []
    for size in shape:
        side = min(PART, size)
        margin = min(size // 8, (size - side) // 2)
        low = int(torch.randint(margin, size - margin - side + 1, (1,), generator=generator)) // 2 * 2
        parts.append(slice(low, low + side))
    return (parts[0], parts[1], parts[2])


# --- prompts ---------------------------------------------------------------------------------------------------------


def first_prompts(targets: Targets, generator: torch.Generator) -> Prompts:
    """A click, or (15 %) a box with or without one; nothing where there is no object.

    A click that centred the region is mostly the one that is given.
    """
    masks = (targets.half > 0.5).float()
    points = torch.full((len(masks), CLICKS, 3), NOWHERE, device=masks.device)
    labels = torch.full((len(masks), CLICKS), -1, device=masks.device)
    found = deepest(masks, generator).float()
    if targets.known is not None:
        found = _onto(found, targets.masks)
    for index in (masks.flatten(1).sum(1) == 0).nonzero()[:, 0].tolist():  # too thin to be seen at half size
        places = (targets.masks[index, 0] > 0.5).nonzero()
        found[index] = places[int(torch.randint(len(places), (), generator=generator))] if len(places) else NOWHERE
    given = targets.clicks[:, :1] > 0
    keep = given & (torch.rand(len(masks), 1, generator=generator).to(masks.device) < 0.8)
    last = torch.tensor(targets.masks.shape[-3:], device=masks.device) - 1
    points[:, 0] = torch.where(keep, targets.clicks.clamp(min=0).minimum(last), found)
    labels[:, 0] = torch.where(points[:, 0, 0] == NOWHERE, -1, 1)
    box = torch.zeros_like(targets.masks)
    for index in range(len(masks)):
        if torch.rand(1, generator=generator).item() > 0.15:
            continue
        places = (targets.masks[index, 0] > 0.5).nonzero()
        if len(places) < 8:
            continue
        low, high = _drawn_box(places, points[index, 0], last, generator)
        box[index, 0, low[0] : high[0] + 1, low[1] : high[1] + 1, low[2] : high[2] + 1] = 1
        if torch.rand(1, generator=generator).item() < 0.6:
            labels[index, 0] = -1
            points[index, 0] = NOWHERE
    return Prompts(points, labels, box)


def _drawn_box(places: Tensor, click: Tensor, last: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """First and last voxel (3,) of a box around an object's voxels (n 3), a little off; in three of ten a flat one."""
    low, high = places.amin(0).float(), places.amax(0).float()
    slack = (high - low) * 0.06
    low = (low + slack * torch.randn(3, generator=generator).to(low)).round().clamp(min=0).minimum(last).long()
    high = (high + slack * torch.randn(3, generator=generator).to(low)).round().clamp(min=0).minimum(last).long()
    if torch.rand(1, generator=generator).item() < 0.3:  # a 2D box: one slice, tight there
        axis = int(torch.randint(0, 3, (1,), generator=generator))
        cut = int(click[axis].round().clamp(min=0).minimum(last[axis]))
        there = places[places[:, axis] == cut]
        if len(there):
            return there.amin(0), there.amax(0)
    return low, high


def next_prompts(
    prompts: Prompts, half: Float[Tensor, "tb 1 d h w"], targets: Targets, turn: int, generator: torch.Generator
) -> Prompts:
    """One more click in the larger error; 4 % of the clicks fall anywhere near the object, with the right sign.

    half: logits of the mask so far, at half size.
    """
    known, inside = targets.known, targets.masks > 0.5
    mask = _seen(half, None if known is None else F.max_pool3d(known, 2))
    # At half size a mask has added what holds none of the object, and missed what is mostly object. An object that is
    # most of no voxel, as thin ones are, is missed wherever some of it is.
    touched, filled = F.max_pool3d(inside.to(mask.dtype), 2), (targets.half > 0.5).to(mask.dtype)
    thin = ~filled.flatten(1).any(dim=1)[:, None, None, None, None]
    missed, added = torch.where(thin, touched, filled) * (1 - mask), mask * (1 - touched)
    thickness = [F.avg_pool3d(error, 5, 1, 2).amax(dim=(1, 2, 3, 4)) for error in (missed, added)]
    positive = (thickness[0] >= thickness[1])[:, None, None, None, None]
    error = torch.where(positive, missed, added)
    outside = ~inside if known is None else ~inside & (known > 0)
    deep = place = _onto(deepest(error, generator).float(), torch.where(positive, inside, outside))
    stray = torch.rand(len(place), generator=generator).to(place.device) < 0.04
    place = torch.where(stray[:, None], place + 4 * torch.randn(place.shape, generator=generator).to(place), place)
    place = place.clamp(min=0).minimum(torch.tensor(inside.shape[-3:], device=place.device) - 1)
    if known is not None:
        place = torch.where(_at(known, place), place, deep)
    points, labels = prompts.points.clone(), prompts.labels.clone()
    some = error.flatten(1).sum(1) > 0
    points[:, turn] = torch.where(some[:, None], place, NOWHERE)
    labels[:, turn] = torch.where(some, _at(inside, place)[:, 0].long(), -1)
    fed = half.detach()
    if torch.rand(1, generator=generator).item() < 0.1:
        return Prompts(points, labels, prompts.box)
    if torch.rand(1, generator=generator).item() < 0.15:  # as after a change of zoom: the old mask, softened
        fed = F.avg_pool3d(fed, 3, 1, 1)
    return Prompts(points, labels, prompts.box, fed)


def deepest(error: Float[Tensor, "b 1 d h w"], generator: torch.Generator) -> Tensor:
    """(b 3) voxel of the input in the middle of `error` (0 or 1, at half size); 35 % anywhere in it.

    A sum of box means of several widths is highest where the error is thickest: near enough to a distance transform,
    and one call for the whole batch.
    """
    widths = [k for k in (3, 5, 9, 15) if k <= min(error.shape[-3:])]
    score = sum(F.avg_pool3d(error, k, 1, k // 2) for k in widths) * error
    noise = torch.rand(error.shape, generator=generator).to(error.device)
    anywhere = torch.rand(len(error), generator=generator).to(error.device) < 0.35
    score = torch.where(anywhere[:, None, None, None, None], noise * error, score + 0.1 * noise * error)
    place = score.flatten(1).argmax(1)
    _, h, w = error.shape[-3:]
    index = torch.stack([place // (h * w), place // w % h, place % w], dim=1)
    return 2 * index + torch.randint(0, 2, index.shape, generator=generator).to(index)


# --- what is learnt --------------------------------------------------------------------------------------------------


def near_clicks(half: Tensor, target: Tensor, prompts: Prompts, known: Tensor | None = None) -> Float[Tensor, " b"]:
    """Cross-entropy in the two voxels around each click, as far as they are known."""
    near = torch.zeros_like(half)
    for turn in range(prompts.points.shape[1]):
        if not (prompts.labels[:, turn] >= 0).any():
            continue
        lines = []
        for axis, length in enumerate(half.shape[-3:]):
            line = torch.arange(length, device=half.device)
            lines.append((line - (prompts.points[:, turn, axis, None] - 0.5) / 2).abs() < 1.5)
        cube = lines[0][:, :, None, None] & lines[1][:, None, :, None] & lines[2][:, None, None]
        near = torch.maximum(near, cube.float()[:, None])
    near = near if known is None else near * known
    entropy = F.binary_cross_entropy_with_logits(half, target, reduction="none")
    return (entropy * near).sum(dim=(1, 2, 3, 4)) / (near.sum(dim=(1, 2, 3, 4)) + 1)


def overlap(
    half: Tensor, target: Tensor, wholes: Tensor | None = None, known: Tensor | None = None
) -> Float[Tensor, " b"]:
    """Dice of a mask at half size: inside the region, or with the whole object (`wholes`, in voxels of full size)."""
    mask = _seen(half, known)
    both = (mask * target).sum(dim=(1, 2, 3, 4))
    inside = (target if known is None else target * known).sum(dim=(1, 2, 3, 4))
    size = inside if wholes is None else torch.maximum(wholes / 8, inside)
    return 2 * both / (mask.sum(dim=(1, 2, 3, 4)) + size + 1e-3)


def _seen(half: Tensor, known: Tensor | None) -> Tensor:
    """The mask of logits, as far as its truth is known."""
    mask = (half > 0).float()
    return mask if known is None else mask * known


def _at(wanted: Tensor, places: Tensor) -> Tensor:
    """Whether voxels (b 3) are wanted (b 1 d h w), as (b 1)."""
    _, h, w = wanted.shape[-3:]
    z, y, x = places.long().unbind(dim=1)
    return wanted.flatten(1).gather(1, ((z * h + y) * w + x)[:, None]) > 0


def _onto(places: Tensor, wanted: Tensor) -> Tensor:
    """Voxels (b 3), each moved within its cube of two to one that is wanted (b 1 d h w), if there is one."""
    moved = places.clone()
    for number in (~_at(wanted, places)[:, 0]).nonzero()[:, 0].tolist():
        low = places[number].long() // 2 * 2
        cube = wanted[number, 0][tuple(slice(start, start + 2) for start in low.tolist())]
        if cube.any():
            moved[number] = (low + cube.nonzero()[0]).to(moved)
    return moved

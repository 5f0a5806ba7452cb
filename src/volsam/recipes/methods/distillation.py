"""FastSAM3D's student: it learns from a teacher (`volsam distill`), or from clicks alone.

Of a teacher of its own kind it takes over all but the encoder: prompt encoder and mask head, and the quirks of released
weights. Any other promptable 3D model teaches its embedding alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.data.preparation import Preparation, Prepared
from volsam.data.preprocess import normalise
from volsam.errors import BadInput
from volsam.models.dense_prompt import DensePromptNet
from volsam.models.segmenter import Segmenter, SegmenterConfig
from volsam.recipes.engine import PLAIN
from volsam.recipes.families.sam_adapter_3d import SamAdapter3D
from volsam.recipes.methods import clicks
from volsam.recipes.methods.clicks import (
    SIZES,
    ClicksConfig,
    groups,
    is_of_volumes,
    model,
    network,
    plan,
    require_no_sizes,
    seen_by,
    sized,
    sizes_of_init,
)
from volsam.recipes.methods.method import Method, Show, cache_folder, methods
from volsam.recipes.methods.volumes import TrainedCropModel
from volsam.recipes.recipe import load_model
from volsam.training.clicks import ClickTask
from volsam.training.config import Share, configured
from volsam.training.distill import EMBEDDING, DistillTask, Onlooker, Pair, Taught, pairs_of
from volsam.training.items import Items
from volsam.training.run import Plan


class StudentConfig(ClicksConfig, frozen=True):
    """Settings of FastSAM3D's student; the paper has six blocks, the first two without attention."""

    depth: PositiveInt = 6
    still: NonNegativeInt = 2
    teacher: str = ""
    """A promptable 3D model, by name, file or run; empty: learn from clicks alone."""
    imitation: Share = 0.6
    """Part of the schedule in which the teacher is imitated."""
    layers: bool = True
    """Layer by layer, as the paper describes; false: the embedding alone, as the released script does."""
    pairs: tuple[Pair, ...] | None = None
    """A block of the student and one of the teacher for each stage, counted from 1, [0, 0] for the embedding; None: as
    `layers` says."""
    stages: tuple[float, ...] | None = None
    """How long the stages are beside one another, such as epochs of each; None: all alike."""
    loss: Literal["mse", "l1"] = "mse"
    """What compares student and teacher: the square of the difference, as published, or its size."""
    keep: NonNegativeFloat = 0.0
    """Weight of earlier layers while later ones are learnt."""
    views: NonNegativeInt = 0
    """Of so many views of the training cases the teacher tells its features once, before the training, and they are
    kept on disk; 0: it is asked in every step, about what is drawn for it."""
    unfreeze: Share = 0.5
    """Part of the time of clicks after which the encoder learns as well; 1 for never."""


OWN_SIZES = ("depth", "still", "heads", "sparse")
"""Sizes in which a student may differ from its teacher."""


def teacher_of(name: str) -> Segmenter | Onlooker:
    """A teacher's network, on the CPU."""
    model = load_model(name, device="cpu", engine=PLAIN)
    network = getattr(model, "network", None)
    if is_of_volumes(network):
        return network
    if isinstance(network, DensePromptNet):
        return Onlooker(network, _as_regions)
    if isinstance(model, TrainedCropModel) and isinstance(network, SamAdapter3D):
        if model.preparation.scaling != "zscore":
            raise BadInput(f"--teacher {name} sees intensities in a window of its own, which a student does not")
        size = network.encoder.config.image
        order = [Preparation().axes.index(letter) for letter in model.axes]
        return Onlooker(
            network, lambda image: F.interpolate(image, size, mode="trilinear"), (order[0], order[1], order[2])
        )
    raise BadInput(
        f"--teacher {name}: a student of FastSAM3D learns from SAM-Med3D and its like, from volsam-s, or from runs of "
        "adapt-clicks and 3dsam-adapter"
    )


def _as_regions(image: Tensor) -> Tensor:
    """Cubes (b 1 d h w) as volsam-s sees regions (b 3 d h w), whatever scale they have."""
    cubes = image[:, 0].cpu().numpy()
    return torch.from_numpy(np.stack([normalise(cube, np.ones(cube.shape, bool)) for cube in cubes])).to(image)


def student_of(teacher: SegmenterConfig, depth: int, still: int, heads: int | None, sparse: str) -> SegmenterConfig:
    """The sizes of a student: fewer blocks, the first ones without attention, all else as the teacher has it."""
    encoder = teacher.encoder.model_copy(
        update={
            "depth": depth,
            "blocks_without_attention": still,
            "heads": heads or teacher.encoder.heads // 2,
            "window": (0, 0, 0),
            "wide_blocks": (),
            "sparse": sparse,
            "taps": tuple(range(1, depth + 1)),
        }
    )
    return teacher.model_copy(update={"encoder": encoder})


def sizes_of_teacher(given: Mapping[str, Any], init: str | None) -> dict[str, Any]:
    """Settings of a student, completed by what its teacher tells: sizes, and the voxels that it was trained on."""
    name = str(given.get("teacher", ""))
    if not name:
        return sizes_of_init(given, init)
    told = f"--teacher {name}"
    teacher = teacher_of(name)
    if isinstance(teacher, Onlooker):
        return sizes_of_init(given, init)
    require_no_sizes(given, (size for size in SIZES if size not in OWN_SIZES), told)
    wanted = configured(StudentConfig, {key: given[key] for key in OWN_SIZES if key in given})
    sizes = student_of(teacher.config, wanted.depth, wanted.still, given.get("heads"), wanted.sparse)
    return {**seen_by(name), **given, **sized(sizes)}


def take_over(network: nn.Module, config: StudentConfig) -> None:
    """Begin with the prompt encoder and mask head of a teacher of the same kind, whose blocks fit the stages."""
    if not config.teacher:
        return
    teacher, _, _ = lesson_of(config, network)
    if isinstance(teacher, Onlooker):
        return
    taught = {key: value for key, value in teacher.state_dict().items() if not key.startswith("encoder.")}
    network.load_state_dict(taught, strict=False)


def stages_of(config: StudentConfig, student: int, teacher: int) -> tuple[list[Pair], list[float]]:
    """Which blocks are compared in each stage, and how long the stages are, together 1; depths are in blocks, and a
    teacher of another kind has none.
    """
    layered = config.layers and teacher > 0
    pairs = list(config.pairs) if config.pairs else pairs_of(student, teacher) if layered else [EMBEDDING]
    for own, other in pairs:
        embedded = (own, other) == EMBEDDING
        if not embedded and not (1 <= own <= student and 1 <= other <= teacher):
            raise BadInput(
                f"pairs: [{own}, {other}] is no pair of blocks: the student has {student}, the teacher {teacher}, and "
                "[0, 0] stands for the embedding"
            )
    lengths = list(config.stages or [1.0] * len(pairs))
    if len(lengths) != len(pairs) or min(lengths) <= 0:
        raise BadInput(f"stages: {len(pairs)} lengths above 0 are needed, one for each pair, got {lengths}")
    return pairs, [length / sum(lengths) for length in lengths]


def lesson_of(config: StudentConfig, student: nn.Module) -> tuple[Segmenter | Onlooker, list[Pair], list[float]]:
    """The teacher, which keeps the tokens that are compared, and `stages_of` both."""
    assert isinstance(student, Segmenter)
    teacher = teacher_of(config.teacher)
    if isinstance(teacher, Onlooker):
        _require_seen(student.config.encoder.image[0], config, teacher)
        return teacher.eval(), *stages_of(config, student.config.encoder.depth, 0)
    encoder = teacher.config.encoder
    pairs, lengths = stages_of(config, student.config.encoder.depth, encoder.depth)
    taps = tuple(sorted({other for _, other in pairs if other} | {encoder.depth}))
    kept = Segmenter(teacher.config.model_copy(update={"encoder": encoder.model_copy(update={"taps": taps})}))
    kept.load_state_dict(teacher.state_dict())
    return kept.eval(), pairs, lengths


def _require_seen(edge: int, config: StudentConfig, teacher: Onlooker) -> None:
    """A student's cubes must be such as its teacher can look at."""
    if isinstance(teacher.network, SamAdapter3D):
        if config.scaling != "volume":
            raise BadInput(f"--teacher {config.teacher} sees volumes as scaling=volume has it, got {config.scaling}")
    elif edge % 16 or edge < 32:
        raise BadInput(f"--teacher {config.teacher} looks at cubes of 32, 48, 64 ... voxels, got edge={edge}")


def task(network: nn.Module, plan: Plan, config: StudentConfig) -> nn.Module:
    """Imitation, then conversations; without a teacher conversations alone."""
    assert isinstance(network, Segmenter)
    corrected = ClickTask(network, config.turns)
    if not config.teacher:
        return corrected
    teacher, pairs, lengths = lesson_of(config, network)
    return DistillTask(
        network,
        None if config.views else teacher,
        pairs,
        config.imitation,
        config.keep,
        corrected,
        config.unfreeze,
        lengths=lengths,
        alike=isinstance(teacher, Onlooker),
        loss=config.loss,
    )


def items(
    cases: Sequence[Prepared], plan: Plan, config: StudentConfig, network: nn.Module, device: str, show: Show
) -> Items:
    """Cubes around one object each, and beside them, if it is wanted, views of which the teacher has told already."""
    drawn = clicks.items(cases, plan, config, network, device, show)
    if not (config.teacher and config.views):
        return drawn
    teacher, pairs, _ = lesson_of(config, network)
    place = cache_folder() / f"taught-{_key(cases, plan, config, teacher, pairs)}"
    return Taught(drawn, teacher.to(device), [other for _, other in pairs], config.views, place, show)


def _key(cases: Sequence[Prepared], plan: Plan, config: StudentConfig, teacher: nn.Module, pairs: list[Pair]) -> str:
    """What a teacher tells follows from this; 24 hexadecimal digits."""
    digest = blake2b(digest_size=12)
    told = [plan.model_dump(mode="json"), config.augment, config.seed, config.views, pairs]
    digest.update(json.dumps([*told, [case.name for case in cases]]).encode())
    for case in cases:  # whose files, and prepared how, is in the name
        digest.update(str(getattr(case.image, "filename", "")).encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


methods.add(
    "fastsam3d",
    Method(
        name="fastsam3d",
        title="FastSAM3D's student",
        source="Shen et al. 2024, FastSAM3D",
        config=StudentConfig,
        init="",
        plan=plan,
        complete=sizes_of_teacher,
        begin=take_over,
        teacher=lambda config: config.teacher,
        network=network,
        task=task,
        items=items,
        model=model,
        groups=groups,
    ),
)

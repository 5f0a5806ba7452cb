"""From a file of published weights to a network that is known to be right: recognised, completed, filled, kept.

Some published files hold a part of their network only, and need a second file: see `PARTS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from volsam.errors import BadFile, BadInput, NotSupported
from volsam.recipes import store, trained, volsam_s
from volsam.recipes.checkpoint import Checkpoint, filled, read_checkpoint, require_finite, sizes_fit
from volsam.recipes.engine import prepared, require_torch
from volsam.recipes.families import ma_sam
from volsam.recipes.families.family import Described, Family, family_of, load_families
from volsam.recipes.methods.method import load_methods
from volsam.recipes.recipe import EMBEDDED

if TYPE_CHECKING:
    from volsam.inference.automatic import AutomaticModel
    from volsam.inference.session import Model

log = logging.getLogger(__name__)

# Tensors that some originals save although they follow from sizes: the masks of 3DSAM-adapter's windows take 400 MB.
COMPUTED = (".attn_mask",)


@dataclass(frozen=True)
class Variant:
    """Weights with the names and shapes of a family that are used in another way, so that a name has to tell."""

    of: str
    title: str
    source: str
    licence: str
    prompts: tuple[str, ...]


VARIANTS = {
    "medsam": Variant(
        of="sam",
        title="MedSAM",
        source="Ma et al. 2024, Segment Anything in Medical Images",
        licence="Apache-2.0",
        prompts=("box",),
    )
}


@dataclass(frozen=True)
class Part:
    """A published file that is not a whole network.

    title: what it holds; partner: the family of the second file, and `wanted` in words; needs: whether described
    weights are such a part; merge: the whole, from the part and the second file, under original names.
    """

    title: str
    partner: str
    wanted: str
    needs: Callable[[Described], bool]
    merge: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]


def _student_and_teacher(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
    rest = {name: tensor for name, tensor in teacher.items() if not name.startswith("image_encoder.")}
    return {f"image_encoder.{name}": tensor for name, tensor in student.items()} | rest


def parts() -> list[Part]:
    """Every published file that is known to be a part."""
    return [
        Part(
            title="the image encoder of FastSAM3D alone",
            partner="sam-med3d",
            wanted="a SAM-Med3D checkpoint, whose prompt encoder and mask decoder belong to it",
            needs=load_families()["fastsam3d-encoder"].recognises,
            merge=_student_and_teacher,
        ),
        Part(
            title="the tensors alone that MA-SAM tuned",
            partner="sam",
            wanted="the SAM checkpoint that they were tuned on",
            needs=ma_sam.needs_sam,
            merge=ma_sam.merge,
        ),
    ]


@dataclass(frozen=True, eq=False)
class Recognised:
    """Weights of a whole network, found right: names, shapes and values."""

    family: Family
    variant: str | None
    tensors: Mapping[str, Tensor]
    computed: Mapping[str, tuple[int, ...]]
    network: nn.Module
    origins: tuple[store.Origin, ...]
    note: str


def import_checkpoint(
    file: Path,
    *,
    name: str | None = None,
    partner: str | Path | None = None,
    family: str | None = None,
    licence: str | None = None,
    source: str | None = None,
    force: bool = False,
) -> store.StoredModel:
    """Keep the weights of a file in the store, with a card; nothing is written unless all of it is right.

    partner: the second file where the first is a part, or the name of a stored model; family: what the weights must be
    of, or "medsam" for weights of SAM that take boxes only, which is also told from the name. The file may be a
    training run as well, packed or its folder, which needs neither.
    """
    name = store.proposed_name(file.resolve().name) if name is None else name
    store.require_name(name, force=force)
    if trained.place_of(file) is not None:
        if partner is not None or family is not None:
            raise BadInput(f"{file} is a training run, which holds all it needs: leave --with and --family out")
        return _import_run(file, name, licence, source, force)
    found = recognised(file, name, partner, family)
    said = found.family if found.variant is None else VARIANTS[found.variant]
    card = store.Card(
        family=found.family.name,
        variant=found.variant,
        title=said.title,
        prompts=said.prompts,
        licence=licence or said.licence,
        source=source or said.source,
        imported=found.origins,
        computed=found.computed,
        note=found.note,
    )
    model = store.put(name, found.tensors, card, force=force)
    _warn_if_mute(found, name)
    return model


def _import_run(place: Path, name: str, licence: str | None, source: str | None, force: bool) -> store.StoredModel:
    """Keep a training run in the store as one file, once its network has been built."""
    run = trained.pack(place)
    model = trained.load_run(place, "cpu")
    record = run.record
    method = load_methods()[record.method]
    card = store.Card(
        family=record.method,
        title=f"{method.title}, trained on {record.dataset}",
        prompts=() if trained.is_automatic(model) else _prompts(cast("Model", model).takes),
        licence=licence or record.licence,
        source=source or f"volsam train {record.method}",
        imported=(store.Origin(file=place.resolve().name, sha256=store.checksum(trained.file_of(place))),),
        note="" if record.done else "the training was not finished",
        run=True,
    )
    return store.put(name, run.tensors, card, force=force, header=run.header)


def _prompts(takes: Collection[str]) -> tuple[str, ...]:
    """The prompts of a card, by what a model takes."""
    asks = {"point": "click", "box": "box", "scribble": "click", "mask": "mask"}
    return tuple(prompt for prompt, kind in asks.items() if kind in takes or f"flat {kind}" in takes)


def recognised(
    file: Path, name: str, partner: str | Path | None = None, wanted: str | None = None, first: Checkpoint | None = None
) -> Recognised:
    """What a file is, completed by its partner and filled into its network."""
    if wanted is not None and wanted not in VARIANTS:
        _ = load_families()[wanted]  # refuses a name that nothing has before the file is read
    first = read_checkpoint(file) if first is None else first
    if _is_default(first):
        volsam_s.build_from(first.tensors, first.where)
        raise BadInput(
            f"{first.where} holds weights of {EMBEDDED}, which ships with volsam and needs no import: give the file to "
            "--model or --init as it is"
        )
    require_finite(first)
    files = [(file.name, first)]
    part = next((part for part in parts() if part.needs(first.described)), None)
    tensors, where = first.tensors, first.where
    if part is not None:
        second_file = _partner_file(first, part, partner)
        second = read_checkpoint(second_file)
        require_finite(second)
        if family_of(second.described).name != part.partner:
            raise BadInput(f"--with {partner}: {where} needs {part.wanted}, and this is none")
        files.append((second_file.name, second))
        where = f"{where} with {second.where}"
        with sizes_fit(where, part.title):
            tensors = part.merge(first.tensors, second.tensors)
    elif partner is not None:
        raise BadInput(f"--with {partner}: {where} holds a whole network and needs no second file: leave --with out")
    described = Described.of(where, tensors)
    computed = {name: shape for name, shape in described.shapes.items() if name.endswith(COMPUTED)}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in computed}
    family = family_of(described)
    variant = _variant(family, name, wanted, where)
    origins = tuple(store.Origin(file=name, sha256=checkpoint.sha256) for name, checkpoint in files)
    note = "; ".join(f"{name}: {checkpoint.note}" for name, checkpoint in files if checkpoint.note)
    network = filled(family, described, tensors)
    return Recognised(family, variant, tensors, computed, network, origins, note)


def load(name_or_path: str, device: str, engine: str | None = None) -> Model:
    """A stored model, a file of weights that is used without being stored, or a training run, behind the interface of
    a session.
    """
    if trained.place_of(name_or_path) is not None:
        require_torch(engine, name_or_path)
        model = trained.load_run(name_or_path, device)
        if trained.is_automatic(model):
            raise NotSupported(f"{name_or_path} was trained to be automatic and takes no clicks: use `volsam predict`")
        return cast("Model", model)
    found = _found(name_or_path)
    if isinstance(found, Checkpoint):
        require_torch(engine, name_or_path)
        return volsam_s.build_from(found.tensors, found.where, device)
    family, network, name, variant = found
    return _ready(family, prepared(network, name, device, engine), name, variant, device)


def load_automatic(name_or_path: str, device: str) -> AutomaticModel | None:
    """The same of a model without prompts; None if it takes prompts."""
    if trained.place_of(name_or_path) is not None:
        model = trained.load_run(name_or_path, device)
        return model if trained.is_automatic(model) else None
    found = _found(name_or_path)
    if isinstance(found, Checkpoint):
        return None
    family, network, name, _ = found
    return None if family.automatic is None else family.automatic(prepared(network, name, device), name, device)


def _found(name_or_path: str) -> Checkpoint | tuple[Family, nn.Module, str, str | None]:
    """Family, filled network, name and variant; weights of volsam-s, which is no family, as they are."""
    if store.is_stored(name_or_path):
        model = store.stored(name_or_path)
        family, network = store.network_of(model)
        return family, network, model.name, model.card.variant
    path = Path(name_or_path)
    if not path.exists() and not path.suffix:
        raise store.unknown(name_or_path)
    if not path.is_file():
        raise BadFile(
            f"no weights file at {name_or_path}: give a path that exists, or a name from `volsam models list`"
        )
    checkpoint = read_checkpoint(path)
    if _is_default(checkpoint):
        return checkpoint
    found = recognised(path, path.stem.lower(), first=checkpoint)
    return found.family, found.network, path.stem, found.variant


def _warn_if_mute(found: Recognised, name: str) -> None:
    """Say at once why a promptable model could not be asked later: of some, the name has to tell more."""
    if found.family.engine is not None:
        try:
            _ready(found.family, found.network, name, found.variant, "cpu")
        except BadInput as error:
            log.warning("%s is kept, but cannot be asked with prompts: %s", name, error)


def _ready(family: Family, network: nn.Module, name: str, variant: str | None, device: str) -> Model:
    if family.engine is None:
        if family.prompts:
            raise NotSupported(f"{name} is {family.title}, which volsam keeps but cannot be asked with clicks yet")
        raise NotSupported(f"{name} is {family.title}, which is automatic and takes no clicks: use `volsam predict`")
    # The engine of a family with variants tells them by the name.
    told = name if variant is None or variant in name.lower() else f"{name} ({variant})"
    return family.engine(network, told, device)


def _partner_file(first: Checkpoint, part: Part, partner: str | Path | None) -> Path:
    if partner is None:
        raise BadInput(f"{first.where} holds {part.title}: add --with FILE, {part.wanted}")
    if store.is_stored(str(partner)):
        return store.stored(str(partner)).weights
    return Path(partner)


def _variant(family: Family, name: str, wanted: str | None, where: str) -> str | None:
    """The variant that was asked for, or that a name tells."""
    told = next((key for key, variant in VARIANTS.items() if variant.of == family.name and key in name), None)
    if wanted is None:
        return told
    if wanted in VARIANTS and VARIANTS[wanted].of == family.name:
        return wanted
    if wanted != family.name:
        raise BadInput(f"--family {wanted} was given, but {where} has the names and shapes of {family.title}")
    if told is not None:
        raise BadInput(f"a model called {name} is taken for {VARIANTS[told].title}: give a --name without {told!r}")
    return None


def _is_default(checkpoint: Checkpoint) -> bool:
    """Whether weights are those of volsam-s, or of something like it."""
    import torch

    from volsam.models.dense_prompt import DensePromptNet

    with torch.device("meta"):
        ours = set(DensePromptNet().state_dict())
    return len(ours & set(checkpoint.tensors)) > len(ours) / 2

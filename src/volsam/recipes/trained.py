"""Weights that runs begin with, and models that they end with: from a name, a file or a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from torch import nn

from volsam.errors import BadFile
from volsam.recipes.methods.method import Method, Weights, load_methods
from volsam.training import packed
from volsam.training.run import Init, Record, RunFolder, fill

if TYPE_CHECKING:
    from volsam.inference.automatic import AutomaticModel
    from volsam.recipes.methods.method import Trained


def initial(method: Method, named: str | None) -> tuple[Weights | None, Init]:
    """The weights that a run begins with: of a name, a file or another run; None where a method begins from nothing."""
    wanted = method.init if named is None else named
    if wanted in ("", "none"):
        return None, Init(name="", licence="trained on the dataset alone")
    from safetensors.torch import load_file

    from volsam.recipes import store
    from volsam.recipes.checkpoint import read_checkpoint
    from volsam.recipes.recipe import shipped

    recipes = shipped()
    if wanted in recipes and (weights := recipes[wanted].weights) is not None:
        tensors = {name: tensor.float() for name, tensor in load_file(weights).items()}
        return tensors, Init(name=wanted, sha256=store.checksum(weights), licence=recipes[wanted].licence)
    path = Path(wanted)
    if (place := place_of(wanted)) is not None:
        name = str(path.resolve()) if path.exists() else wanted
        learnt = RunFolder(place).learnt() if place.is_dir() else packed.unpack(place).learnt
        return learnt, Init(name=name, sha256=store.checksum(file_of(place)), licence=record_of(place).licence)
    if store.is_stored(wanted):
        model = store.stored(wanted)
        return load_file(model.weights), Init(name=wanted, sha256=model.card.sha256, licence=model.card.licence)
    if not path.is_file():
        raise store.unknown(wanted) if not path.suffix else BadFile(f"--init {wanted}: there is no such file")
    found = read_checkpoint(path)
    return found.tensors, Init(name=str(path.resolve()), sha256=found.sha256, licence="as of the weights it began with")


def place_of(named: str | os.PathLike[str]) -> Path | None:
    """Where a run lies, its folder or its one file, by a path or by a name in the store; None for what is no run."""
    from volsam.recipes import store

    path = Path(named)
    if RunFolder(path).begun or packed.is_packed(path):
        return path
    model = store.stored(str(named)) if store.is_stored(str(named)) else None
    return model.weights if model is not None and model.card.run else None


def file_of(place: Path) -> Path:
    """The file of a run's weights."""
    return RunFolder(place).weights if place.is_dir() else place


def record_of(place: Path) -> Record:
    """What is known of the run in a folder or a file."""
    return RunFolder(place).record() if place.is_dir() else packed.record_in(place)


def is_automatic(model: Trained) -> TypeGuard[AutomaticModel]:
    """Whether a model labels volumes by itself."""
    return hasattr(model, "segment")


def load_run(named: str | os.PathLike[str], device: str) -> Trained:
    """The model of a run, by its best weights."""
    method, network, record = load_network(named)
    config = method.config.model_validate(dict(record.config))
    name = Path(named).resolve().name.removesuffix(packed.SUFFIX)
    found: Trained = method.model(network, record.plan, config, name, device)
    return found


def load_network(named: str | os.PathLike[str]) -> tuple[Method, nn.Module, Record]:
    """The network of a run with its best weights, how it was trained, and what is known of it."""
    place = place_of(named) or Path(named)
    if place.is_file():
        run = packed.unpack(place)
        began = run.began if run.began is not None else _began(run.record, place)
        return *_built(run.record, run.learnt, began, place), run.record
    folder = RunFolder(place)
    record = folder.record()
    return *_built(record, folder.learnt(), _began(record, place), folder.weights), record


def pack(named: str | os.PathLike[str]) -> packed.Packed:
    """A run with all that its model needs, made sure of by building its network."""
    place = place_of(named) or Path(named)
    if place.is_file():
        return packed.unpack(place)
    from volsam.recipes.recipe import shipped

    folder = RunFolder(place)
    record = folder.record()
    learnt, began = folder.learnt(), _began(record, place)
    _built(record, learnt, began, folder.weights)
    return packed.Packed(packed.nameless(record), learnt, None if record.init.name in shipped() else began)


def _built(record: Record, learnt: Weights, began: Weights | None, where: Path) -> tuple[Method, nn.Module]:
    """The network of a run, from what it learnt and what it began with."""
    method = load_methods()[record.method]
    config = method.recalled(method.config.model_validate(dict(record.config)))
    network = method.network(record.plan, config, began)
    fill(network, learnt, where, method.keeps)
    return method, network.eval()


def _began(record: Record, place: Path) -> Weights | None:
    """The weights that a run began with, if they are still what they were."""
    weights, now = initial(load_methods()[record.method], _where(record.init.name, place))
    if now.sha256 != record.init.sha256:
        raise BadFile(f"{place} began with {record.init.name}, and these weights have changed since: bring them back")
    return weights


def _where(named: str, run: Path) -> str:
    """The weights that a run began with: where they were, or, if both were moved, beside the run."""
    place = Path(named)
    if not place.is_absolute() or place.exists():
        return named
    beside = run.resolve().parent / place.name
    if not beside.exists():
        raise BadFile(f"{run} began with {named}, which is gone: bring it back, or put it beside {run}")
    return str(beside)

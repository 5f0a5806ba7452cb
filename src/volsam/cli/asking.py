"""From a model to what an evaluation asks: answers to prompts, or the labels of a volume."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volsam.cli.console import say
from volsam.data.dataset import Case, read_label
from volsam.data.io import WRITABLE
from volsam.data.simulate import Mask
from volsam.errors import BadInput
from volsam.evaluation.protocol import Ask, Begin, Labels
from volsam.evaluation.study import Scene
from volsam.prompts import PromptSet
from volsam.volume import Volume

if TYPE_CHECKING:
    from volsam.evaluation.cvpr2025 import AskAll, BeginAll
    from volsam.inference.automatic import AutomaticModel
    from volsam.inference.session import Model, Session

WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth")
# Values that a message names.
MOST_SHOWN = 8


def begin_with(model: Model, plane: str = "auto", follow: bool = True) -> Begin:
    """A session of its own for every object; `follow` and `plane` are those of `Session`."""
    from volsam.inference.session import Session

    def begin(volume: Volume) -> Ask:
        session = Session(model, volume, plane=plane, follow=follow)

        def ask(prompts: PromptSet) -> Mask:
            _tell(session, prompts)
            return session.mask.data[0] > 0

        return ask

    return begin


def begin_all_with(model: Model, plane: str = "auto") -> BeginAll:
    """One session for all objects of a volume; a voxel of two masks goes to the surer one."""
    from volsam.inference.session import Session

    def begin(volume: Volume, values: Mapping[str, int]) -> AskAll:
        session = Session(model, volume, object_name=next(iter(values)), plane=plane)

        def ask(new: Mapping[str, PromptSet]) -> Labels:
            for name, prompts in new.items():
                session.select(name)
                if len(prompts):
                    _tell(session, prompts)
            return _together(session, values)

        return ask

    return begin


def _tell(session: Session, prompts: PromptSet) -> None:
    """Give prompts as a model wants them: one after the other if it builds on its answers, else at once."""
    if session.builds_on_answers:
        for prompt in prompts:
            session.add(prompt)
    else:
        session.add_all(prompts)


def _together(session: Session, values: Mapping[str, int]) -> Labels:
    labels = np.zeros(session.volume.grid.shape, np.min_scalar_type(max(values.values())))
    claimed = np.zeros(session.volume.grid.shape, np.uint8)
    for name, value in values.items():
        mask = session.mask_of(name).data[0] > 0
        labels[mask] = value
        claimed += mask
    contested = claimed > 1
    if contested.any():
        best = np.zeros(np.count_nonzero(contested), np.float32)
        for name, value in values.items():
            session.select(name)
            sure = session.probability.data[0][contested] * (session.mask_of(name).data[0][contested] > 0)
            labels[contested] = np.where(sure > best, value, labels[contested])
            best = np.maximum(best, sure)
    return labels


# --- labels ----------------------------------------------------------------------------------------------------------


def labels_of(model: AutomaticModel, objects: Mapping[str, int], plane: str, stride: int) -> Callable[[Scene], Labels]:
    """The labels that a model finds, with the values of the dataset; see `matched`."""
    values, _ = matched(model.labels, objects, model.name)
    # The model writes values of its own, which need not be the places of its classes.
    table = np.zeros(max(model.values) + 1, np.min_scalar_type(max(objects.values())))
    for index, value in values.items():
        table[model.values[index]] = value
    return lambda scene: table[model.segment(scene.volume, plane, stride=stride).data[0]]


def matched(labels: Sequence[str], objects: Mapping[str, int], name: str) -> tuple[dict[int, int], bool]:
    """From the classes of a model to the values of a dataset's objects, and whether their names say so.

    By name where names agree; a single class stands for a single object; otherwise by number.
    """
    places = {label.casefold(): index for index, label in enumerate(labels) if index}
    named = {places[each.casefold()]: value for each, value in objects.items() if each.casefold() in places}
    if len(named) == len(objects):
        return named, True
    if len(labels) == 2 and len(objects) == 1:
        return {1: next(iter(objects.values()))}, False
    numbered = {value: value for value in objects.values() if value < len(labels)}
    if not named and len(numbered) == len(objects):
        return numbered, False
    missing = [each for each in objects if each.casefold() not in places]
    raise BadInput(
        f"{name} has no class for {', '.join(missing)}; it has {', '.join(labels[1:])}: choose what is scored "
        "with --objects"
    )


def unlike(model: AutomaticModel, objects: Mapping[str, int]) -> str | None:
    """Which class is scored as which object, where their names do not say so; for a warning and for the report."""
    values, by_name = matched(model.labels, objects, model.name)
    if by_name:
        return None
    called = {value: each for each, value in objects.items()}
    pairs = ", ".join(f"{model.labels[index]} is scored as {called[value]}" for index, value in values.items())
    return f"no class of the model has the name of a label; by their numbers, {pairs}"


def predictions_in(folder: Path, cases: Iterable[Case]) -> bool:
    """Whether a folder holds labels, ready made, for some of the cases."""
    return folder.is_dir() and any(prediction_of(folder, case.name) is not None for case in cases)


def labels_from(folder: Path, declared: Mapping[str, int]) -> Callable[[Scene], Labels]:
    """Labels that lie in a folder as CASE.nii.gz, on the grid of the image, with values that the dataset declares.

    A file none of whose values is declared is refused; of others that are not, a line is said, and they count as
    background.
    """

    def read(scene: Scene) -> Labels:
        path = prediction_of(folder, scene.name)
        if path is None:
            raise BadInput(f"{folder} holds no labels for {scene.name}")
        found = read_label(Case(scene.name, (), path), scene.volume.grid)
        _require_declared(found, declared, path)
        return found

    return read


def _require_declared(labels: Labels, declared: Mapping[str, int], path: Path) -> None:
    values = set(np.unique(labels).tolist()) - {0}
    known = {value: name for name, value in declared.items() if value != 0}
    unknown = sorted(values - known.keys())
    if not unknown:
        return
    shown = ", ".join(map(str, unknown[:MOST_SHOWN])) + (" ..." if len(unknown) > MOST_SHOWN else "")
    names = ", ".join(f"{value} ({name})" for value, name in sorted(known.items()))
    words = f"{path} holds the value{'s' * (len(unknown) > 1)} {shown}, and the dataset has {names}"
    if not values & known.keys():
        raise BadInput(f"{words}: write the labels with these values")
    say(f"warning: {words}: what has another value is taken for background")


def prediction_of(folder: Path, case: str) -> Path | None:
    """The file with the labels of a case, None where there is none."""
    return next((path for ending in WRITABLE if (path := folder / f"{case}{ending}").is_file()), None)


def fingerprint(model: str) -> str | None:
    """The first 16 digits of the SHA-256 of a model's weights: of a name, a file, or the files of a run's folder."""
    from volsam.recipes import store
    from volsam.recipes.recipe import shipped

    if model in shipped():
        checksum = shipped()[model].checksum()
        return checksum[:16] if checksum else None
    if store.is_stored(model):
        return store.stored(model).card.sha256[:16]
    path = Path(model)
    if path.is_file():
        return store.checksum(path)[:16]
    files = sorted(file for file in path.glob("*") if file.suffix in WEIGHTS) if path.is_dir() else []
    # Of a training run those that count are its best; what it goes on from is large and no part of the model.
    files = [file for file in files if file.stem == "best"] or files
    together = hashlib.sha256("".join(store.checksum(file) for file in files).encode())
    return together.hexdigest()[:16] if files else None

"""The models that a user has imported: a folder each, with the weights and a card, found without a network.

    VOLSAM_HOME/models/NAME/weights.safetensors      under the names of the original
                            card.json                what is known of them

Nothing here needs torch until a network is wanted, so that a list of models costs next to nothing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from difflib import get_close_matches
from pathlib import Path
from time import time
from typing import TYPE_CHECKING
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from volsam.data.files import PIECE, replacing
from volsam.errors import BadFile, BadInput
from volsam.recipes.recipe import shipped

if TYPE_CHECKING:
    from torch import Tensor, nn

    from volsam.recipes.families.family import Family

log = logging.getLogger(__name__)

HOME_VARIABLE = "VOLSAM_HOME"
WEIGHTS, CARD = "weights.safetensors", "card.json"
EXPORTABLE = (".safetensors", ".pt", ".pth")
# A name is a folder on every system, and must not be taken for a path.
NAME = re.compile(r"[a-z0-9](?:[a-z0-9._+-]{0,62}[a-z0-9])?")
# Windows keeps these for devices.
NO_FOLDERS = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
# What a killed import or download left is removed by a later one, when nobody can be at work on it any more.
LEFT_OVER = 24 * 3600  # seconds


# --- what is known of a model ----------------------------------------------------------------------------------------


class Origin(BaseModel, frozen=True):
    """A file that weights came from."""

    file: str
    """Its name, without folders."""
    sha256: str
    """Of the file as it was imported."""


class Card(BaseModel, frozen=True):
    """What is known of a stored model."""

    family: str
    """The network: a name of `volsam.recipes.families.family`, or of a run that of its method."""
    variant: str | None = None
    """How its weights differ from the family's own: "medsam" is SAM tuned for boxes."""
    title: str
    """What it is called in its paper."""
    prompts: tuple[str, ...]
    """Kinds that it takes; none for an automatic model."""
    licence: str
    """As the user said, else that of the family's released weights."""
    source: str
    """As the user said, else the paper."""
    imported: tuple[Origin, ...]
    """The files it was made of."""
    computed: Mapping[str, tuple[int, ...]] = {}
    """Tensors of the original that follow from sizes and are not stored, by name; their shapes tell these sizes."""
    note: str = ""
    """What else the files held."""
    run: bool = False
    """Whether it is a training run; its family is then the method, and the file has the run's record in its header."""
    date: str = ""
    """Of the import, ISO 8601, UTC; this and what follows is filled in when the weights are written."""
    parameters: int = 0
    """Numbers in all stored tensors."""
    bytes: int = 0
    """Size of the stored weights."""
    sha256: str = ""
    """Of the stored weights."""


@dataclass(frozen=True)
class StoredModel:
    """A model in the store: its folder and its card."""

    path: Path
    card: Card

    @property
    def name(self) -> str:
        """What a user types."""
        return self.path.name

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.path / WEIGHTS

    @property
    def present(self) -> bool:
        """Whether the weights are here, and as long as they were."""
        return self.weights.is_file() and self.weights.stat().st_size == self.card.bytes


# --- where -----------------------------------------------------------------------------------------------------------


def home() -> Path:
    """The folder of all that volsam keeps: VOLSAM_HOME, else where this system keeps caches."""
    if given := os.environ.get(HOME_VARIABLE):
        return Path(given).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "volsam"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "volsam"
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache.startswith("/") else Path.home() / ".cache") / "volsam"


def folder_of(name: str) -> Path:
    """Where a model of this name is, or would be."""
    return home() / "models" / name


# --- finding ---------------------------------------------------------------------------------------------------------


def all_stored() -> list[StoredModel]:
    """Every stored model by name; one whose card cannot be read is left out, with a warning."""
    try:
        names = sorted(path.name for path in (home() / "models").iterdir())
    except OSError:
        return []
    found = []
    for name in filter(is_stored, names):
        try:
            found.append(stored(name))
        except BadFile as error:
            log.warning("%s", error)
    return found


def is_stored(name: str) -> bool:
    """Whether the store has a model of this name."""
    return NAME.fullmatch(name) is not None and (folder_of(name) / CARD).is_file()


def stored(name: str) -> StoredModel:
    """A model of the store, by name."""
    if not is_stored(name):
        raise unknown(name)
    path = folder_of(name)
    try:
        return StoredModel(path, Card.model_validate_json((path / CARD).read_bytes()))
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it does not say what a card must say"
        raise BadFile(
            f"{path / CARD} cannot be read ({reason}): remove the folder and import the model again"
        ) from None


def unknown(name: str) -> BadInput:
    """What to say of a name that nothing has."""
    names = [*shipped(), *(model.name for model in all_stored())]
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(names))}"
    return BadInput(f"no model is called {name!r}; {hint}")


def network_of(model: StoredModel) -> tuple[Family, nn.Module]:
    """The family of a stored model, and its network filled with the stored weights, single precision, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from volsam.recipes.checkpoint import filled
    from volsam.recipes.families.family import Described, load_families

    again = f"volsam models remove {model.name} --yes, then import it again"
    if not model.present:
        raise BadFile(f"the weights of {model.name} in {model.path} are missing or cut short: {again}")
    try:
        tensors = load_file(model.weights)
    except (SafetensorError, OSError) as error:
        raise BadFile(f"the weights of {model.name} in {model.path} are damaged ({error}): {again}") from None
    family = load_families()[model.card.family]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()} | dict(model.card.computed)
    described = Described(str(model.weights), shapes)
    return family, filled(family, described, tensors)


# --- keeping ---------------------------------------------------------------------------------------------------------


def require_name(name: str, *, force: bool = False) -> None:
    """Refuse a name that cannot be a folder, or that is taken."""
    if not NAME.fullmatch(name) or name.partition(".")[0] in NO_FOLDERS:
        proposal = proposed_name(name)
        hint = f", such as {proposal}" if proposal else ""
        raise BadInput(
            f"a model cannot be called {name!r}: give a --name of small letters, digits and . _ + - between them{hint}"
        )
    if name in shipped():
        raise BadInput(f"{name} is a model that ships with volsam: give another --name")
    if folder_of(name).exists() and not force:
        raise BadInput(f"there is a model called {name} already: give another --name, or replace it with --force")


def proposed_name(file: str) -> str:
    """A name made of that of a file; empty where nothing is left."""
    stem = re.sub(r"(\.(safetensors|pth|pt|bin|ckpt|tar|pickle|pkl))+$", "", Path(file).name.lower())
    name = re.sub(r"[^a-z0-9._+-]+", "-", stem).strip("._+-")[:64].rstrip("._+-")
    return "" if name.partition(".")[0] in NO_FOLDERS else name


def put(
    name: str,
    tensors: Mapping[str, Tensor],
    card: Card,
    *,
    force: bool = False,
    header: Mapping[str, str] | None = None,
) -> StoredModel:
    """Keep weights and a card; either both are there in the end, or nothing.

    force: replace a model of that name; header: texts for the header of the file.
    """
    require_name(name, force=force)
    room = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with _new_folder(name, room, force=force) as folder:
        _write(tensors, folder / WEIGHTS, header or {})
        written = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
            "bytes": (folder / WEIGHTS).stat().st_size,
            "sha256": checksum(folder / WEIGHTS),
        }
        text = card.model_copy(update=written).model_dump_json(indent=2)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")
        shutil.copymode(folder / CARD, folder / WEIGHTS)  # safetensors keeps its files to one user
    return stored(name)


def remove(name: str) -> None:
    """Delete a stored model."""
    model = stored(name)
    aside = _hidden(model.path)
    with _refused(model.path):
        model.path.rename(aside)  # gone at once, even if deleting stops halfway
        shutil.rmtree(aside)


def export(weights: Path, target: Path) -> None:
    """Write a safetensors file again, as it is or as a plain torch file, by the ending of `target`."""
    if target.suffix.lower() not in EXPORTABLE or target.is_dir():
        raise BadInput(f"-o {target}: give the name of a file that ends in {', '.join(EXPORTABLE)}")
    if not target.parent.is_dir():
        raise BadInput(f"-o {target}: the folder {target.parent} does not exist: make it first")
    if target.exists() and target.samefile(weights):
        raise BadInput(f"-o {target} is the file of the model itself: give another name")
    with replacing(target) as temporary:
        if target.suffix.lower() == ".safetensors":
            shutil.copyfile(weights, temporary)
            return
        import torch
        from safetensors.torch import load_file

        try:
            torch.save(load_file(weights), temporary)
        except RuntimeError as error:  # torch's own writer, when the disk is full
            raise OSError(str(error).partition("\n")[0]) from error


def checksum(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def require_room(folder: Path, needed: int, what: str) -> None:
    """Refuse what would fill the disk, with the numbers."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BadInput(
            f"{what} takes {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free in {folder}: free some room, or "
            f"name another folder in {HOME_VARIABLE}"
        )


@contextmanager
def workplace() -> Iterator[Path]:
    """A hidden folder in the store for what is not ready yet; it is gone in the end, whatever happens."""
    models = home() / "models"
    with _refused(models):
        models.mkdir(parents=True, exist_ok=True)
        _sweep(models)
        folder = _hidden(models / "new")
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _new_folder(name: str, room: int, *, force: bool) -> Iterator[Path]:
    """An empty folder that becomes that of a model when all went well."""
    final = folder_of(name)
    with workplace() as folder:
        require_room(folder, room, name)
        yield folder
        before = _hidden(final)
        if force and final.exists():
            final.rename(before)
        try:
            folder.rename(final)
        except OSError:
            if before.exists():
                before.rename(final)
            raise
        shutil.rmtree(before, ignore_errors=True)


def _write(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        # The format knows no tensors that share memory, or that lie in it with gaps.
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size()
        seen.add(storage.data_ptr())
        apart[name] = tensor.clone().contiguous() if shared else tensor.contiguous()
    try:
        save_file(apart, path, metadata={"format": "pt", **header})
    except SafetensorError as error:
        raise OSError(str(error)) from error


@contextmanager
def _refused(where: Path) -> Iterator[None]:
    """What a system refuses, in one line of ours."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{where} cannot be changed ({error.strerror or error}): make room or get leave to write there, or name "
            f"another folder in {HOME_VARIABLE}"
        ) from error


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}")


def _sweep(models: Path) -> None:
    for path in models.glob(".*"):
        try:
            old = time() - path.stat().st_mtime > LEFT_OVER
        except OSError:
            continue
        if old:
            shutil.rmtree(path, ignore_errors=True)

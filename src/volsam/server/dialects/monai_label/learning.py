"""`/activelearning/{strategy}`: which image is to be labelled next.

first        in order of the paths
random       any; the longer ago an image was handed out, the likelier it is
uncertainty  the one of which the model expects least of itself, see `Doubt`

Only images without a final label are handed out. One that another client was given in the last hour waits until there
is no other, so that two people do not work on the same.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic, time
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Body
from numpy.typing import NDArray

from volsam.data.io import read_volume
from volsam.data.studies import FINAL
from volsam.errors import BadInput, VolsamError
from volsam.geometry import Grid
from volsam.inference.session import Session
from volsam.prompts import Click
from volsam.server.core import Core
from volsam.server.dialects.monai_label.app import App
from volsam.server.dialects.monai_label.datastore import Datastore, Image
from volsam.server.dialects.monai_label.labels import checksum
from volsam.server.problems import Problem
from volsam.server.store import RECORD
from volsam.server.volumes import Origin, load

STRATEGIES: dict[str, Any] = {
    "first": {"description": "in order of the paths", "config": {}},
    "random": {"description": "any image", "config": {}},
    "uncertainty": {"description": "the image of which the model expects least of itself", "config": {}},
}
# Seconds for which an image is left to the client that it was given to.
HELD = 3600
# Seconds that a request may look at images that were not looked at yet; the others wait for the next one.
LOOKING = 8.0
# Labelled images from which it is learnt where objects lie.
MOST_EXAMPLES = 20


def router(app: App) -> APIRouter:
    """The next image."""
    routes = APIRouter(prefix="/activelearning")
    doubt = None if app.store is None else Doubt(app.core, app.store)

    @routes.post("/{strategy}")
    def next_sample(strategy: str, params: Annotated[dict[str, Any] | None, Body()] = None) -> dict[str, Any]:
        if strategy not in STRATEGIES:
            raise Problem(404, f"no strategy is called {strategy[:100]!r}; there are: {', '.join(STRATEGIES)}")
        store, client = app.datastore, str((params or {}).get("client_id") or "")
        waiting = [image for image in store.images().values() if FINAL not in image.labels]
        free = [image for image in waiting if not _held(image, client)] or waiting
        if not free:
            return {}
        beside: dict[str, Any] = {}
        if strategy == "random":
            ages = [max(1.0, time() - _given(image)) for image in free]
            image = random.choices(free, weights=ages)[0]
        elif strategy == "uncertainty" and doubt is not None:
            image, expected = doubt.worst(free)
            beside = {"quality": expected}
        else:
            image = free[0]
        return {**_handed_out(store, image, strategy, client), **beside}

    return routes


class Doubt:
    """What a model expects of its own answers: `Session.quality`, the Dice that it predicts.

    Where somebody has begun on an image, it is that of the newest saved session, of its worst object. Else it is that
    of a first guess: for every label that was saved so far, one click at the place, as a part of the volume's extent,
    at which it lies in the other images on average; in the middle of the volume where nothing was labelled yet. A guess
    is made again when another label has come up, or another file.
    """

    def __init__(self, core: Core, store: Datastore) -> None:
        self._core = core
        self._store = store
        self._known: dict[tuple[Any, ...], float] = {}
        self._places: dict[tuple[str, float], dict[int, NDArray[np.float64]]] = {}
        self._lock = threading.Lock()

    def worst(self, images: list[Image]) -> tuple[Image, float | None]:
        """The image of which least is expected; images that cannot be answered come last."""
        with self._lock:
            begun = self._begun()
            places = self._typical() if any(image.file not in begun for image in images) else []
            until = monotonic() + LOOKING
            found: list[tuple[float, Image]] = []
            for image in images:
                key = self._key(image, begun.get(image.file), places)
                if key not in self._known and (monotonic() < until or not found):
                    self._known[key] = self._expected(image, begun.get(image.file), places)
                if key in self._known:
                    found.append((self._known[key], image))
        expected, image = min(found, key=lambda pair: pair[0])
        return image, None if np.isinf(expected) else expected

    def _begun(self) -> dict[str, str]:
        """The newest saved session with prompts of every study."""
        found: dict[str, str] = {}
        for record in self._core.saved():
            if record["study"] is not None and record["prompts"]:
                found.setdefault(record["study"], record["id"])
        return found

    def _key(self, image: Image, session: str | None, places: list[NDArray[np.float64]]) -> tuple[Any, ...]:
        try:
            if session is not None:
                return (image.file, session, (self._core.store.place(session) / RECORD).stat().st_mtime)
            modified = self._store.path(image).stat().st_mtime
        except (VolsamError, OSError):  # a link to elsewhere, or gone
            modified = 0.0
        return (image.file, modified, len(places))

    def _expected(self, image: Image, session: str | None, places: list[NDArray[np.float64]]) -> float:
        try:
            volume = load(Origin("study", image.file), self._core.settings.studies, Path())
            model = self._core.models[None]
            if session is not None:
                replayed = Session.from_record(self._core.store.read(session), model, volume)
                told = [_quality(replayed, name) for name in replayed.objects]
                known = [quality for quality in told if quality is not None]
                if known:
                    return min(known)
            guesses = []
            for place in places or [np.full(3, 0.5)]:
                guess = Session(model, volume)
                x, y, z = _inside(volume.grid, place)
                guess.add(Click((x, y, z)))
                guesses.append(guess.quality or 0.0)
            return min(guesses)
        except (VolsamError, OSError, ValueError):
            return float("inf")

    def _typical(self) -> list[NDArray[np.float64]]:
        """Where labels lie on average, as parts of the extents of their volumes; one place for every value."""
        sums: dict[int, list[NDArray[np.float64]]] = {}
        for image, label in self._store.cases()[:MOST_EXAMPLES]:
            path = self._store.root / label.file
            key = (label.file, path.stat().st_mtime)
            if key not in self._places:
                self._places[key] = _middles(path, image.identity)
            for value, place in self._places[key].items():
                sums.setdefault(value, []).append(place)
        return [np.mean(found, axis=0) for _, found in sorted(sums.items())]


def _quality(session: Session, name: str) -> float | None:
    session.select(name)
    return session.quality


def _middles(path: Path, name: str) -> dict[int, NDArray[np.float64]]:
    """The middle of every label in a file, as a part of the extent along R, A and S."""
    try:
        label = read_volume(path)
    except BadInput:
        return {}
    low, high = label.grid.extent()
    found = {}
    for value in np.unique(label.data[0]):
        if value > 0:
            middle = label.grid.to_world(np.argwhere(label.data[0] == value).mean(axis=0))
            found[int(value)] = (middle - low) / (high - low)
    return found


def _inside(grid: Grid, place: NDArray[np.float64]) -> tuple[float, float, float]:
    """A part of the extent as a point in mm; the nearest one within the volume."""
    low, high = grid.extent()
    voxel = grid.to_voxels(low + place * (high - low)).clip(0, np.array(grid.shape) - 1)
    x, y, z = grid.to_world(voxel).tolist()
    return x, y, z


def _given(image: Image) -> float:
    """When an image was last handed out, in seconds since 1970."""
    return max((float(one.get("ts", 0)) for one in _handings(image)), default=0.0)


def _held(image: Image, client: str) -> bool:
    """Whether it was given to somebody else not long ago."""
    return any(one.get("client_id") != client and time() - float(one.get("ts", 0)) < HELD for one in _handings(image))


def _handings(image: Image) -> list[Mapping[str, Any]]:
    known = image.info.get("strategy")
    return [one for one in known.values() if isinstance(one, dict)] if isinstance(known, dict) else []


def _handed_out(store: Datastore, image: Image, strategy: str, client: str) -> dict[str, Any]:
    """What a client is told of an image; who has it is noted, where the folder can be written."""
    path = store.path(image)
    known = image.info.get("strategy")
    given = {**(known if isinstance(known, dict) else {}), strategy: {"ts": int(time()), "client_id": client}}
    info = {**image.info, "strategy": given}
    with suppress(VolsamError):
        info = store.update_image(image.identity, {"strategy": given})
    whole = path.is_file()
    name = path.name if whole else f"{path.name}.nii.gz"
    found = {**store.series(image), **info, "id": image.identity, "name": name, "ts": int(path.stat().st_mtime)}
    return {**found, "path": str(path), "checksum": f"SHA256:{checksum(path)}"} if whole else found

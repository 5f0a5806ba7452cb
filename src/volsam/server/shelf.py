"""The models that clients may choose, loaded when they are first asked for."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from volsam.errors import BadInput
from volsam.inference.session import Model
from volsam.recipes import recipe as known
from volsam.server.device import Device, on_device
from volsam.server.encodings import Encodings


@dataclass(frozen=True)
class Spine:
    """What a list of models says of one."""

    name: str
    summary: str
    licence: str
    prompts: tuple[str, ...]


class Shelf:
    """Models by name, each behind the one device, the encodings of all in one place."""

    def __init__(
        self,
        names: tuple[str, ...],
        device: Device,
        encodings: Encodings,
        place: str,
        model: Model | None = None,
        licences: tuple[str, ...] | None = None,
    ) -> None:
        self.names = names
        self._licences = licences
        self._device = device
        self._encodings = encodings
        self._place = place
        self._loaded: dict[str, Model] = {} if model is None else {names[0]: on_device(model, device, encodings)}
        self._lock = threading.Lock()

    @property
    def default(self) -> str:
        """What a client gets that names none."""
        return self.names[0]

    def __getitem__(self, name: str | None) -> Model:
        name = self.default if name is None else name
        if name not in self.names:
            raise BadInput(f"this server has no model {name!r}; it has: {', '.join(self.names)}")
        with self._lock:
            if name not in self._loaded:
                model = known.load_model(name, device=self._place)
                self._loaded[name] = on_device(model, self._device, self._encodings)
            return self._loaded[name]

    def start(self) -> None:
        """Refuse at once what could not be asked; load the default, and files and runs, of which only that tells."""
        self._require_licences()
        for name in self.names:
            if name == self.default or not _askable(name):
                self[name]

    def _require_licences(self) -> None:
        if self._licences is None:
            return
        for name in self.names:
            if (licence := self.spine(name).licence) not in self._licences:
                raise BadInput(
                    f"the model {name} has the licence {licence}; allowed are: {', '.join(self._licences)}: leave it "
                    "out of --models, or name its licence in --allow-licence"
                )

    def called(self, name: str) -> str | None:
        """The name here of a model called by another path, or by its own name, as sessions once had it."""
        if name in self.names:
            return name
        paths = {each: Path(each) for each in self.names if Path(each).exists()}
        same = [each for each, path in paths.items() if path.resolve() == Path(name).resolve()]
        named = [each for each, path in paths.items() if name in (path.name, path.stem)]
        own = [each for each, model in self._loaded.items() if model.name == name]
        return next(iter([*same, *own, *named]), None)

    def is_loaded(self, name: str) -> bool:
        """Whether a session with it would start at once."""
        return name in self._loaded

    def spine(self, name: str) -> Spine:
        """What is known of a model, without loading it."""
        from volsam.recipes import store
        from volsam.recipes.methods.method import load_methods
        from volsam.recipes.trained import place_of, record_of

        if name in known.shipped():
            recipe = known.shipped()[name]
            return Spine(name, recipe.summary, recipe.licence, recipe.prompts)
        if store.is_stored(name):
            card = store.stored(name).card
            return Spine(name, card.title, card.licence, card.prompts)
        if (place := place_of(name)) is not None:
            record = record_of(place)
            title = load_methods()[record.method].title
            return Spine(name, f"{title}, trained on {record.dataset}", record.licence, ())
        return Spine(name, Path(name).name, "unknown", ())


def _askable(name: str) -> bool:
    """Whether a name is that of a model whose weights are here and which takes prompts, without loading it."""
    from volsam.recipes import store

    if name in known.shipped():
        return known.shipped()[name].present
    return store.is_stored(name) and store.stored(name).present and bool(store.stored(name).card.prompts)

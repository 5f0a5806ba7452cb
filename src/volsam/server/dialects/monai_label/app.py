"""What the calls of MONAI Label share: models as it names them, the datastore, uploads, and work that goes on aside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from volsam.server.core import Core
from volsam.server.dialects.monai_label.datastore import Datastore
from volsam.server.dialects.monai_label.desks import Desks
from volsam.server.dialects.monai_label.tasks import Tasks
from volsam.server.dialects.monai_label.training import Trainer
from volsam.server.dialects.monai_label.uploads import Uploads
from volsam.server.problems import Problem

Kind = Literal["segmentation", "deepgrow", "deepedit", "scribbles"]
ADAPTED = "adapted"
BACKGROUND = "background"
# What is offered for every model of the server, by the end of its name, and what it is for.
FORMS: dict[str, tuple[Kind, str]] = {
    "": ("deepgrow", "one object at a time, from clicks in it and beside it, or a box around it"),
    "-labels": ("deepedit", "all labels at once, from clicks in each of them"),
    "-scribbles": ("scribbles", "corrects a label by strokes in it and beside it"),
}


@dataclass(frozen=True)
class Offer:
    """A model in the words of MONAI Label.

    model: the name that the server knows it by; None for the one that was trained on the datastore.
    """

    kind: Kind
    description: str
    model: str | None = None


class App:
    """One per server."""

    def __init__(self, core: Core) -> None:
        self.core = core
        studies = core.settings.studies
        self.store = None if studies is None else Datastore(studies)
        self.uploads = Uploads(core)
        self.desks = Desks(core)
        self.tasks = Tasks()
        self.trainer = None if self.store is None else Trainer(core, self.store)
        core.endings.append(self.tasks.shut_down)

    @property
    def datastore(self) -> Datastore:
        """The datastore; 404 without a folder of studies."""
        if self.store is None:
            raise Problem(404, "this server has no datastore: start it with --studies FOLDER")
        return self.store

    @property
    def labels(self) -> list[str]:
        """What may be drawn: names of dataset.json or of labels so far, else "object"."""
        return (self.store.names() if self.store else []) or ["object"]

    @property
    def offers(self) -> dict[str, Offer]:
        """All models. Automatic ones come first: Slicer runs the first that knows a label on a new image."""
        offers: dict[str, Offer] = {}
        if self.trainer is not None and self.trainer.newest() is not None:
            offers[ADAPTED] = Offer("segmentation", "volsam-s, adapted to the labels of this datastore")
        for name in self.core.models.names:
            known = self.core.models.spine(name).prompts
            if known and "point" not in known:
                continue
            for ending, (kind, text) in FORMS.items():
                offers[f"{Path(name).name}{ending}"] = Offer(kind, text, name)
        return offers

    def offer(self, name: str) -> Offer:
        """One model; 404 if there is none of that name."""
        offers = self.offers
        # Slicer writes a blank in a path as a plus sign.
        found = offers.get(name) or offers.get(name.replace("+", " "))
        if found is None:
            raise Problem(404, f"no model is called {name[:100]!r}; there are: {', '.join(offers)}")
        return found

    def labels_of(self, offer: Offer) -> dict[str, int] | list[str]:
        """Names and values of what a model labels; none for one that takes any object."""
        if offer.kind == "segmentation":
            return {} if self.trainer is None else self.trainer.labels()
        if offer.kind == "deepedit":
            return {BACKGROUND: 0, **{name: value for value, name in enumerate(self.labels, 1)}}
        return []

    def info(self) -> dict[str, Any]:
        """Everything that a client asks for at first."""
        offers = self.offers
        return {
            "models": {
                name: {
                    "type": offer.kind,
                    "labels": self.labels_of(offer),
                    "dimension": 3,
                    "description": offer.description,
                    "config": {},
                }
                for name, offer in offers.items()
            },
            # Last, so that Slicer's clicks begin in something else, and its values are those of its names.
            "labels": [*self.labels, BACKGROUND],
        }

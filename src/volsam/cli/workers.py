"""How `volsam predict` answers one image: by an automatic model, by prompts from a file, or by a saved session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volsam.cli.batch import Wanted, Worker
from volsam.cli.console import Steps
from volsam.errors import BadInput

if TYPE_CHECKING:
    from volsam.cli.job import Outcome
    from volsam.data.dataset import Case
    from volsam.inference.automatic import AutomaticModel
    from volsam.inference.session import Model, Session
    from volsam.volume import Volume


def worker_of(name: str, device: str, output: Path, prompts: Path | None, plane: str, stride: int) -> Worker:
    """The worker for a model, automatic or with a folder of prompts; one that does not go with what came is refused."""
    from volsam.recipes.importing import load_automatic
    from volsam.recipes.recipe import choose_device, load_model, shipped

    automatic = None if name in shipped() else load_automatic(name, choose_device(device))
    if automatic is not None:
        if prompts is not None:
            raise BadInput(f"{name} is automatic and takes no prompts: leave --prompts out")
        return Automatic(automatic, output, plane, stride)
    if prompts is None:
        raise BadInput(f"{name} needs prompts: give a folder with a file NAME.json for each image by --prompts")
    return Prompted(load_model(name, device=device), prompts, plane)


class Automatic:
    """Labels of a volume; the names of the labels lie beside them, once."""

    def __init__(self, model: AutomaticModel, output: Path, plane: str, stride: int) -> None:
        self.model = model
        self.channels = model.channels
        self.output = output
        self.plane = plane
        self.stride = stride

    def prompts(self, case: Case) -> Path | None:
        """None."""
        return None

    def read(self, case: Case, *, beside: bool = False) -> Volume | None:
        """The channels that the model looks at."""
        from volsam.data.dataset import read_image
        from volsam.data.io import read_grid
        from volsam.data.memory import require_room

        grid = read_grid(case.images[0])
        try:
            require_room(grid, case.name, channels=self.channels, beside=(1 + beside) * self.model.room(grid))
        except BadInput:
            if beside:
                return None
            raise
        return read_image(case, self.channels)

    def answer(self, wanted: Wanted, read: Volume) -> Volume:
        """The label of every voxel."""
        return self.model.segment(read, self.plane, stride=self.stride)

    def write(self, wanted: Wanted, answer: Volume) -> None:
        """The labels, and what their values are called."""
        from volsam.data.files import now, write_json
        from volsam.data.io import write_volume
        from volsam.data.studies import NAMES

        wanted.target.parent.mkdir(parents=True, exist_ok=True)
        write_volume(answer, wanted.target)
        values = dict(zip(self.model.labels, self.model.values, strict=True))
        write_json(self.output / NAMES, values)
        found = _volumes(answer, values)
        wanted.line = replace(wanted.line, ml=_listed(found), made=now())
        wanted.said = ", ".join(f"{name} {ml:,.1f} ml" for name, ml in found.items()) or "nothing found"


class Prompted:
    """The mask of one object from a file of prompts, or the labels of all objects from a saved session."""

    channels = 1

    def __init__(self, model: Model, folder: Path, plane: str) -> None:
        self.model = model
        self.folder = folder
        self.plane = plane

    def prompts(self, case: Case) -> Path:
        """NAME.json as in the output, or as the image's file."""
        from volsam.data.io import volume_name

        named = [self.folder / f"{each}.json" for each in (case.name, volume_name(case.images[0]))]
        return next((path for path in named if path.exists()), named[0])

    def read(self, case: Case, *, beside: bool = False) -> None:
        """Nothing: what is read depends on the prompts."""

    def answer(self, wanted: Wanted, read: None) -> Session | Outcome:
        """A session with all objects, or the one object of a file of prompts, whose mask is written at once."""
        from volsam.cli.job import Job, carry_out
        from volsam.cli.prompts import saved_session

        image, prompts = wanted.case.images[0], self.prompts(wanted.case)
        wanted.target.parent.mkdir(parents=True, exist_ok=True)
        record = saved_session(prompts)
        if record is not None:
            return _replayed(record, self.model, image, prompts)
        return carry_out(Job(image, prompts=prompts, output=wanted.target, plane=self.plane), Steps(), self.model)

    def write(self, wanted: Wanted, answer: Session | Outcome) -> None:
        """The labels of a session, and a record of their names."""
        from volsam.data.files import now
        from volsam.inference.session import Session

        if isinstance(answer, Session):
            self._write_labels(wanted, answer)
        else:  # the mask is written already
            quality, ml = answer.quality, answer.millilitres
            wanted.line = replace(wanted.line, ml=_listed({"object": ml}))
            wanted.said = f"{ml:,.2f} ml"
            if quality is not None:  # that of a ready mask is not known
                wanted.line = replace(wanted.line, quality=f"{quality:.3f}")
                wanted.said += f", expected Dice {quality:.2f}"
        wanted.line = replace(wanted.line, made=now())

    def _write_labels(self, wanted: Wanted, session: Session) -> None:
        """Labels from 1 in the order of the objects; where two share voxels, those of the later one."""
        import numpy as np

        from volsam.data.files import write_json
        from volsam.data.io import write_volume
        from volsam.data.studies import record_of

        values = np.zeros(session.volume.grid.shape, np.min_scalar_type(len(session.objects)))
        sure = []
        for number, name in enumerate(session.objects, start=1):
            session.select(name)
            values[session.mask.data[0] > 0] = number
            sure += [] if session.quality is None else [session.quality]
        labels = session.volume.with_data(values[None])
        numbers = {name: number for number, name in enumerate(session.objects, start=1)}
        write_volume(labels, wanted.target)
        listed = [{"name": name, "number": number} for name, number in numbers.items()]
        write_json(record_of(wanted.target), {"labels": listed, "model": session.model.name})
        found = _volumes(labels, {"": 0, **numbers})
        wanted.line = replace(wanted.line, ml=_listed(found), quality=f"{min(sure):.3f}" if sure else "")
        wanted.said = ", ".join(f"{name} {ml:,.2f} ml" for name, ml in found.items()) or "nothing found"
        if sure:
            wanted.said += f", expected Dice {min(sure):.2f}{' at least' * (len(sure) > 1)}"


def _replayed(record: Mapping[str, Any], model: Model, image: Path, file: Path) -> Session:
    """A saved session answered again, in the frame and channel that it was made on."""
    from volsam.data.io import read_grid, read_volume
    from volsam.data.memory import require_room
    from volsam.inference.session import Session

    server = record.get("server")
    origin = server.get("origin") if isinstance(server, dict) else None
    looked_at = origin if isinstance(origin, dict) else {}
    grid = read_grid(image)
    require_room(grid, image.name)
    volume = read_volume(image, frame=looked_at.get("frame"))
    channel = int(looked_at.get("channel", 0))
    if channel >= volume.channels:
        raise BadInput(f"{file} was made on channel {channel}, and {image.name} holds {volume.channels}")
    return Session.from_record(record, model, volume.with_data(volume.data[channel : channel + 1]), str(file))


def _volumes(labels: Volume, values: Mapping[str, int]) -> dict[str, float]:
    """Millilitres of each label that was found."""
    import numpy as np

    counts = np.bincount(labels.data.ravel(), minlength=max(values.values()) + 1)
    return {
        name: counts[value] * labels.grid.voxel_volume / 1000
        for name, value in values.items()
        if value and counts[value]
    }


def _listed(millilitres: Mapping[str, float]) -> str:
    return "; ".join(f"{name} {value:.2f}" for name, value in millilitres.items())

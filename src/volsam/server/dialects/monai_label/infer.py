"""`/infer/{model}`: labels from points, strokes or nothing, in an image of the datastore or an upload."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, File, Form, UploadFile
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray

from volsam.data.dicom_seg import Segment
from volsam.data.io import WRITABLE, write_volume
from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.inference.session import Session
from volsam.prompts import Prompt
from volsam.server.api.files import sent_segments
from volsam.server.conversation import Conversation
from volsam.server.device import Clock
from volsam.server.dialects.monai_label import asking
from volsam.server.dialects.monai_label.app import ADAPTED, BACKGROUND, App, Offer
from volsam.server.dialects.monai_label.datastore import ending_of, read_drawn
from volsam.server.dialects.monai_label.desks import ask, settle
from volsam.server.dialects.monai_label.uploads import keep
from volsam.server.leases import Lease
from volsam.server.ownership import window_of
from volsam.server.problems import Problem
from volsam.server.store import UNFINISHED
from volsam.server.volumes import Origin, load, read_within_memory, require_room
from volsam.volume import Volume

Upload = Annotated[UploadFile | None, File()]
Output = Literal["image", "json", "all", "dicom_seg"]
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
ANONYMOUS = "anonymous"

Masks = dict[str, NDArray[np.bool_]]
"""(i j k) by name of the label."""


@dataclass
class Task:
    """One call: what is asked of which model, and the labels that came out."""

    offer: Offer
    asked: dict[str, Any]
    ending: str
    dtype: str
    drawn: Path | None = None
    source: Path | None = None
    clock: Clock = field(default_factory=Clock)
    grid: Grid | None = None
    label_names: dict[str, int] = field(default_factory=dict)
    quality: float | None = None

    @property
    def client(self) -> str:
        """Who asks, as it calls itself."""
        return str(self.asked.get("client_id") or ANONYMOUS)[:100]


def router(app: App) -> APIRouter:
    """`/infer/...`."""
    routes = APIRouter(prefix="/infer")

    @routes.post("/")
    def no_model() -> Response:
        # Slicer asks so on a new image where there is no automatic model, and makes segments of the names.
        return multipart({"label_names": {name: value for value, name in enumerate(app.labels, 1)}}, None)

    @routes.post("/{model:path}")
    def infer(
        model: str,
        image: str = "",
        session_id: str = "",
        output: Output | None = None,
        params: Annotated[str, Form()] = "{}",
        file: Upload = None,
        label: Upload = None,
    ) -> Response:
        offer = app.offer(model)
        asked = asking.read_params(params)
        if not (file or image or session_id):
            raise BadInput("no image is named: give image=ID, session_id=ID, or the file itself")
        with tempfile.TemporaryDirectory(prefix="volsam-") as folder:
            task = Task(offer, asked, *_form(asked))
            if label is not None:
                task.drawn = keep(label, Path(folder) / "drawn")
            if file is not None:
                task.source = keep(file, Path(folder))
                values = _once(app, task, _read(task.source))
            else:
                values = _of_image(app, task, image, session_id)
            return _sent(app, task, values, output, Path(folder))

    return routes


# --- where the volume is ---------------------------------------------------------------------------------------------


def _of_image(app: App, task: Task, image: str, session: str) -> NDArray[np.integer[Any]]:
    """The labels of an upload, or of an image of the datastore."""
    core, model = app.core, task.offer.model
    if session:
        upload = app.uploads.get(session)
        task.source = upload.path
        if model is None:
            return _automatic(app, task, _read(upload.path))
        key = (task.client, "session", session, model)

        def start(lease: Lease) -> Conversation:
            with tempfile.TemporaryDirectory(dir=core.store.folder, prefix=UNFINISHED) as folder:
                copy = upload.linked(Path(folder))
                return core.open_file(lease, copy, upload.path.name, model=model, annotator=task.client)
    else:
        found = app.datastore.image(image)
        file, task.source = found.file, app.datastore.path(found)
        if model is None:
            return _automatic(app, task, load(Origin("study", file), core.settings.studies, Path()))
        key = (task.client, "study", file, model)

        def start(lease: Lease) -> Conversation:
            return core.open_study(lease, file, model=model, annotator=task.client)

    with ExitStack() as stack:
        with task.clock("open"):
            talk = stack.enter_context(app.desks.at(key, start))
        session_now = stack.enter_context(talk.held(task.clock))
        task.grid = session_now.volume.grid

        def answer(name: str, prompts: list[Prompt], together: bool) -> NDArray[np.bool_]:
            anew = bool(task.asked.get("reset_state"))
            number = settle(talk, name, prompts, task.clock, anew=anew, together=together).number
            task.quality = session_now.quality
            return talk.whole(number)

        return _asked(app, task, session_now, answer)


def _once(app: App, task: Task, volume: Volume) -> NDArray[np.integer[Any]]:
    """The labels of a volume that came with the call and is not kept."""
    if task.offer.model is None:
        return _automatic(app, task, volume)
    session = Session(app.core.models[task.offer.model], volume)
    task.grid = volume.grid

    def answer(name: str, prompts: list[Prompt], together: bool) -> NDArray[np.bool_]:
        with app.core.device.timed(task.clock):
            ask(session, name, prompts, task.clock, together=together)
        task.quality = session.quality
        return np.array(session.mask.data[0] > 0)

    return _asked(app, task, session, answer)


def _read(path: Path) -> Volume:
    """The first channel of a file or of a folder of slices."""
    volume = read_within_memory(path)
    return volume.with_data(volume.data[:1])


# --- what is asked ---------------------------------------------------------------------------------------------------


def _automatic(app: App, task: Task, volume: Volume) -> NDArray[np.integer[Any]]:
    assert app.trainer is not None  # a model without a name is the trained one
    model = app.trainer.model()
    require_room(volume.data.size * 8, volume.name)
    task.grid = volume.grid
    with app.core.device.timed(task.clock):
        labels = app.core.device.run("decode", model.segment, volume)
    found: NDArray[np.integer[Any]] = labels.data[0]
    there = set(np.unique(found).tolist())
    task.label_names = {name: value for name, value in app.trainer.labels().items() if value in there}
    return found


def _asked(
    app: App, task: Task, session: Session, answer: Callable[[str, list[Prompt], bool], NDArray[np.bool_]]
) -> NDArray[np.integer[Any]]:
    """The labels that the prompts of a call come to."""
    grid, asked, kind = session.volume.grid, task.asked, task.offer.kind
    if kind == "scribbles":
        return _scribbled(task, session, answer)
    if kind == "deepgrow":
        name = str(asked.get("label") or "object")
        values = {name: 1}
        wanted = {name: asking.one_object(asked, grid)}
    else:
        names = [name for name in dict.fromkeys([*app.labels, *_lists(asked)]) if name != BACKGROUND]
        values = {name: value for value, name in enumerate(names, 1)}
        wanted = asking.many_objects(asked, names, grid)
    masks = {name: answer(name, prompts, False) for name, prompts in wanted.items()}
    return _composed(task, masks, values, grid)


def _lists(asked: dict[str, Any]) -> list[str]:
    """Labels that the server has not heard of: whatever else comes with a list of points."""
    known = ("roi", "foreground", "background", "label_info", "points", "point_labels", "label_prompt")
    return [key for key, value in asked.items() if isinstance(value, list) and value and key not in known]


def _composed(task: Task, masks: Masks, values: dict[str, int], grid: Grid) -> NDArray[np.integer[Any]]:
    """A label map; where masks meet, the label that is worked on is seen. Names are of those that are to be seen only:
    Slicer names what it finds one after the other.
    """
    whole = np.zeros(grid.shape, np.uint8 if max(values.values()) < 256 else np.uint16, order="F")
    now = task.asked.get("label")
    for name in sorted(masks, key=lambda name: name == now):
        whole[masks[name]] = values[name]
    on_slice = task.asked.get("slice")
    if isinstance(on_slice, int) and not isinstance(on_slice, bool):
        whole[:, :, [index for index in range(grid.shape[2]) if index != on_slice]] = 0
    there = set(np.unique(whole).tolist())
    task.label_names = {name: value for name, value in values.items() if value in there}
    return whole


def _scribbled(
    task: Task, session: Session, answer: Callable[[str, list[Prompt], bool], NDArray[np.bool_]]
) -> NDArray[np.integer[Any]]:
    """A label, corrected by strokes; outside of the region it stays as it was."""
    if task.drawn is None:
        raise BadInput('this model needs strokes: send them with the label so far as the file "label"')
    grid = session.volume.grid
    drawn = read_drawn(task.drawn, grid, session.volume.name)
    takes_masks = "mask" in session.model.takes
    prompts, so_far = asking.strokes(task.asked, drawn.astype(np.int64), takes_masks, grid)
    name = str(task.asked.get("selected_label_name") or "object")
    mask = answer(name, prompts, True)
    bounds = asking.region(task.asked, grid)
    if bounds is not None:
        window = window_of(bounds)
        so_far[window] = mask[window]
        mask = so_far
    return _composed(task, {name: mask}, {name: 1}, grid)


def _form(asked: dict[str, Any]) -> tuple[str, str]:
    """The ending of the file that is wanted, and its type; empty for the smallest that holds the labels."""
    ending = ending_of(f"label{asked.get('result_extension') or '.nii.gz'}")
    dtype = str(asked.get("result_dtype") or "")
    if ending not in WRITABLE or dtype not in ("", *DTYPES):
        raise BadInput(f"a result is written as {', '.join(WRITABLE)} of {', '.join(DTYPES)}, got {ending} of {dtype}")
    return ending, dtype


# --- what goes -------------------------------------------------------------------------------------------------------


def _sent(app: App, task: Task, values: NDArray[np.integer[Any]], output: Output | None, folder: Path) -> Response:
    assert task.grid is not None
    if output == "dicom_seg":
        return _segments(task, values)
    name = f"volsam-{secrets.token_hex(6)}{task.ending}"
    if output != "json":
        with task.clock("write"):
            write_volume(Volume(values.astype(task.dtype or values.dtype)[None], task.grid, "labels"), folder / name)
    said = {
        "label_names": task.label_names,
        "latencies": latencies(task.clock),
        "quality": task.quality,
        "label": task.asked.get("label"),
    }
    if output == "json":
        return JSONResponse(said)
    content = (folder / name).read_bytes()
    if output == "image":
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type="application/octet-stream", headers=headers)
    return multipart(said, (name, content))


def _segments(task: Task, values: NDArray[np.integer[Any]]) -> Response:
    """The labels as DICOM-SEG, where the image is a DICOM series."""
    source = task.source
    if source is None or not (source.is_dir() or source.suffix.lower() in (".dcm", ".ima")):
        raise Problem(409, "DICOM-SEG refers to the slices of a DICOM series, and this image is none: ask for an image")
    segments = [Segment(name, values == value) for name, value in task.label_names.items()]
    return sent_segments(segments, source, task.offer.model or ADAPTED, f"{source.stem}_seg")


def latencies(clock: Clock) -> dict[str, float]:
    """Seconds in the words of MONAI Label."""
    steps = clock.total()
    words = {
        "pre": ("wait", "open"),
        "infer": ("encode", "decode"),
        "invert": ("paint", "pack"),
        "post": ("save",),
        "write": ("write",),
        "total": ("total",),
    }
    return {word: round(sum(max(0.0, steps.get(step, 0.0)) for step in own), 4) for word, own in words.items()}


def multipart(params: dict[str, Any], file: tuple[str, bytes] | None) -> Response:
    """Two parts: "params", JSON, and "image", a file whose name ends as its format asks for."""
    boundary = secrets.token_hex(16)
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'
        f"{json.dumps(params)}\r\n".encode()
    ]
    if file is not None:
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{file[0]}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        parts += [head.encode(), file[1], b"\r\n"]
    parts.append(f"--{boundary}--\r\n".encode())
    return Response(b"".join(parts), media_type=f"multipart/form-data; boundary={boundary}")

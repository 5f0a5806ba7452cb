"""`/datastore/...`: images and labels of the folder of studies, to look at, to fetch and to save."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import Response
from numpy.typing import NDArray
from starlette.background import BackgroundTask

from volsam.data.files import PIECE
from volsam.data.io import read_grid, read_volume, write_volume
from volsam.data.studies import FINAL
from volsam.errors import BadInput
from volsam.server.api.files import sent_file, sent_volume
from volsam.server.dialects.monai_label.app import App
from volsam.server.dialects.monai_label.asking import read_params
from volsam.server.dialects.monai_label.datastore import Datastore, Image, ending_of
from volsam.server.dialects.monai_label.uploads import keep
from volsam.server.problems import Problem
from volsam.server.volumes import stem
from volsam.volume import Volume

Output = Literal["stats", "all", "train"]
Named = Annotated[str, Query(min_length=1, max_length=4096)]
Field = Annotated[str, Form()]
# What an interface in a browser sends: voxels without a header, the first axis fastest.
BARE = ".bin"


def router(app: App) -> APIRouter:
    """All of it."""
    routes = APIRouter(prefix="/datastore")

    @routes.get("/")
    def look(output: Output = "stats") -> Any:
        if output == "all":
            return app.datastore.everything()
        if output == "train":
            cases = app.datastore.cases()
            return [{"image": image.file, "label": label.file} for image, label in cases]
        return app.datastore.stats()

    # --- images --------------------------------------------------------------------------------------------------

    def add(
        file: Annotated[UploadFile, File()],
        image: Annotated[str | None, Query(max_length=4096)] = None,
        params: Field = "{}",
    ) -> dict[str, str]:
        name = file.filename or "image.nii.gz"
        with tempfile.TemporaryDirectory(prefix="volsam-") as folder:
            path = keep(file, Path(folder))
            identity = image or stem(path.name)
            return {"image": app.datastore.add_image(identity, path, ending_of(name), read_params(params))}

    routes.put("/")(add)
    routes.put("/image")(add)

    def keep_image(id: str) -> None:
        app.datastore.image(id)
        raise Problem(403, "images are not removed over the network: remove the file in the folder of studies")

    routes.delete("/")(keep_image)
    routes.delete("/image")(keep_image)

    @routes.get("/image")
    def image(image: Named) -> Response:
        found = app.datastore.image(image)
        return _sent(app.datastore.path(found), found)

    @routes.head("/image")
    def has_image(image: Named, check_sum: str | None = None) -> Response:
        found = app.datastore.image(image)
        if check_sum and check_sum.rpartition(":")[2].lower() != checksum(app.datastore.path(found)):
            raise Problem(404, "the image has another checksum")
        return Response()

    @routes.get("/image/info")
    def image_info(image: Named) -> dict[str, Any]:
        return app.datastore.image(image).info

    @routes.put("/image/info")
    def update_image_info(image: Named, info: Field = "{}") -> dict[str, Any]:
        return app.datastore.update_image(image, read_params(info, "info"))

    # --- labels --------------------------------------------------------------------------------------------------

    @routes.put("/label")
    def save(
        image: Named, label: Annotated[UploadFile, File()], tag: str = FINAL, params: Field = "{}"
    ) -> dict[str, str]:
        store, info = app.datastore, read_params(params)
        with tempfile.TemporaryDirectory(prefix="volsam-") as folder:
            path = keep(label, Path(folder))
            ending = ending_of(path.name)
            if ending == BARE:
                path, ending = _with_header(path, store, store.image(image)), ".nii.gz"
            if ending == ".seg.nrrd":
                raise BadInput("a .seg.nrrd cannot be saved: choose .nii.gz as the file extension of labels")
            store.save_label(image, tag or FINAL, path, ending, info)
        return {"image": image, "label": image}

    @routes.get("/label")
    def label(label: Named, tag: Named) -> Response:
        file = app.datastore.root / app.datastore.label(label, tag).file
        return sent_file(file, file.name)

    @routes.head("/label")
    def has_label(image: Named, tag: Named) -> Response:
        app.datastore.label(image, tag)
        return Response()

    @routes.delete("/label")
    def remove_label(id: Named, tag: Named) -> dict[str, Any]:
        app.datastore.remove_label(id, tag)
        return {}

    @routes.get("/label/info")
    def label_info(label: Named, tag: Named) -> dict[str, Any]:
        return app.datastore.label(label, tag).info

    def update_label(label: str, tag: str, info: str) -> dict[str, Any]:
        return app.datastore.update_label(label, tag, read_params(info, "info"))

    @routes.put("/label/info")
    def update_label_info(label: Named, tag: Named, info: Field = "{}") -> dict[str, Any]:
        return update_label(label, tag, info)

    @routes.put("/updatelabelinfo")
    def update_label_info_once(label: Named, tag: Named, params: Field = "{}") -> dict[str, Any]:
        return update_label(label, tag, params)

    # --- all at once ---------------------------------------------------------------------------------------------

    @routes.get("/dataset")
    def dataset(limit_cases: Annotated[int | None, Query(ge=1)] = None) -> Response:
        return _archive(app.datastore, limit_cases)

    return routes


def checksum(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; empty for a folder of slices."""
    if not path.is_file():
        return ""
    about = path.stat()
    return _checksum(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=1024)
def _checksum(path: Path, modified: int, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _sent(path: Path, image: Image) -> Response:
    """The file of an image; a folder of slices becomes one file."""
    if path.is_dir():
        return sent_volume(read_volume(path), f"{Path(image.file).name}.nii.gz")
    return sent_file(path, path.name)


def _with_header(path: Path, store: Datastore, image: Image) -> Path:
    """A label of bare voxels as a file on the grid of its image."""
    grid = read_grid(store.path(image))
    count, raw = int(np.prod(grid.shape)), path.read_bytes()
    types: dict[int, Any] = {count: np.uint8, 2 * count: np.dtype("<u2")}
    if len(raw) not in types:
        raise BadInput(f"a label of {len(raw)} bytes does not fit the {count} voxels of the image")
    values: NDArray[Any] = np.frombuffer(raw, types[len(raw)]).reshape(grid.shape, order="F")
    target = path.with_suffix(".nii.gz")
    write_volume(Volume(values[None], grid, "label"), target)
    return target


def _archive(store: Datastore, limit: int | None) -> Response:
    """Labelled images with their labels, and the index, in one zip file."""
    cases = store.cases()[:limit]
    if not cases:
        raise Problem(404, "no image of the datastore has a label with the tag final yet")
    folder = tempfile.TemporaryDirectory(prefix="volsam-")
    path = Path(folder.name) / "dataset.zip"
    try:
        with zipfile.ZipFile(path, "w") as archive:
            for image, label in cases:
                source = store.path(image)
                for file in sorted(source.iterdir()) if source.is_dir() else [source]:
                    inner = Path(image.file) / file.name if source.is_dir() else Path(image.file)
                    archive.write(file, Path("image") / inner)
                archive.write(store.root / label.file, Path("label") / Path(label.file).relative_to("labels"))
            archive.writestr("metadata.json", json.dumps(store.everything(), indent=1))
    except BaseException:
        folder.cleanup()
        raise
    return sent_file(path, "dataset.zip", BackgroundTask(folder.cleanup))

"""`/train` and `/batch/infer`: training on the labels of the datastore, and labelling what has none yet."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Body

from volsam.data.io import write_volume
from volsam.data.studies import FINAL, ORIGINAL
from volsam.errors import BadInput, VolsamError
from volsam.server.dialects.monai_label.app import App
from volsam.server.dialects.monai_label.datastore import Image
from volsam.server.dialects.monai_label.tasks import Kind, Task
from volsam.server.dialects.monai_label.training import RECIPE, Trainer
from volsam.server.problems import Problem
from volsam.server.volumes import Origin, load

Params = Annotated[dict[str, Any] | None, Body()]
Which = Literal["all", "labeled", "unlabeled"]


def router(app: App) -> APIRouter:
    """Both, with their states and ends."""
    routes = APIRouter()

    def status(kind: Kind, everything: bool, check_if_running: bool) -> Any:
        if check_if_running:
            return app.tasks.running(kind).record()
        if everything:
            return [task.record() for task in app.tasks.all(kind)]
        return app.tasks.last(kind).record()

    def stopped(kind: Kind) -> dict[str, Any]:
        task = app.tasks.running(kind)
        task.stop()
        return task.record()

    # --- training ------------------------------------------------------------------------------------------------

    def trainer(name: str) -> Trainer:
        if name != RECIPE:
            raise Problem(404, f"nothing here trains {name[:100]!r}; there is: {RECIPE}")
        if app.trainer is None:
            raise Problem(404, "this server has no datastore to train on: start it with --studies FOLDER")
        return app.trainer

    def train(name: str, asked: dict[str, Any], run_sync: bool) -> dict[str, Any]:
        work = trainer(name).work(asked)
        return app.tasks.start("train", {"model": name, **asked}, work, wait=run_sync).record()

    @routes.get("/train/")
    def train_status(all: bool = False, check_if_running: bool = False) -> Any:
        return status("train", all, check_if_running)

    @routes.post("/train/")
    def train_all(params: Params = None, run_sync: bool = False) -> dict[str, Any]:
        own = (params or {}).get(RECIPE)
        result = train(RECIPE, own if isinstance(own, dict) else {}, run_sync)
        return {RECIPE: {"result": result, "detail": None}}

    @routes.post("/train/{model}")
    def train_one(model: str, params: Params = None, run_sync: bool = False, enqueue: bool = False) -> dict[str, Any]:
        return train(model, params or {}, run_sync)

    @routes.delete("/train/")
    def train_stop() -> dict[str, Any]:
        return stopped("train")

    # --- many images ---------------------------------------------------------------------------------------------

    @routes.get("/batch/infer")
    def batch_status(all: bool = False, check_if_running: bool = False) -> Any:
        return status("batch_infer", all, check_if_running)

    @routes.post("/batch/infer/{model:path}")
    def batch(model: str, images: Which = "all", params: Params = None, run_sync: bool = False) -> dict[str, Any]:
        offer, asked = app.offer(model), params or {}
        if offer.kind != "segmentation":
            raise BadInput(f"{model} needs clicks, so it labels no images by itself: train a model first")
        tag, save = str(asked.get("label_tag") or ORIGINAL), bool(asked.get("save_label", True))
        chosen = [image for image in app.datastore.images().values() if _wanted(image, images)]
        request = {"model": model, "images": images, **asked}

        def work(task: Task) -> None:
            for image in chosen:
                task.say(f"labelling {image.identity}")
                try:
                    label_image(app, image, tag, save)
                except VolsamError as error:  # one bad file must not end the work
                    task.say(f"{image.identity}: {' '.join(str(error).split())}")
                    continue
                task.result[image.identity] = tag if save else None

        return app.tasks.start("batch_infer", request, work, wait=run_sync).record()

    @routes.delete("/batch/infer")
    def batch_stop() -> dict[str, Any]:
        return stopped("batch_infer")

    return routes


def label_image(app: App, image: Image, tag: str, save: bool) -> None:
    """Label an image by the trained model, and keep the label; one that a person made is never replaced."""
    if save and tag == FINAL and FINAL in image.labels:
        raise BadInput("it has a final label, which is not replaced by a model's")
    if app.trainer is None:
        raise Problem(404, "this server has no datastore: start it with --studies FOLDER")
    model = app.trainer.model()
    volume = load(Origin("study", image.file), app.core.settings.studies, Path())
    labels = app.core.device.run("decode", model.segment, volume)
    there = set(np.unique(labels.data).tolist())
    names = {name: value for name, value in app.trainer.labels().items() if value in there}
    if not save:
        return
    with tempfile.TemporaryDirectory(prefix="volsam-") as folder:
        path = Path(folder) / "label.nii.gz"
        write_volume(labels, path)
        info = {"params": {"label_names": names, "model": model.name}, "client_id": "volsam"}
        app.datastore.save_label(image.identity, tag, path, ".nii.gz", info, replace=tag != FINAL)


def _wanted(image: Image, which: Which) -> bool:
    return which == "all" or (FINAL in image.labels) == (which == "labeled")

"""`/info/` and `/model/...`: what the server offers, and the weights behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

import volsam
from volsam.recipes import recipe, store
from volsam.server.api.files import sent_file
from volsam.server.dialects.monai_label.app import App
from volsam.server.dialects.monai_label.labels import checksum
from volsam.server.dialects.monai_label.learning import STRATEGIES
from volsam.server.dialects.monai_label.training import RECIPE, SETTINGS
from volsam.server.problems import Problem
from volsam.training.run import BEST, LAST

NOTHING: dict[str, Any] = {"total": 0, "completed": 0, "label_tags": {}}


def router(app: App) -> APIRouter:
    """Both."""
    routes = APIRouter()

    @routes.get("/info/")
    def info() -> dict[str, Any]:
        trainers = {} if app.trainer is None else {RECIPE: {"description": "volsam-s, adapted", "config": SETTINGS}}
        progress = {} if app.trainer is None else app.trainer.progress()
        return {
            "name": "volsam",
            "description": "volsam: segment volumes by clicks",
            "version": volsam.__version__,
            **app.info(),
            "trainers": trainers,
            "strategies": {} if app.store is None else STRATEGIES,
            "scoring": {},
            "train_stats": {RECIPE: progress} if progress else {},
            "datastore": NOTHING if app.store is None else app.store.stats(),
        }

    @routes.get("/model/info/{model:path}")
    def model_info(model: str) -> dict[str, Any]:
        path = _weights(app, model)
        return {"checksum": f"SHA256:{checksum(path)}", "modified_time": int(path.stat().st_mtime), "name": path.name}

    @routes.get("/model/{model:path}")
    def weights(model: str) -> Response:
        path = _weights(app, model)
        return sent_file(path, f"{model}{path.suffix}")

    def refused(model: str) -> None:
        app.offer(model)
        raise Problem(403, "models are not changed over the network: use `volsam models` on the server")

    routes.put("/model/{model:path}")(refused)
    routes.delete("/model/{model:path}")(refused)
    return routes


def _weights(app: App, name: str) -> Path:
    """The file of a model; 404 if it has none here."""
    model = app.offer(name).model
    found: Path | None = None
    if model is None:
        folder = None if app.trainer is None else app.trainer.newest()
        files = [] if folder is None else [folder / BEST, folder / LAST]
        found = next((file for file in files if file.is_file()), None)
    elif model in recipe.recipes:
        found = recipe.recipes[model].weights
    elif store.is_stored(model):
        found = store.stored(model).weights
    elif Path(model).is_file():
        found = Path(model)
    if found is None or not found.is_file():
        raise Problem(404, f"the weights of {name} are not in one file here")
    return found

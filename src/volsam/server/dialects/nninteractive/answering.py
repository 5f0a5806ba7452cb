"""What clients of nnInteractive get: what has changed, packed, and what it is in a header."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi.responses import Response

from volsam.inference.objects import Changed, around
from volsam.prompts import Prompt
from volsam.server.conversation import Conversation, Outcome
from volsam.server.dialects.nninteractive import nnia
from volsam.server.dialects.nninteractive.asking import META


@dataclass
class Desk:
    """What the protocol keeps for a lease: the client's buffer, and prompts that wait for a prediction.

    shown: the box of a starting mask that the client has painted by itself.
    """

    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint8))
    waiting: list[Prompt] = field(default_factory=list)
    shown: Changed | None = None
    autozoom: bool = True


def nothing() -> Response:
    """No prediction was made."""
    return _response({"ran_prediction": False, "bbox": None, "dtype": None, "shape": None}, b"")


def unseen() -> Response:
    """A prediction was made, and nothing that is shown has changed."""
    return _response({"ran_prediction": True, "bbox": None, "dtype": None, "shape": None}, b"")


def prediction(talk: Conversation, mine: Desk, outcome: Outcome) -> Response:
    """The voxels of the object in the box in which they changed, or in which the client has painted by itself."""
    boxes = [change.box for change in outcome.changes if change.number == outcome.number]
    boxes += [] if mine.shown is None else [mine.shown]
    mine.shown = None
    box = around(boxes)
    if box is None:
        return unseen()
    values = talk.mask(outcome.number, box).astype(mine.dtype)
    meta = {
        "ran_prediction": True,
        "bbox": [list(pair) for pair in zip(*box, strict=True)],
        "dtype": values.dtype.name,
        "shape": list(values.shape),
    }
    return _response(meta, nnia.pack(values))


def _response(meta: dict[str, Any], body: bytes) -> Response:
    return Response(body, media_type="application/octet-stream", headers={META: json.dumps(meta)})

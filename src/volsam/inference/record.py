"""Saved sessions, as data: reading them, and whether one belongs to a volume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from volsam.errors import BadFile, BadInput
from volsam.volume import Volume

FORMAT = "volsam-session"
VERSION = 1


def read_record(path: Path) -> dict[str, Any]:
    """What a file holds, if it is a saved session that this version can read."""
    try:
        record = json.loads(path.read_text())
    except OSError as reason:
        raise BadFile(f"cannot read the session {path}: {reason.strerror}") from None
    except ValueError:
        raise BadFile(f"{path} is not a saved session: it is not JSON") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise BadFile(f"{path} is not a session saved by volsam")
    version = record.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise BadFile(f"{path} was saved by a newer version of volsam: update volsam to open it")
    return record


def require_same_grid(saved: Mapping[str, Any], volume: Volume, name: str) -> None:
    """Refuse a volume on another lattice than the saved one; `name` is what the message calls the session."""
    grid = volume.grid
    if saved["shape"] != list(grid.shape) or not np.allclose(saved["affine"], grid.affine, atol=1e-4):
        raise BadInput(
            f"{name} belongs to {saved['name']} with {saved['shape']} voxels, not to {volume.name} with "
            f"{list(grid.shape)}: open that volume, or one on the same grid"
        )

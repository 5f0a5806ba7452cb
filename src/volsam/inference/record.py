"""Saved sessions, as data: reading them, and whether one belongs to a volume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from volsam.errors import BadFile, BadInput
from volsam.volume import Volume

FORMAT = "volsam-session"
VERSION = 1
# Voxels looked at to tell one scan from another.
SAMPLED = 1 << 18


def read_record(path: Path) -> dict[str, Any]:
    """What a file holds, if it is a saved session that this version can read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
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


def fingerprint(volume: Volume) -> str:
    """A word for the voxels of a volume: that of some of them, evenly spread, in single precision."""
    data = volume.data[0]
    step = max(1, int(np.ceil((data.size / SAMPLED) ** (1 / 3))))
    some = np.ascontiguousarray(data[::step, ::step, ::step], dtype="<f4")
    return blake2b(some.tobytes(), digest_size=16).hexdigest()


def require_same(saved: Mapping[str, Any], volume: Volume, name: str) -> None:
    """Refuse a volume on another lattice than the saved one, or with other voxels.

    name: what the message calls the session. Records of before have no fingerprint; of them the lattice must do.
    """
    grid = volume.grid
    if saved["shape"] != list(grid.shape) or not np.allclose(saved["affine"], grid.affine, atol=1e-4):
        raise BadInput(
            f"{name} belongs to {saved['name']} with {saved['shape']} voxels, not to {volume.name} with "
            f"{list(grid.shape)}: open that volume, or one on the same grid"
        )
    if saved.get("voxels") not in (None, fingerprint(volume)):
        raise BadInput(
            f"{name} was made on another scan of the same size and place than {volume.name} is now: its voxels differ; "
            "open the one that it was made on, or begin anew"
        )

"""A conversation about one volume on a server: the verbs of `volsam.Session`, masks kept here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volsam_client import wire
from volsam_client.errors import LeaseEnded, ServerError, Unreachable
from volsam_client.prompts import Prompt
from volsam_client.wire import Box

if TYPE_CHECKING:
    from volsam_client.server import Server

Point = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Doubt:
    """How sure the model is. bands: 0 to 9, (i, j, k), in the box `low` to `high`; next_click: mm RAS+, or None."""

    bands: NDArray[np.uint8]
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    quality: float | None
    spread: float
    next_click: Point | None


class Session:
    """Prompts and masks of any number of named objects.

    `add`, `undo`, `redo`, `remove` and `reset` act on the current object and return the box of voxels, lowest corner to
    highest (excluded), in which its mask changed, or None. If the place on the server has ended meanwhile, a new one is
    claimed, and the session goes on where it was. A `Server` has one session open: of several, each is resumed when it
    is used again, which answers its prompts anew; for two at once take two of them.
    """

    def __init__(self, server: Server, state: Mapping[str, Any]) -> None:
        self.server = server
        self.id = str(state["id"])
        self.seconds: dict[str, float] = {}
        """Where the time of the last action went, on the server."""
        self.added: list[int] = []
        """Numbers of the prompts that the last action added."""
        self._masks: dict[int, NDArray[np.uint8]] = {}
        # An answer was lost: what it would have told is asked for before the next action.
        self._unsure = False
        self._closed = False
        self._take(state)
        if any(item["voxels"] for item in state["objects"]):
            self._fetch()

    # --- the volume ----------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        i, j, k = self._state["shape"]
        return i, j, k

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to mm RAS+."""
        return np.array(self._state["affine"], dtype=np.float64)

    @property
    def plane(self) -> str | None:
        """The slices that a model of slices looks at: axial, coronal or sagittal; None for a model of volumes."""
        plane = self._state["plane"]
        return None if plane is None else str(plane)

    def to_world(self, voxels: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices (…, 3) to mm RAS+."""
        return np.asarray(voxels, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_voxels(self, points: ArrayLike) -> NDArray[np.float64]:
        """Millimetres RAS+ (…, 3) to voxel indices."""
        return (np.asarray(points, dtype=np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    # --- objects -------------------------------------------------------------------------------------------------

    @property
    def objects(self) -> list[str]:
        """Names, in the order of their making."""
        return [item["name"] for item in self._state["objects"]]

    @property
    def current(self) -> str:
        """The object that is worked on."""
        return str(self._item()["name"])

    def select(self, name: str) -> None:
        """Make `name` the current object; a new name starts a new object."""
        if name in self.objects:
            self._ask("PATCH", f"/session/objects/{self._number(name)}", json={"select": True})
        else:
            self._ask("POST", "/session/objects", json={"name": name})
        self._look()

    def rename(self, name: str, new: str) -> None:
        """Call an object something else."""
        self._alter(name, {"name": new})

    def alter(self, name: str, **values: Any) -> None:
        """Set colour, locked or visible of an object."""
        self._alter(name, values)

    def _alter(self, name: str, values: dict[str, Any]) -> None:
        self._ask("PATCH", f"/session/objects/{self._number(name)}", json=values)
        self._look()

    def delete(self, name: str) -> None:
        """Forget an object and its prompts."""
        number = self._number(name)
        self._paint(self._ask("DELETE", f"/session/objects/{number}"))
        self._masks.pop(number, None)
        self._look()

    def set(self, *, policy: str | None = None, neighbours: bool | None = None) -> None:
        """What happens where objects meet: policy is overlap, keep or overwrite."""
        body = {key: value for key, value in (("policy", policy), ("neighbours", neighbours)) if value is not None}
        answer = self._ask("PATCH", "/session", json=body)
        self._paint(answer)
        self._take(answer)

    # --- prompts -------------------------------------------------------------------------------------------------

    def add(self, prompt: Prompt) -> Box | None:
        """Append a prompt to the current object and update its mask."""
        return self.add_all([prompt])

    def add_all(self, prompts: Iterable[Prompt]) -> Box | None:
        """Append several prompts and answer them together, once."""
        records = [prompt.record() for prompt in prompts]
        return self._act("POST", "/session/prompts", json={"prompts": records, "object": self._state["current"]})

    def undo(self) -> Box | None:
        """Take the last step back. Unlimited."""
        return self._act("POST", "/session/undo", json={"object": self._state["current"]})

    def redo(self) -> Box | None:
        """Take a step that was taken back."""
        return self._act("POST", "/session/redo", json={"object": self._state["current"]})

    def remove(self, number: int) -> Box | None:
        """Take away any one prompt by its number, see `prompts`."""
        return self._act("DELETE", f"/session/prompts/{number}", params={"object": self._state["current"]})

    def reset(self) -> Box | None:
        """Take away all prompts of the current object; can be undone."""
        return self._act("POST", "/session/reset", json={"object": self._state["current"]})

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """Standing prompts of the current object, oldest first, each with its number as "id"."""
        return list(self._ask("GET", "/session/prompts", params={"object": self._state["current"]})["prompts"])

    @property
    def can_undo(self) -> bool:
        """Whether `undo` would do something."""
        return bool(self._item()["can_undo"])

    @property
    def can_redo(self) -> bool:
        """Whether `redo` would do something."""
        return bool(self._item()["can_redo"])

    # --- what one sees -------------------------------------------------------------------------------------------

    @property
    def mask(self) -> NDArray[np.uint8]:
        """The current object on the volume's own grid, 0 and 1; it goes on changing with the session."""
        return self.mask_of(self.current)

    def mask_of(self, name: str) -> NDArray[np.uint8]:
        """The mask of any object."""
        return self._canvas(self._number(name))

    @property
    def quality(self) -> float | None:
        """Expected Dice of the current mask, 0 to 1; None without a mask."""
        quality = self._item()["quality"]
        return None if quality is None else float(quality)

    def uncertainty(self) -> Doubt:
        """How sure the model is of the current mask, and where a click would help most."""
        found = self._ask("GET", f"/session/objects/{self._state['current']}/uncertainty")
        low, high = wire.box_of(found["bands"])
        place = found["next_click"]
        click = None if place is None else (place["position"][0], place["position"][1], place["position"][2])
        return Doubt(wire.decoded(found["bands"]), low, high, found["quality"], found["spread"], click)

    def spread(self) -> NDArray[np.float32]:
        """How much the probability of each voxel depends on where was clicked: its standard deviation, (i, j, k)."""
        path = f"/session/objects/{self._state['current']}/uncertainty.nii.gz"
        return wire.nifti_values(self._request("GET", path, params={"what": "spread"}).content, self.shape)

    def next_click(self) -> Point | None:
        """Where a click would tell the model most, mm RAS+."""
        return self.uncertainty().next_click

    def measurements(self) -> dict[str, Any]:
        """Volume, diameters and intensities of the current object."""
        return dict(self._ask("GET", f"/session/objects/{self._state['current']}/measurements"))

    # --- saving --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write all prompts of all objects as JSON, which `volsam.Session.load` reads."""
        self._download("/session/log.json", Path(path))

    def write(self, path: str | Path) -> None:
        """Write the mask of the current object: .nii.gz, .nii, .nrrd or .mha."""
        self._download(f"/session/objects/{self._state['current']}/mask.{_ending(path)}", Path(path))

    def write_labels(self, path: str | Path) -> None:
        """Write all objects as one label map."""
        self._download(f"/session/labels.{_ending(path)}", Path(path))

    def save_labels(self, tag: str = "final", file_format: str = "nii.gz") -> str:
        """Have the server save the labels beside the study; returns where."""
        return str(self._ask("POST", "/session/save", json={"tag": tag, "format": file_format})["path"])

    def use(self, model: str) -> None:
        """Answer all prompts again with another model."""
        self._paint(self._ask("PUT", "/session/model", json={"model": model}))
        self._look()

    def close(self) -> None:
        """Close the volume; the session stays saved on the server under its `id`."""
        if self.server.opened == self.id:  # another one that was opened has closed it already
            self._ask("DELETE", "/session")
            self.server.opened = None
        self._closed = True

    # --- inside --------------------------------------------------------------------------------------------------

    def _act(self, method: str, path: str, **options: Any) -> Box | None:
        answer = self._ask(method, path, **options)
        self._paint(answer)
        self.seconds = answer["seconds"]
        self.added = answer["added"]
        own = [change for change in answer["changes"] if change["object"] == answer["object"]]
        if {change["object"] for change in answer["changes"]} - {answer["object"]}:
            self._look()
        item = self._item()
        item.update({key: answer[key] for key in ("quality", "can_undo", "can_redo", "prompts", "voxels", "changed")})
        return wire.box_of(own[0]) if own else None

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        return self._request(method, path, **options).json()

    def _request(self, method: str, path: str, **options: Any) -> Any:
        """A request; if the place has ended, or another session was opened in it, this one is resumed first."""
        if self._closed:
            raise ServerError("the session is closed: resume it by its id")
        try:
            return self._sent(method, path, **options)
        except LeaseEnded:  # nothing was done
            self.server.lost()
            self.server.claim()
            self.server.opened = None
            return self._sent(method, path, **options)

    def _sent(self, method: str, path: str, **options: Any) -> Any:
        try:
            if self.server.opened != self.id:
                self._resume()
            if self._unsure:
                self._unsure = False
                self._fetch()
            return self.server.request(method, path, **options)
        except Unreachable:
            self._unsure = True
            raise

    def _resume(self) -> None:
        self.server.opened = None
        self._take(self.server.json("POST", "/session", json={"resume": self.id, "take": True}))
        self.server.opened = self.id
        self._unsure = True  # of the masks: somebody else may have worked on it meanwhile

    def _download(self, path: str, target: Path) -> None:
        content = self._request("GET", path).content
        unfinished = target.with_name(f".{target.name}.part")
        try:
            unfinished.write_bytes(content)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)

    def _take(self, state: Mapping[str, Any]) -> None:
        self._state = {key: value for key, value in state.items() if key not in ("seconds", "changes")}

    def _look(self) -> None:
        self._take(self._ask("GET", "/session"))

    def _fetch(self) -> None:
        state = self._ask("GET", "/session", params={"masks": "true"})
        self._masks.clear()
        for item in state["objects"]:
            part = item.pop("mask")
            if part is not None:
                self._canvas(item["id"])[wire.window_of(part)] = wire.decoded(part)
        self._take(state)

    def _paint(self, answer: Mapping[str, Any]) -> None:
        for change in answer["changes"]:
            self._canvas(change["object"])[wire.window_of(change)] = wire.decoded(change)

    def _canvas(self, number: int) -> NDArray[np.uint8]:
        if number not in self._masks:
            self._masks[number] = np.zeros(self.shape, np.uint8, order="F")
        return self._masks[number]

    def _item(self) -> dict[str, Any]:
        return next(item for item in self._state["objects"] if item["id"] == self._state["current"])

    def _number(self, name: str) -> int:
        for item in self._state["objects"]:
            if item["name"] == name:
                return int(item["id"])
        raise KeyError(f"no object is called {name!r}; there are: {', '.join(self.objects)}")


def _ending(path: str | Path) -> str:
    name = Path(path).name.lower()
    return "nii.gz" if name.endswith(".nii.gz") else name.rpartition(".")[2]

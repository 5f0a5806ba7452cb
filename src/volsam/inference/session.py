"""A conversation about one volume: prompts in, masks out, nothing ever lost."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from volsam.data.files import replacing
from volsam.errors import BadFile, BadInput, NotSupported
from volsam.geometry import resample
from volsam.inference.log import Active, PromptLog
from volsam.inference.model import InteractiveModel, require_taken
from volsam.inference.objects import Changed, ObjectState
from volsam.inference.painting import OUTSIDE, Answer, paint
from volsam.inference.predictor import Predictor
from volsam.inference.record import FORMAT, VERSION, fingerprint, read_record, require_same
from volsam.inference.slice_predictor import SlicePredictor
from volsam.inference.slices import SliceModel
from volsam.inference.uncertainty import Uncertainty, ensemble
from volsam.prompts import Click, MaskHint, Point, Prompt, PromptSet, positions, require_inside
from volsam.volume import Volume

# Answers kept of the object at work and of the others; one takes up to a megabyte. Older ones are made again when undo
# comes to them.
KEPT_ANSWERS, KEPT_ELSEWHERE = 48, 4
# Clicks in other objects that count as outside; those far away say nothing.
MOST_NEIGHBOURS = 8
Model = InteractiveModel | SliceModel
"""What a session can talk to: a model of volumes, or of slices."""


class Session:
    """Prompts and masks of any number of named objects in one volume.

    `add`, `undo`, `redo`, `remove` and `reset` act on the current object (`current`, set by `select`) and return the
    box of voxels, lowest corner to highest (excluded), in which its mask changed, or None. They raise `PromptOutside`
    for a prompt outside of the volume and `BadInput` for one that the model does not take; whatever they raise, the
    session stays as it was.

    neighbours: what was clicked in other objects counts as outside the one that is worked on, if the model takes
    negative clicks. The clicks meant are kept in the log, so that a replay gives the same masks.

    plane and follow are for models that see slices, see `inference.slice_predictor`: the plane they look at, and
    whether an object is followed from the slices that carry prompts to the others.
    """

    def __init__(
        self,
        model: Model,
        volume: Volume,
        *,
        object_name: str = "object",
        plane: str = "auto",
        follow: bool = True,
        neighbours: bool = False,
    ) -> None:
        self.neighbours = neighbours
        self.model = model
        self.volume = volume
        self._plane = plane
        self._follow = follow
        self.predictor = (
            SlicePredictor(model, volume, plane, follow) if isinstance(model, SliceModel) else Predictor(model, volume)
        )
        self._objects: dict[str, ObjectState] = {}
        self.current = object_name
        self.select(object_name)

    @property
    def builds_on_answers(self) -> bool:
        """Whether an answer is made from the one before, so that prompts are best given one after the other."""
        return isinstance(self.predictor, Predictor) and "mask" in self.model.takes

    # --- objects -------------------------------------------------------------------------------------------------

    @property
    def objects(self) -> list[str]:
        """Names, in the order of their making."""
        return list(self._objects)

    def select(self, name: str) -> None:
        """Make `name` the current object; a new name starts a new object."""
        if not name.strip():
            raise BadInput("an object needs a name, got an empty one")
        if name not in self._objects:
            self._objects[name] = ObjectState(self.volume.grid)
        self.current = name

    def rename(self, name: str, new: str) -> None:
        """Call an object something else; its place among the objects stays."""
        self._require_object(name)
        if not new.strip():
            raise BadInput("an object needs a name, got an empty one")
        if new != name and new in self._objects:
            raise BadInput(f"an object is called {new!r} already: give another name")
        self._objects = {new if known == name else known: item for known, item in self._objects.items()}
        self.current = new if self.current == name else self.current

    def delete(self, name: str) -> None:
        """Forget an object and its prompts."""
        self._require_object(name)
        del self._objects[name]
        if not self._objects:
            self._objects[name] = ObjectState(self.volume.grid)
        if self.current not in self._objects:
            self.current = self.objects[-1]

    # --- prompts -------------------------------------------------------------------------------------------------

    def require(self, prompt: Prompt) -> None:
        """Refuse a prompt outside of the volume, or one that the model does not take."""
        require_inside(prompt, self.volume.grid, self.volume.name)
        require_taken(prompt, self.volume.grid, self.model.name, self.model.takes)

    def add(self, prompt: Prompt) -> Changed | None:
        """Append a prompt to the current object and update its mask."""
        return self.add_all(PromptSet([prompt]))

    def add_all(self, prompts: PromptSet) -> Changed | None:
        """Append several prompts and answer them together, once; masks among them first, since they begin anew."""
        prompts = PromptSet(sorted(prompts, key=lambda prompt: not isinstance(prompt, MaskHint)))
        for prompt in prompts:
            self.require(prompt)
        beside = self._beside(prompts)

        def add(log: PromptLog) -> None:
            first = None
            for prompt in prompts:
                number = log.add(prompt, together_with=first, beside=beside)
                first = number if first is None else first

        return self._answered(add)

    def undo(self) -> Changed | None:
        """Take the last step back; does nothing where there is none. Unlimited."""
        return self._answered(PromptLog.undo) if self.can_undo else None

    def redo(self) -> Changed | None:
        """Take the step forward again that was taken back last; does nothing where there is none."""
        return self._answered(PromptLog.redo) if self.can_redo else None

    def remove(self, number: int) -> Changed | None:
        """Take away any one prompt by its number, see `prompts`."""
        return self._answered(lambda log: log.remove(number))

    def reset(self) -> Changed | None:
        """Take away all prompts of the current object; can be undone."""
        return self._answered(PromptLog.reset)

    @property
    def prompts(self) -> Active:
        """Standing prompts of the current object with their numbers, oldest first."""
        return self._now.log.active

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Everything that was ever done to the current object, oldest first, see `inference.log`."""
        return list(self._now.log.entries)

    @property
    def can_undo(self) -> bool:
        """Whether `undo` would do something."""
        return self._now.log.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether `redo` would do something."""
        return self._now.log.can_redo

    # --- what one sees -------------------------------------------------------------------------------------------

    @property
    def mask(self) -> Volume:
        """The current object on the volume's own grid, uint8, 0 and 1."""
        return self.mask_of(self.current)

    def mask_of(self, name: str) -> Volume:
        """The mask of any object. It stays as it is when the session goes on; to change it, copy it."""
        self._require_object(name)
        mask = self._objects[name].canvas[None]
        mask.flags.writeable = False
        return self.volume.with_data(mask, name)

    def bounds_of(self, name: str) -> Changed | None:
        """A box of voxels outside of which an object has none; None where it has no mask."""
        self._require_object(name)
        patch = self._objects[name].patch
        return (patch.low, patch.high) if patch.mask.size else None

    @property
    def quality(self) -> float | None:
        """Expected Dice of the current mask, 0 to 1; None without a mask, and of a mask that was given."""
        answer = self._answer
        return None if answer is None else answer.quality

    @property
    def probability(self) -> Volume:
        """Probability of the current object on the volume's grid, float32; 0 outside the region looked at.

        Of a mask that was given it is 0 and 1, also after corrections.
        """
        from scipy.special import expit  # takes long to load, and most sessions ask for masks only

        answer = self._answer
        if answer is not None and answer.ready is not None:
            return self.volume.with_data(self.mask.data.astype(np.float32), f"{self.current}_probability")
        values = np.zeros(self.volume.grid.shape, np.float32)
        low, high = ((0, 0, 0), (0, 0, 0)) if answer is None else self.volume.grid.overlap(answer.roi)
        if answer is not None and all(b > a for a, b in zip(low, high, strict=True)):
            window = self.volume.grid.crop(low, high)
            logits = resample(answer.decoded.low_res, answer.low_res_grid, window, fill=OUTSIDE)
            place = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            values[place] = expit(np.asarray(logits, dtype=np.float32))
        return self.volume.with_data(values[None], f"{self.current}_probability")

    def uncertainty(self, size: int = 24, seed: int = 0) -> Uncertainty:
        """How much the current mask depends on where was clicked: see `inference.uncertainty`.

        Of a mask that was given it tells where the model, clicked at in that mask, would answer otherwise.
        """
        answer = self._answer
        if answer is None:
            raise BadInput(f"{self.current} has no mask yet: add a click, box or scribble first")
        if not isinstance(self.predictor, Predictor):
            raise NotSupported(
                f"{self.model.name} sees one slice at a time, uncertainty needs a 3D model: choose another with --model"
            )
        encoded = self.predictor.encoded(answer.roi)
        _, asked = self._asked(self._now.log.active).ready()
        return ensemble(self.predictor.model, encoded, answer, asked, size=size, seed=seed)

    def next_click(self) -> Point | None:
        """Where a click would tell the model most, mm RAS+: the middle of the least certain region, in the volume."""
        return self.uncertainty().least_certain(self.volume.grid)

    # --- saving --------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """All prompts of all objects, with every undone step, as plain data; masks follow from them."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model.name,
            "volume": {
                "name": self.volume.name,
                "shape": list(self.volume.grid.shape),
                "affine": self.volume.grid.affine.tolist(),
                "voxels": self._voxels,
            },
            "plane": self._plane,
            "follow": self._follow,
            "neighbours": self.neighbours,
            "current": self.current,
            "objects": [{"name": name, "log": item.log.entries} for name, item in self._objects.items()],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `record` as JSON; the file appears whole or not at all, or BadInput says why it cannot."""
        with replacing(Path(path)) as unfinished:
            unfinished.write_text(json.dumps(self.record()), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model, volume: Volume) -> Session:
        """Go on with a saved session: the same volume, the same model or another one."""
        return cls.from_record(read_record(Path(path)), model, volume, str(path))

    @classmethod
    def from_record(cls, record: Mapping[str, Any], model: Model, volume: Volume, name: str = "the record") -> Session:
        """The session that `record` describes; `name` is what messages call it."""
        try:
            require_same(record["volume"], volume, name)
            logs = {str(item["name"]): PromptLog.replay(item["log"], volume.grid) for item in record["objects"]}
            current = str(record["current"])
            ways = {key: record[key] for key in ("plane", "follow", "neighbours") if key in record}
            session = cls(model, volume, object_name=next(iter(logs)), **ways)
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration, zlib.error):
            raise BadFile(f"{name} is damaged: what is in it does not make a session; open an older copy") from None
        for log in logs.values():  # before any is answered, which takes time
            for _, prompt in log.active:
                session.require(prompt)
        for called, log in logs.items():
            session.select(called)
            session._now.log = log
            session._update()
        session.select(current)
        return session

    # --- inside --------------------------------------------------------------------------------------------------

    def _require_object(self, name: str) -> None:
        if name not in self._objects:
            raise BadInput(f"no object is called {name!r}; there are: {', '.join(self._objects)}")

    @cached_property
    def _voxels(self) -> str:
        return fingerprint(self.volume)

    @property
    def _now(self) -> ObjectState:
        return self._objects[self.current]

    @property
    def _standing(self) -> PromptSet:
        return PromptSet(prompt for _, prompt in self._now.log.active)

    def _beside(self, prompts: PromptSet) -> tuple[Point, ...]:
        """What was clicked in other objects, nearest to the new prompts first."""
        places = [place for prompt in prompts for place in positions(prompt)]
        if not (self.neighbours and self.builds_on_answers and "negative click" in self.model.takes and places):
            return ()
        grid, middle = self.volume.grid, np.mean(places, axis=0)
        own = PromptSet([*self._standing, *prompts]).points(positive=True)
        taken = {tuple(voxel) for voxel in np.round(grid.to_voxels(own)).astype(int)}
        found = [
            (float(np.linalg.norm(np.subtract(click.position, middle))), click.position)
            for name, item in self._objects.items()
            if name != self.current
            for _, click in item.log.active
            if isinstance(click, Click) and click.positive
            if tuple(np.round(grid.to_voxels(click.position)).astype(int)) not in taken
        ]
        return tuple(place for _, place in sorted(found)[:MOST_NEIGHBOURS])

    def _asked(self, active: Active) -> PromptSet:
        """What the model is shown: before the prompts, negative clicks in other objects as they stood at the last."""
        beside = self._now.log.beside(active[-1][0]) if active else ()
        prompts = [prompt for _, prompt in active]
        masks = [place for place, prompt in enumerate(prompts, start=1) if isinstance(prompt, MaskHint)]
        after = max(masks, default=0)  # what came before a mask does not count
        return PromptSet([*prompts[:after], *(Click(place, positive=False) for place in beside), *prompts[after:]])

    @property
    def _answer(self) -> Answer | None:
        return self._now.answers.get(_key(self._now.log.active))

    def _answered(self, act: Callable[[PromptLog], object]) -> Changed | None:
        """Act on the log of the current object and answer it; where no answer comes, leave it as it was."""
        item, before = self._now, self._now.log
        item.log = before.copy()
        try:
            act(item.log)
            return self._update()
        except BaseException:
            item.log = before
            raise

    def _update(self) -> Changed | None:
        """Answer the standing prompts, turn by turn, and paint the answer; turns answered before are looked up.

        An answer follows from the standing prompts and their turns alone, so it does not matter how they came to stand.
        """
        item = self._now
        active, turns = item.log.active, item.log.turns
        done = max((end for end in turns if _key(active[:end]) in item.answers), default=0)
        answer = item.known(_key(active[:done]))
        for end in (end for end in turns if end > done):
            if any(isinstance(prompt, MaskHint) for _, prompt in active[done:end]):
                answer = None  # it starts anew
            answer = self.predictor(self._asked(active[:end]), answer)
            item.answers[_key(active[:end])] = answer
            done = end
        for other in self._objects.values():
            other.keep(KEPT_ANSWERS if other is item else KEPT_ELSEWHERE)
        return item.show(paint(answer, self._standing, self.volume.grid))


def _key(active: Active) -> tuple[int, ...]:
    return tuple(number for number, _ in active)

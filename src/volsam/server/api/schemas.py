"""What clients send, as JSON; unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.prompts import MaskHint, Prompt, from_record
from volsam.server import wire
from volsam.server.ownership import Policy
from volsam.server.strokes import lasso
from volsam.server.volumes import TAG

Space = Literal["ras", "lps", "voxel"]
FARTHEST = 1e6
Number = Annotated[float, Field(ge=-FARTHEST, le=FARTHEST, allow_inf_nan=False)]
Position = Annotated[list[Number], Field(min_length=3, max_length=3, description="x, y, z in mm, or i, j, k")]
Voxel = Annotated[list[Annotated[int, Field(ge=0, le=1 << 20)]], Field(min_length=3, max_length=3)]
Tag = Annotated[str, Field(pattern=f"^{TAG.pattern}$")]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]
ObjectNumber = Annotated[int, Field(ge=1, le=1 << 31)]
MOST_POINTS = 10_000
MOST_PROMPTS = 1000


class Strict(BaseModel):
    """Refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Opening(Strict):
    """A volume to open by name, or a session to go on with."""

    study: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    resume: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    take: bool = False
    frame: Annotated[int, Field(ge=0)] | None = None
    channel: Annotated[int, Field(ge=0)] = 0
    model: str | None = None
    object: Name = "object"
    annotator: Name | None = None
    labels: Tag | None = None


class ArrayHead(Strict):
    """The header X-Meta of an uploaded array."""

    shape: Annotated[list[Annotated[int, Field(ge=1, le=1 << 20)]], Field(min_length=3, max_length=4)]
    dtype: str
    affine: Annotated[list[list[float]], Field(min_length=4, max_length=4)]
    order: Literal["F", "C"] = "F"
    compression: Literal["none", "deflate", "gzip"] = "none"
    name: Name = "volume"
    channel: Annotated[int, Field(ge=0)] = 0
    model: str | None = None
    object: Name = "object"
    annotator: Name | None = None


class Altering(Strict):
    """What holds for all objects of a session."""

    policy: Policy | None = None
    neighbours: bool | None = None
    annotator: Name | None = None


class OtherModel(Strict):
    """The model to replay with."""

    model: str


class NewObject(Strict):
    """An object to make."""

    name: Name | None = None
    colour: Colour | None = None
    select: bool = True


class AlteredObject(Strict):
    """What to change of an object."""

    name: Name | None = None
    colour: Colour | None = None
    locked: bool | None = None
    visible: bool | None = None
    select: bool = False


class About(Strict):
    """The object an action is for; the current one if left out."""

    object: ObjectNumber | None = None


class PointPrompt(Strict):
    """A click."""

    type: Literal["point"]
    position: Position
    positive: bool = True


class BoxPrompt(Strict):
    """Two opposite corners."""

    type: Literal["box"]
    low: Position
    high: Position


class ScribblePrompt(Strict):
    """A stroke."""

    type: Literal["scribble"]
    points: Annotated[list[Position], Field(min_length=1, max_length=MOST_POINTS)]
    positive: bool = True


class LassoPrompt(Strict):
    """A closed contour on a slice."""

    type: Literal["lasso"]
    points: Annotated[list[Position], Field(min_length=3, max_length=MOST_POINTS)]
    positive: bool = True


class MaskPrompt(Strict):
    """A mask to start from, in voxels of the volume."""

    type: Literal["mask"]
    low: Voxel
    high: Voxel
    encoding: Literal["bits+deflate"] = "bits+deflate"
    data: str


AnyPrompt = Annotated[PointPrompt | BoxPrompt | ScribblePrompt | LassoPrompt | MaskPrompt, Field(discriminator="type")]


class Prompts(Strict):
    """One prompt, or several to be answered together."""

    object: ObjectNumber | None = None
    space: Space = "ras"
    prompt: AnyPrompt | None = None
    prompts: Annotated[list[AnyPrompt], Field(min_length=1, max_length=MOST_PROMPTS)] | None = None

    def on(self, grid: Grid) -> list[Prompt]:
        """As the session takes them, mm RAS+."""
        sent = [*(self.prompts or []), *([] if self.prompt is None else [self.prompt])]
        if (self.prompt is None) == (self.prompts is None):
            raise BadInput('give either "prompt" or "prompts"')
        return [as_prompt(one, grid, self.space) for one in sent]


class Saving(Strict):
    """Labels to write beside the studies."""

    tag: Tag = "final"
    format: Literal["nii.gz", "nii", "nrrd", "mha", "dicom_seg"] = "nii.gz"
    objects: Annotated[list[ObjectNumber], Field(min_length=1, max_length=1000)] | None = None
    replace: bool = True


def as_prompt(sent: Any, grid: Grid, space: Space) -> Prompt:
    """A prompt as the session takes it."""
    if isinstance(sent, MaskPrompt):
        box, mask = wire.unpacked(sent.model_dump(), grid.shape)
        return MaskHint(mask, grid.crop(*box))
    if isinstance(sent, LassoPrompt):
        stroke = from_record({**sent.model_dump(), "type": "scribble"}, grid, space)
        return lasso(getattr(stroke, "points"), sent.positive, grid)  # noqa: B009  a scribble, as asked
    return from_record(sent.model_dump(), grid, space)

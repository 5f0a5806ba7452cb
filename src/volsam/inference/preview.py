"""A picture of a mask: three planes through a click, as radiologists hang them, drawn with Pillow alone.

Left on the picture is the patient's right; up is the front, or the head; all planes have one scale. Planes are read
with `resample` at the size at which they are shown, so a large volume costs no more than a small one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from volsam.geometry import Grid, resample
from volsam.prompts import Box, Click, Point, PromptSet, Scribble
from volsam.volume import Volume

Plane = tuple[str, int, int, int]
Corner = NDArray[np.float64]
Colour = tuple[int, int, int]
Layer = tuple[Image.Image, Colour, float]

# Name, and the axes of an LPI frame that run to the right, downwards, and through the plane.
PLANES: tuple[Plane, ...] = (("axial", 0, 1, 2), ("coronal", 0, 2, 1), ("sagittal", 1, 2, 0))
FRAME = "LPI"
OPPOSITE = {"L": "R", "P": "A", "I": "S"}

# The view spans the object so many times, but no fewer voxels than this.
ROOM = 2.5
LEAST_VOXELS = 112
# Pixels: what the three planes may take together, and what lies around them.
WIDTH, HEIGHT = 1440, 620
MARGIN, TITLE, CAPTION = 14, 26, 38
# Lines and marks are drawn this much larger and then reduced, which smooths their edges.
FINE = 3

BACKGROUND: Colour = (15, 17, 20)
TEXT: Colour = (226, 228, 231)
FAINT: Colour = (140, 146, 153)
DARK: Colour = (0, 0, 0)
# Yellow beside a dark edge stands out from every grey, and in every kind of colour vision.
CONTOUR: Colour = (255, 221, 45)
INSIDE: Colour = (255, 255, 255)
OUTSIDE: Colour = (255, 140, 66)
BOX: Colour = (120, 200, 255)

# Hounsfield windows, low to high: what is shown when the object's middle value lies below the first number.
HOUNSFIELD: tuple[tuple[float, tuple[float, float]], ...] = (
    (-300.0, (-1350.0, 150.0)),
    (350.0, (-160.0, 240.0)),
    (np.inf, (-450.0, 1050.0)),
)


def draw(volume: Volume, mask: Volume, prompts: PromptSet | None = None) -> Image.Image:
    """The planes through the last positive click, or through the middle of the mask, with the mask's outline.

    Args:
        volume: the scan; its first channel is shown.
        mask: above 0 is object; on the scan's own grid.
        prompts: clicks and scribbles are marked (+ inside, circled − outside), boxes outlined.
    """
    prompts = prompts or PromptSet()
    view = _view(volume.grid, mask, prompts)
    panels = [_Panel(view, plane) for plane in PLANES if _has_extent(volume.grid, plane)]
    greys = [panel.read(volume) for panel in panels]
    low, high = _window(greys, volume, _middle_value(volume, mask, view))
    pictures = []
    for panel, grey in zip(panels, greys, strict=True):
        picture = _shaded(grey, low, high)
        for layer, colour, strength in (*_outline(panel, mask), *_marks(panel, prompts)):
            opacity = layer.reduce(FINE).point(lambda value, part=strength: int(value * part))
            picture.paste(colour, mask=opacity)
        pictures.append(picture)
    return _sheet(panels, pictures, _caption(volume, mask, low, high))


# --- What is shown -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _View:
    """A box of the scan: from `low` to `high` (faces, in voxels of the LPI frame) around the planes at `center`."""

    grid: Grid
    frame: Grid
    center: NDArray[np.int64]
    low: Corner
    high: Corner

    @property
    def size(self) -> NDArray[np.float64]:
        """Millimetres along each axis of the frame."""
        return (self.high - self.low) * self.frame.spacing

    @property
    def stacked(self) -> bool:
        """Whether the sagittal plane goes below the coronal one, which shows a shallow volume larger."""
        return self._pixel_stacked < self._pixel_in_a_row

    @property
    def pixel(self) -> float:
        """Millimetres that a pixel spans, in all planes."""
        return min(self._pixel_stacked, self._pixel_in_a_row)

    @property
    def _pixel_in_a_row(self) -> float:
        x, y, z = self.size
        return float(max((2 * x + y) / WIDTH, max(y, z) / HEIGHT))

    @property
    def _pixel_stacked(self) -> float:
        x, y, z = self.size
        return float(max((x + max(x, y)) / WIDTH, y / HEIGHT, 2 * z / (HEIGHT - TITLE)))


def _view(grid: Grid, mask: Volume, prompts: PromptSet) -> _View:
    """The object and some room around it; everything, if there is no object."""
    frame = grid.reoriented(FRAME)
    bounds = _bounds(mask.data[0])
    points = prompts.points(positive=True)
    if bounds is not None:
        points = np.concatenate([points, grid.to_world(bounds)])
    whole = np.array(frame.shape, dtype=np.float64)
    if len(points) == 0:
        return _View(grid, frame, (whole // 2).astype(np.int64), np.full(3, -0.5), whole - 0.5)
    places = frame.to_voxels(points)
    first, last = places.min(axis=0), places.max(axis=0)
    side = max(ROOM * float(((last - first + 1) * frame.spacing).max()), LEAST_VOXELS * float(frame.spacing.min()))
    size = np.minimum(side / frame.spacing, whole)
    low = np.clip((first + last) / 2 - size / 2, -0.5, whole - 0.5 - size)
    center = np.round(frame.to_voxels(_focus(prompts, points)))
    return _View(grid, frame, center.clip(0, whole - 1).astype(np.int64), low, low + size)


def _focus(prompts: PromptSet, points: NDArray[np.float64]) -> Point:
    """The last positive click, the middle of the last positive scribble, or the middle of all that is known."""
    for prompt in reversed(prompts.prompts):
        if isinstance(prompt, Click) and prompt.positive:
            return prompt.position
        if isinstance(prompt, Scribble) and prompt.positive:
            return prompt.points[len(prompt.points) // 2]
    x, y, z = (points.min(axis=0) + points.max(axis=0)) / 2
    return (float(x), float(y), float(z))


def _bounds(mask: NDArray[np.generic]) -> NDArray[np.int64] | None:
    """First and last voxel (2, 3) of a mask, axis by axis in what is left, so that no copy of it is made."""
    low, high = [], []
    for axis in range(3):
        line = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if len(line) == 0:
            return None
        low.append(int(line[0]))
        high.append(int(line[-1]))
        mask = mask[(slice(None),) * axis + (slice(line[0], line[-1] + 1),)]
    return np.array([low, high])


def _has_extent(grid: Grid, plane: Plane) -> bool:
    """Whether a plane shows more than a line of voxels; the axial one of a volume that is a line stands for all."""
    name, column, row, _ = plane
    shape = grid.reoriented(FRAME).shape
    flat = min(shape[column], shape[row]) == 1
    return not flat or (name == "axial" and sum(size > 1 for size in shape) < 2)


# --- One plane ---------------------------------------------------------------------------------------------------


class _Panel:
    """One plane of a view, as a grid of pixels in space."""

    def __init__(self, view: _View, plane: Plane) -> None:
        self.view = view
        self.name, self.column, self.row, self.through = plane
        columns, rows = (max(1, round(view.size[axis] / view.pixel)) for axis in (self.column, self.row))
        self.size = (columns, rows)

    def grid(self, finer: int = 1) -> Grid:
        """A lattice (columns, rows, 1) in the plane, `finer` times as dense as the pixels."""
        frame = self.view.frame
        shape = (self.size[0] * finer, self.size[1] * finer, 1)
        steps = np.zeros((3, 3))
        first = self.view.center.astype(np.float64)
        for index, axis in enumerate((self.column, self.row)):
            steps[axis, index] = (self.view.high[axis] - self.view.low[axis]) / shape[index]
            first[axis] = self.view.low[axis] + steps[axis, index] / 2
        steps[self.through, 2] = 1
        affine = np.eye(4)
        affine[:3, :3] = frame.affine[:3, :3] @ steps
        affine[:3, 3] = frame.to_world(first)
        return Grid(shape, affine)

    def read(self, volume: Volume) -> NDArray[np.float32]:
        """Intensities (rows, columns)."""
        values = resample(volume.data[0], volume.grid, self.grid(), mode="area")
        return np.asarray(values[..., 0].T, dtype=np.float32)

    def place(self, point: Point) -> tuple[float, float, float]:
        """A point in fine pixels, column and row, and how many voxels it lies before or behind the plane."""
        column, row, depth = self.grid(FINE).to_voxels(point)
        return float(column), float(row), float(depth)

    @property
    def title(self) -> str:
        """The plane and where it cuts the file, such as "axial, k = 40"."""
        direction = FRAME[self.through]
        axis = next(i for i, letter in enumerate(self.view.grid.axes) if letter in (direction, OPPOSITE[direction]))
        voxel = self.view.grid.to_voxels(self.view.frame.to_world(self.view.center))
        return f"{self.name}, {'ijk'[axis]} = {round(float(voxel[axis]))}"

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """Where left, right, top and bottom of the picture point in the patient."""
        right, bottom = FRAME[self.column], FRAME[self.row]
        return OPPOSITE[right], right, OPPOSITE[bottom], bottom


def _middle_value(volume: Volume, mask: Volume, view: _View) -> float:
    """The middle intensity of the object in the axial plane, or of the voxel at the centre of the view."""
    panel = _Panel(view, PLANES[0])
    inside = np.asarray(resample(mask.data[0], mask.grid, panel.grid(), mode="nearest"))[..., 0].T > 0
    grey = panel.read(volume)
    if inside.any():
        return float(np.median(grey[inside]))
    i, j, k = np.round(view.grid.to_voxels(view.frame.to_world(view.center))).astype(int)
    return float(volume.data[0, i, j, k])


def _window(greys: list[NDArray[np.float32]], volume: Volume, middle: float) -> tuple[float, float]:
    """Lowest and highest intensity shown: a usual window if these are Hounsfield units, else all but the extremes."""
    if _in_hounsfield_units(volume):
        return next(window for below, window in HOUNSFIELD if middle < below)
    values = np.concatenate([grey.ravel() for grey in greys])
    # Air and padding, where most of a picture is that, say nothing of the contrast of the rest.
    seen = values[values > values.min()]
    low, high = np.percentile(seen if seen.size else values, (1, 99.5))
    return float(low), float(max(high, low + 1e-6 * max(1.0, abs(low))))


def _in_hounsfield_units(volume: Volume) -> bool:
    """Whether there is something as dark as air, and nothing brighter than metal; some voxels stand for all."""
    some = volume.data[0][tuple(slice(None, None, max(1, size // 48)) for size in volume.grid.shape)]
    return bool(some.min() < -700 and some.max() < 4096)


def _shaded(grey: NDArray[np.float32], low: float, high: float) -> Image.Image:
    shade = ((grey - low) / (high - low)).clip(0, 1) * 255
    return Image.fromarray(shade.round().astype(np.uint8)).convert("RGB")


# --- Lines and marks: (where, colour, strength), later ones on top -----------------------------------------------


def _outline(panel: _Panel, mask: Volume) -> Iterator[Layer]:
    """The border of the mask, half way between voxels, on a darker band that parts it from bright tissue."""
    share = resample(mask.data[0], mask.grid, panel.grid(FINE), mode="linear")
    inside = np.asarray(share)[..., 0].T > 0.5
    if not inside.any():
        return
    shape = Image.fromarray(np.where(inside, 255, 0).astype(np.uint8))
    yield _band(shape, 5), DARK, 0.5
    yield _band(shape, 3), CONTOUR, 1.0


def _band(shape: Image.Image, radius: int) -> Image.Image:
    """What lies within `radius` fine pixels of a border."""
    return shape.filter(ImageFilter.BoxBlur(radius)).point(lambda value: 255 if 0 < value < 255 else 0)


def _marks(panel: _Panel, prompts: PromptSet) -> Iterator[Layer]:
    """Boxes, scribbles and clicks; what lies in another slice is fainter."""
    for prompt in prompts:
        if isinstance(prompt, Box):
            yield from _box(panel, prompt)
        elif isinstance(prompt, Scribble):
            yield from _stroke(panel, prompt)
        elif isinstance(prompt, Click):
            yield from _click(panel, prompt)


def _click(panel: _Panel, click: Click) -> Iterator[Layer]:
    column, row, depth = panel.place(click.position)
    strength = 1.0 if abs(depth) <= 1 else 0.4
    sign = _plus if click.positive else _circled_minus
    for wider, colour in ((4, DARK), (0, INSIDE if click.positive else OUTSIDE)):
        layer = _empty(panel)
        sign(ImageDraw.Draw(layer), column, row, wider)
        yield layer, colour, strength


def _plus(pen: ImageDraw.ImageDraw, x: float, y: float, wider: int) -> None:
    arm, half = 8 * FINE + wider, FINE + wider
    pen.rectangle((x - arm, y - half, x + arm, y + half), fill=255)
    pen.rectangle((x - half, y - arm, x + half, y + arm), fill=255)


def _circled_minus(pen: ImageDraw.ImageDraw, x: float, y: float, wider: int) -> None:
    radius, arm, half = 9 * FINE + wider, 4 * FINE + wider, FINE + wider
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=255, width=2 * FINE + 2 * wider)
    pen.rectangle((x - arm, y - half, x + arm, y + half), fill=255)


def _stroke(panel: _Panel, scribble: Scribble) -> Iterator[Layer]:
    places = [panel.place(point) for point in scribble.points]
    near = min(abs(depth) for _, _, depth in places) <= 1
    for wider, colour in ((4, DARK), (0, INSIDE if scribble.positive else OUTSIDE)):
        layer = _empty(panel)
        pen = ImageDraw.Draw(layer)
        line = [(column, row) for column, row, _ in places]
        pen.line(line * 2 if len(line) == 1 else line, fill=255, width=2 * FINE + wider, joint="curve")
        yield layer, colour, 1.0 if near else 0.4


def _box(panel: _Panel, box: Box) -> Iterator[Layer]:
    """The face of a box, if the plane cuts it."""
    corners = np.sort([panel.place(box.low), panel.place(box.high)], axis=0)
    if corners[0, 2] > 0.5 or corners[1, 2] < -0.5:
        return
    layer = _empty(panel)
    edges = tuple(float(value) for value in (*corners[0, :2], *corners[1, :2]))
    ImageDraw.Draw(layer).rectangle(edges, outline=255, width=FINE + 1)
    yield layer, BOX, 0.9


def _empty(panel: _Panel) -> Image.Image:
    return Image.new("L", (panel.size[0] * FINE, panel.size[1] * FINE))


# --- The sheet ---------------------------------------------------------------------------------------------------


def _sheet(panels: list[_Panel], pictures: list[Image.Image], caption: str) -> Image.Image:
    """The planes under their titles, with letters at their edges and a caption below."""
    corners = _places(panels)
    right = max(left + panel.size[0] for (left, _), panel in zip(corners, panels, strict=True))
    bottom = max(top + panel.size[1] for (_, top), panel in zip(corners, panels, strict=True))
    width = max(right, WIDTH // 3)
    sheet = Image.new("RGB", (width + 2 * MARGIN, bottom + CAPTION), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    shift = MARGIN + (width - right) // 2
    for index, ((left, top), panel, picture) in enumerate(zip(corners, panels, pictures, strict=True)):
        sheet.paste(picture, (left + shift, top))
        pen.text((left + shift, top - 7), panel.title, fill=FAINT, font=_font(14), anchor="ls")
        _letters(pen, panel, left + shift, top)
        if index == 0:
            _scale(pen, panel, left + shift, top)
    middle = (sheet.width / 2, sheet.height - 13)
    pen.text(middle, _fitted(caption, width), fill=TEXT, font=_font(16), anchor="ms")
    return sheet


def _places(panels: list[_Panel]) -> list[tuple[int, int]]:
    """Left upper corners: in a row, or the last of three below the second."""
    places = [(0, TITLE)]
    for before in panels[:-1]:
        left, top = places[-1]
        places.append((left + before.size[0] + MARGIN, top))
    if len(panels) == 3 and panels[0].view.stacked:
        places[2] = (places[1][0], places[1][1] + panels[1].size[1] + TITLE)
    return places


def _letters(pen: ImageDraw.ImageDraw, panel: _Panel, left: int, top: int) -> None:
    columns, rows = panel.size
    places = ((7, rows / 2, "lm"), (columns - 7, rows / 2, "rm"), (columns / 2, 5, "ma"), (columns / 2, rows - 6, "ms"))
    for letter, (x, y, anchor) in zip(panel.letters, places, strict=True):
        _text(pen, left + x, top + y, letter, 17, anchor)


def _scale(pen: ImageDraw.ImageDraw, panel: _Panel, left: int, top: int) -> None:
    """A bar of a round length, about a quarter of the plane."""
    pixel = panel.view.pixel
    most = panel.size[0] * pixel / 3
    power = 10 ** np.floor(np.log10(most))
    length = float(power * max(step for step in (0.5, 1, 2, 5) if step * power <= most))
    x, y = left + 12, top + panel.size[1] - 12
    pen.rectangle((x - 1, y - 2, x + length / pixel + 1, y + 2), fill=DARK)
    pen.rectangle((x, y - 1, x + length / pixel, y + 1), fill=TEXT)
    _text(pen, x, y - 6, f"{length:g} mm", 13, "ls")


def _text(pen: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int, anchor: str) -> None:
    pen.text((x, y), text, fill=TEXT, font=_font(size), anchor=anchor, stroke_width=2, stroke_fill=DARK)


def _caption(volume: Volume, mask: Volume, low: float, high: float) -> str:
    voxels = int(np.count_nonzero(mask.data[0]))
    millilitres = voxels * mask.grid.voxel_volume / 1000
    shown = f"{millilitres:.3g}" if millilitres < 1000 else f"{millilitres:,.0f}"
    return f"{volume.name}   mask {shown} ml, {voxels:,} voxels   grey {low:.3g} to {high:.3g}"


def _fitted(caption: str, width: int) -> str:
    """The caption, its beginning (a long file name) shortened until it fits."""
    name, gap, rest = caption.partition("   ")
    while len(name) > 8 and _font(16).getlength(name + gap + rest) > width:
        name = name[: len(name) // 2 - 1] + "…" + name[len(name) // 2 + 1 :]
    return name + gap + rest


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)

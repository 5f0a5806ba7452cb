"""The plots of a report, as SVG. They need matplotlib, which comes with the extra "train"."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volsam.errors import MissingExtra
from volsam.evaluation.statistics import Mean

# In the order of Okabe and Ito, which tells them apart in every kind of colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# So many names find a place between the lines; more of them stand below.
FEW_LINES = 3
# Values of one name that are drawn as dots, each of which is a mark in the picture's file.
MOST_DOTS = 500


@dataclass(frozen=True)
class Line:
    """A mean at several places, with its intervals, and the single values behind it, thin."""

    name: str
    places: Sequence[float]
    means: Sequence[Mean]
    singles: Sequence[Sequence[float]] = ()


def curves(lines: Sequence[Line], x: str, y: str, ticks: Sequence[str] | None = None) -> str:
    """Lines with bands; `ticks` name the places."""
    figure, axes = _figure(height=3.6 + (0.12 * len(lines) if len(lines) > FEW_LINES else 0))
    for line, colour in zip(lines, _colours(len(lines)), strict=True):
        for single in line.singles:
            axes.plot(line.places[: len(single)], single, color=colour, alpha=0.25, linewidth=0.7)
        axes.plot(line.places, [mean.value for mean in line.means], "o-", color=colour, label=line.name)
        axes.fill_between(
            line.places, [mean.low for mean in line.means], [mean.high for mean in line.means], color=colour, alpha=0.2
        )
    if ticks is not None:
        axes.set_xticks(lines[0].places, ticks)
    axes.set(xlabel=x, ylabel=y)
    if len(lines) > FEW_LINES:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    elif len(lines) > 1:
        axes.legend(frameon=False)
    return _svg(figure)


def spread(values: Mapping[str, Sequence[float]], y: str) -> str:
    """A box for each name, and every value as a dot; of very many, some."""
    figure, axes = _figure(height=3.2)
    named = {name: [value for value in each if np.isfinite(value)] for name, each in values.items()}
    named = {name: each for name, each in named.items() if each}
    axes.boxplot(list(named.values()), widths=0.5, showfliers=False, medianprops={"color": COLOURS[1]})
    for place, each in enumerate(named.values(), start=1):
        # A fixed scatter: the same report looks the same every time.
        random = np.random.default_rng(0)
        some = each if len(each) <= MOST_DOTS else random.choice(each, MOST_DOTS, replace=False)
        aside = random.uniform(-0.14, 0.14, len(some))
        axes.plot(place + aside, some, ".", color=COLOURS[0], alpha=0.5)
    turned = {"rotation": 30, "ha": "right"} if len(named) > 5 else {}
    axes.set_xticks(range(1, len(named) + 1), list(named), **turned)
    axes.set(ylabel=y)
    return _svg(figure)


def points(groups: Mapping[str, np.ndarray], title: str) -> str:
    """Places (n, 2) in the plane, coloured by group."""
    figure, axes = _figure(height=5.0)
    for (name, places), colour in zip(groups.items(), _colours(len(groups)), strict=True):
        axes.plot(places[:, 0], places[:, 1], ".", color=colour, label=name, alpha=0.8)
    axes.set(xticks=[], yticks=[], title=title)
    axes.legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    return _svg(figure)


def available() -> bool:
    """Whether plots can be made here."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _figure(height: float = 3.6) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("a plot", "train") from None
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    written = io.StringIO()
    # Names of parts of the drawing follow from a salt, and the date is left out: the same data give the same bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "volsam"}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    text = written.getvalue()
    return text[text.index("<svg") :]

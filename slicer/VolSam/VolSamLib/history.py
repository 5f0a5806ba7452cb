"""Steps that can be taken back and forward again, across all segments of a segmentation."""

from __future__ import annotations

from dataclasses import dataclass, field

from VolSamLib.prompts import Part, Said

MOST = 200


@dataclass(frozen=True, eq=False)
class Step:
    """One action: what was said about a segment, and every segment that changed, before and after."""

    segment: str
    said: tuple[Said, Said]
    before: dict[str, Part]
    after: dict[str, Part]


@dataclass
class History:
    """Done steps and undone ones; the oldest are forgotten after `MOST`."""

    done: list[Step] = field(default_factory=list)
    undone: list[Step] = field(default_factory=list)

    def add(self, step: Step) -> None:
        """A step was taken; what had been undone cannot be redone any more."""
        self.done = [*self.done, step][-MOST:]
        self.undone = []

    def back(self) -> Step | None:
        """The step to take back now."""
        if not self.done:
            return None
        self.undone.append(self.done.pop())
        return self.undone[-1]

    def forward(self) -> Step | None:
        """The step to take again now."""
        if not self.undone:
            return None
        self.done.append(self.undone.pop())
        return self.done[-1]

    def clear(self) -> None:
        """Forget everything."""
        self.done, self.undone = [], []


def changed(before: dict[str, Part], after: dict[str, Part]) -> tuple[dict[str, Part], dict[str, Part]]:
    """Only the segments that differ."""
    differ = [segment for segment in after if segment in before and before[segment] != after[segment]]
    return {segment: before[segment] for segment in differ}, {segment: after[segment] for segment in differ}

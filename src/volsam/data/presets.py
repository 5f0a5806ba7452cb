"""Published datasets as the papers used them: labels, window, spacing, which cases test, and whose each case is.

The numbers are those of the papers and of their released code; where neither says something, the field is empty. A
preset describes the dataset after `volsam data convert`, or as its authors publish it, in nnU-Net or Decathlon layout.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from volsam.data.splits import Fold, deal, make_folds, patient_of
from volsam.errors import BadInput
from volsam.registry import Registry

Window = tuple[float, float]
Spacing = tuple[float, float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Preset:
    """What is known of a dataset and of how a paper used it.

    title: of the data; paper: whose numbers these are; labels: names and values as published; scored: objects of the
    paper, each of the values it joins; window: intensities clipped to; percentile: or the share of voxels kept below
    the top; mean, spread: of the z-score after clipping; spacing: resampled to, in mm and in the order of the file's
    axes; axes: what the loader takes for depth, height and width, of the file's three; split: the rule in words;
    sizes: of the published fold, train, validation and test; shares: of the patients in each of these, where they are
    dealt out by chance; test: a pattern for the names of test cases; patient: a
    pattern for the part of a name that says whose a case is; colours: of label pictures, by value; notes: what else a
    user must know.
    """

    name: str
    title: str
    modality: str
    paper: str
    labels: Mapping[str, int]
    scored: Mapping[str, tuple[int, ...]]
    split: str
    window: Window | None = None
    percentile: float | None = None
    mean: float | None = None
    spread: float | None = None
    spacing: Spacing | None = None
    axes: tuple[int, int, int] | None = None
    sizes: tuple[int, int, int] | None = None
    shares: tuple[float, float, float] | None = None
    test: str | None = None
    patient: str = ".*"
    colours: Mapping[int, Colour] = field(default_factory=lambda: MappingProxyType({}))
    notes: str = ""

    def require_labels(self, values: Iterable[int], name: str) -> None:
        """Refuse a dataset, called `name`, with label values that this one does not have."""
        if unknown := sorted(set(values) - set(self.labels.values())):
            raise BadInput(
                f"--preset {self.name} knows the label values {sorted(self.labels.values())}, {name} also has "
                f"{unknown}: is it that dataset?"
            )

    def relabelled(self) -> tuple[dict[str, int], dict[int, int]]:
        """The labels that the paper scores, numbered from 1, and from every published value to its new one."""
        names = {"background": 0} | {name: number for number, name in enumerate(self.scored, start=1)}
        values = dict.fromkeys(self.labels.values(), 0)
        for number, joined in enumerate(self.scored.values(), start=1):
            values |= dict.fromkeys(joined, number)
        return names, values

    def tests(self, case: str) -> bool:
        """Whether a case is one of the published test cases."""
        return self.test is not None and re.fullmatch(self.test, case) is not None

    def folds(self, cases: Sequence[str], count: int = 5, seed: int = 0) -> list[Fold]:
        """Folds by patient: with the published test cases where they are known, else in the published shares."""
        if self.shares is not None:
            return deal(cases, self.shares, count, seed, patient_of(self.patient, cases))
        test = tuple(sorted(case for case in cases if self.tests(case)))
        if self.test is not None and not test:
            raise BadInput(
                f"none of the {len(cases)} cases has the name of a test case of {self.name}, such as {self.test}: "
                f"the first is called {min(cases, default='nothing')}"
            )
        rest = [case for case in cases if case not in test]
        return [
            Fold(fold.train, fold.val, test) for fold in make_folds(rest, count, seed, patient_of(self.patient, rest))
        ]

    def settings(self, known: Container[str]) -> dict[str, Any]:
        """What a training that has such settings is to be told; the spacing only where it is one number."""
        edges = set(self.spacing or ())
        wanted = {
            "window": self.window,
            "percentiles": None if self.percentile is None else (0.0, self.percentile),
            "mean": self.mean,
            "spread": self.spread,
            "spacing": edges.pop() if len(edges) == 1 else None,
            "object": next(iter(self.scored)),
        }
        return {name: value for name, value in wanted.items() if value is not None and name in known}


presets: Registry[Preset] = Registry("preset")

_ADAPTER = "3DSAM-adapter (arXiv 2306.13465)"
_MA_SAM = "MA-SAM (arXiv 2309.08842)"
_FIVE = (
    "five random folds of 70 / 10 / 20 in the release's split.pkl, of which the first is used; the file is not part of "
    "this package: `volsam data split --preset` deals out in the same shares, its own folds go into splits_final.json"
)


def _tumour(name: str, title: str, labels: Mapping[str, int], value: int, **more: object) -> None:
    """A tumour task of 3DSAM-adapter: one label, CT, voxels of 1 mm."""
    fields = {"spacing": (1.0, 1.0, 1.0), "split": _FIVE, "shares": (0.7, 0.1, 0.2), **more}
    scored = {"tumour": (value,)}
    presets.add(name, Preset(name, title, "CT", _ADAPTER, labels, scored, **fields))  # type: ignore[arg-type]


_tumour(
    "kits21",
    "KiTS21, kidney tumours",
    {"background": 0, "kidney": 1, "tumour": 2, "cyst": 3},
    2,
    window=(-54.0, 247.0),
    mean=59.53867,
    spread=55.457336,
    axes=(0, 1, 2),
    sizes=(209, 30, 61),
    notes="The compared networks were trained at 2 × 1.5 × 1.5 mm, tumour alone.",
)
_tumour(
    "msd-pancreas",
    "Medical Segmentation Decathlon, Task07, pancreatic tumours",
    {"background": 0, "pancreas": 1, "tumour": 2},
    2,
    window=(-39.0, 204.0),
    mean=68.45214,
    spread=63.422806,
    axes=(2, 1, 0),
    sizes=(196, 28, 57),
    notes="MA-SAM uses the same split file; its box variant clips to -50..200 (mean 30.52403, spread 64.07289). The "
    "compared networks were trained at 2.5 × 1.5 × 1.5 mm, slice axis first.",
)
_tumour(
    "lits17",
    "LiTS17, liver tumours",
    {"background": 0, "liver": 1, "tumour": 2},
    2,
    window=(-48.0, 163.0),
    mean=60.057533,
    spread=40.198017,
    axes=(2, 1, 0),
    sizes=(83, 11, 24),
    notes="The compared networks were trained at 2.5 × 1.5 × 1.5 mm, slice axis first.",
)
_tumour(
    "msd-colon",
    "Medical Segmentation Decathlon, Task10, colon cancer",
    {"background": 0, "colon cancer primaries": 1},
    1,
    window=(-57.0, 175.0),
    mean=65.175035,
    spread=32.651197,
    axes=(2, 1, 0),
    sizes=(89, 11, 26),
    notes="The compared networks were trained at 2.5 × 1.5 × 1.5 mm, slice axis first.",
)

_BTCV = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "oesophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic vein",
    "pancreas",
)
presets.add(
    "btcv",
    Preset(
        "btcv",
        "BTCV, abdominal organs (Synapse syn3193805)",
        "CT",
        _MA_SAM,
        {
            "background": 0,
            **{name: value for value, name in enumerate(_BTCV, start=1)},
            "right adrenal gland": 12,
            "left adrenal gland": 13,
        },
        {**{name: (value,) for value, name in enumerate(_BTCV, start=1)}, "adrenal glands": (12, 13)},
        split="24 cases train; 0035 to 0040 test",
        window=(-200.0, 250.0),
        mean=50.21997,
        spread=68.47154,
        sizes=(24, 0, 6),
        test=r"\D*0*(3[5-9]|40)",
        notes="No resampling; mean and spread are of 0..255 and have no effect, since each stack is brought to 0..1.",
    ),
)

# Of the six sites, the numbers of the cases that test.
_PROSTATE_TEST = {
    "A": (3, 8, 12, 15, 18, 26),
    "B": (3, 8, 12, 15, 18, 26),
    "C": (3, 8, 13, 15),
    "D": (1, 32, 34),
    "E": (0, 4, 9),
    "F": (38, 41, 46),
}
presets.add(
    "prostate-6",
    Preset(
        "prostate-6",
        "Prostate MRI of six sites (SAML)",
        "MR",
        _MA_SAM,
        {"background": 0, "prostate": 1, "second zone": 2},
        {"prostate": (1, 2)},
        split="by site; numbers of the test cases: "
        + "; ".join(f"{site} {', '.join(map(str, numbers))}" for site, numbers in _PROSTATE_TEST.items()),
        percentile=99.0,
        test="|".join(
            f"{site}_?0*({'|'.join(str(number) for number in numbers)})" for site, numbers in _PROSTATE_TEST.items()
        ),
        notes="Cases are called SITE_NUMBER here, such as A_0003. Each site has a model of its own.",
    ),
)
presets.add(
    "acdc",
    Preset(
        "acdc",
        "ACDC, cine MR of the heart",
        "MR",
        "AutoSAM (arXiv 2306.13731)",
        {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3},
        {"right ventricle": (1,), "myocardium": (2,), "left ventricle": (3,)},
        split="five random shuffles of patients, 70 / 15 / 15, without a seed; the published file is not to be had",
        patient=r"patient\d+",
        shares=(0.7, 0.15, 0.15),
        notes="A patient has two frames, which stay together. Few-shot runs keep the first patients of a fold.",
    ),
)

_AMOS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "oesophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate or uterus",
)
presets.add(
    "amos22",
    Preset(
        "amos22",
        "AMOS22, abdominal organs",
        "CT and MR",
        "FastSAM3D (arXiv 2403.09827), SAM-Med3D",
        {"background": 0, **{name: value for value, name in enumerate(_AMOS, start=1)}},
        {name: (value,) for value, name in enumerate(_AMOS, start=1)},
        split="that of the challenge: imagesTr and imagesVa",
        spacing=(1.5, 1.5, 1.5),
        notes="Numbers up to 500 are CT, above MR. Each organ is a binary task there, z-scored over voxels above 0.",
    ),
)

_ENDOVIS: tuple[tuple[str, Colour], ...] = (
    ("background tissue", (0, 0, 0)),
    ("instrument shaft", (0, 255, 0)),
    ("instrument clasper", (0, 255, 255)),
    ("instrument wrist", (125, 255, 12)),
    ("kidney parenchyma", (255, 55, 0)),
    ("covered kidney", (24, 55, 125)),
    ("thread", (187, 155, 25)),
    ("clamps", (0, 255, 125)),
    ("suturing needle", (255, 255, 125)),
    ("suction instrument", (123, 15, 175)),
    ("small intestine", (124, 155, 5)),
    ("ultrasound probe", (12, 255, 141)),
)
presets.add(
    "endovis18",
    Preset(
        "endovis18",
        "EndoVis 2018, robotic scene segmentation",
        "RGB video",
        _MA_SAM,
        {name: value for value, (name, _) in enumerate(_ENDOVIS)},
        {name: (value,) for value, (name, _) in enumerate(_ENDOVIS) if value},
        split="that of the challenge: its test sequences 1 to 4",
        colours=MappingProxyType({value: colour for value, (_, colour) in enumerate(_ENDOVIS)}),
        notes="A sequence becomes a volume of frames with three channels. The paper brings frames to 512 × 512.",
    ),
)

"""The cases of an evaluation one by one, of those scored before only what is not the same any more."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from math import isnan
from pathlib import Path

from volsam.cli.asking import prediction_of
from volsam.cli.console import explained, no_room, say
from volsam.cli.learnt import digest_of
from volsam.cli.scenes import Source
from volsam.data.dataset import Case
from volsam.evaluation.protocol import Played
from volsam.evaluation.rules import Rule
from volsam.evaluation.study import Folder, Gallery, Row, Scene, Trial, score_case

# Objects of a case that its line names.
MOST_SHOWN = 4


def score_all(
    folder: Folder, source: Source, trial: Trial, rule: Rule, pictures: int, predictions: Path | None
) -> dict[str, str]:
    """Score what is not scored yet, a line for each case; why the others failed, by case.

    Args:
        folder: of the report, opened.
        source: the cases.
        trial: asks about a case.
        rule: by which the answers are scored.
        pictures: how many of the worst objects are drawn.
        predictions: the folder of ready labels, where these are scored.
    """
    gallery = Gallery(folder.pictures, _draw, pictures, rule)
    failed: dict[str, str] = {}
    for number, case in enumerate(source.cases, start=1):
        place = f"{number}/{len(source.cases)} {case.name}"
        try:
            digests = digests_of(case, predictions)
            if folder.has(case.name):
                changed = _changed(folder, case.name, digests)
                if not changed:
                    say(f"{place}: scored already")
                    continue
                say(f"{place}: {changed}, and is scored anew")
                folder.forget(case.name)
            rows = score_case(source.read(case), trial, rule, gallery.show)
            folder.keep(case.name, rows, digests)
        except Exception as error:  # one case that cannot be scored must not end the work on the others
            if no_room(error):
                raise
            failed[case.name] = " ".join(explained(error).split())
            say(f"{place} error: {failed[case.name]}")
        else:
            say(f"{place}: {_in_words(rows, rule)}")
    return failed


def digests_of(case: Case, predictions: Path | None) -> dict[str, str]:
    """What tells the files that a case is scored from from others: of its image, of its label, and of the ready labels
    where these are scored; 16 hexadecimal digits each, or nothing where there is no such file.
    """
    # Files of the challenge may hold their labels themselves.
    own = [path for path in case.images if path.suffix == ".npz"]
    found = {"image": digest_of(case), "label": _of_files([*own, *([] if case.label is None else [case.label])])}
    if predictions is not None:
        ready = prediction_of(predictions, case.name)
        found["prediction"] = _of_files([] if ready is None else [ready])
    return found


def _of_files(paths: Sequence[Path]) -> str:
    from volsam.recipes.store import checksum

    sums = [checksum(path) for path in paths if path.is_file()]
    return sha256("".join(sums).encode()).hexdigest()[:16] if sums else ""


def _changed(folder: Folder, case: str, digests: dict[str, str]) -> str:
    """What is not as it was when a case was scored, in words; nothing where all is."""
    before = folder.digests([case])[case]
    if not before:
        return "was scored before files were remembered"
    changed = [what for what, digest in digests.items() if before.get(what) != digest]
    return f"has another {' and '.join(changed)} than before" if changed else ""


def _draw(scene: Scene, name: str, played: Played, path: Path) -> None:
    from volsam.evaluation.pictures import draw

    draw(scene.volume, scene.objects[name], played.mask, path)


def _in_words(rows: Sequence[Row], rule: Rule) -> str:
    counted = [(row.object, row.scores["dice"][row.counted(rule)]) for row in rows]
    counted = [(name, dice) for name, dice in counted if not isnan(dice)]
    shown = [f"{name} {dice:.3f}" for name, dice in counted[:MOST_SHOWN]]
    more = f" and {len(counted) - MOST_SHOWN} more" if len(counted) > MOST_SHOWN else ""
    return f"Dice {', '.join(shown)}{more}" if counted else "holds none of the objects"

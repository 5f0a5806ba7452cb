"""`volsam models`: which models there are, what is known of them, and whether they compute what was published."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated

import typer

from volsam.cli.console import Command, Steps, fail, table
from volsam.cli.options import AsJson

if TYPE_CHECKING:
    from volsam.recipes.recipe import Recipe

app = typer.Typer(no_args_is_help=True, help="Models: names, licences, cards, agreement with the published ones.")


@app.command("list", cls=Command)
def list_models(as_json: AsJson = False) -> None:
    """List the models by name."""
    found = known()
    if as_json:
        typer.echo(json.dumps([record(recipe) for recipe in found], indent=2))
        return
    rows = [
        (
            recipe.name,
            recipe.summary,
            ", ".join(recipe.prompts),
            recipe.licence,
            size_in_words(recipe.weights),
            "yes" if recipe.present else "no",
        )
        for recipe in found
    ]
    table(("name", "summary", "prompts", "licence", "size", "present"), rows)


@app.command(cls=Command)
def show(name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `volsam models list`.")]) -> None:
    """Show the card of a model: data, licence, scores, limits."""
    from volsam.recipes.recipe import recipes

    known()
    recipe = recipes[name]
    for key, value in record(recipe).items():
        if value is not None:
            typer.echo(f"{key:9} {', '.join(value) if isinstance(value, list) else value}")
    if recipe.card is not None and recipe.card.is_file():
        typer.echo("")
        typer.echo(recipe.card.read_text(encoding="utf-8").rstrip())


@app.command(cls=Command)
def verify(
    fixture: Annotated[Path, typer.Argument(metavar="FIXTURE.json", help="Its arrays lie beside it, as .npz.")],
) -> None:
    """Rebuild a published network, run it, and compare every array that the original computed."""
    from volsam.recipes.parity import TOLERANCE
    from volsam.recipes.parity import verify as compare

    with Steps()(f"computing what {fixture.name} describes"):
        differences = compare(fixture)
    rows = [
        (
            difference.name,
            " × ".join(map(str, difference.shape)),
            f"{difference.max_difference:.1e}",
            "agrees" if difference.agrees else "DIFFERS",
        )
        for difference in differences
    ]
    table(("array", "shape", "largest difference", ""), rows)
    wrong = sum(not difference.agrees for difference in differences)
    if wrong:
        which = f"{wrong} of {len(differences)} arrays of {fixture.name}"
        fail(f"{which} differ from the original by more than {TOLERANCE:g}")


def known() -> list[Recipe]:
    """Every model that a module of `volsam.recipes` registers."""
    import volsam.recipes
    from volsam.recipes.recipe import recipes

    for module in iter_modules(volsam.recipes.__path__):
        import_module(f"volsam.recipes.{module.name}")
    return [recipes[name] for name in recipes]


def record(recipe: Recipe) -> dict[str, str | int | bool | list[str] | None]:
    """What is known of a model, as plain data."""
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "prompts": list(recipe.prompts),
        "licence": recipe.licence,
        "source": recipe.source,
        "present": recipe.present,
        "bytes": recipe.weights.stat().st_size if recipe.weights and recipe.present else None,
        "sha256": recipe.checksum(),
    }


def size_in_words(weights: Path | None) -> str:
    """Megabytes of a file, or a dash where there is none."""
    return f"{weights.stat().st_size / 1e6:.1f} MB" if weights is not None and weights.is_file() else "-"

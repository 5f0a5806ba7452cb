"""`volsam models`: which models there are, bringing others in, and whether they compute what was published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volsam.cli.console import Command, Steps, fail, table, track
from volsam.cli.options import AsJson
from volsam.errors import BadInput

if TYPE_CHECKING:
    from volsam.recipes.recipe import Recipe
    from volsam.recipes.store import StoredModel

app = typer.Typer(no_args_is_help=True, help="Models: names, licences, cards; bringing published weights in.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name from `volsam models list`.")]
NewName = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="What to call it; by default the name of the file."),
]
Partner = Annotated[
    str | None,
    typer.Option("--with", metavar="FILE|NAME", help="The second file, where the first holds a part of the network."),
]
OfFamily = Annotated[
    str | None,
    typer.Option("--family", metavar="FAMILY", help="What the weights must be; 'medsam' for SAM tuned for boxes."),
]
Licence = Annotated[str | None, typer.Option("--licence", metavar="TEXT", help="By default that of the family.")]
Source = Annotated[str | None, typer.Option("--source", metavar="TEXT", help="Where the weights come from.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a model of the same name.")]


@app.command("list", cls=Command)
def list_models(as_json: AsJson = False) -> None:
    """List the models by name: what ships with volsam, and what was imported."""
    from volsam.recipes.recipe import shipped
    from volsam.recipes.store import all_stored

    recipes = shipped()
    found = [
        *(record(recipes[name], summed=as_json) for name in recipes),
        *(record_of_stored(model) for model in all_stored()),
    ]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    rows = [
        (
            model["name"],
            model["summary"],
            ", ".join(model["prompts"]) or "none, automatic",
            model["licence"],
            in_megabytes(model["bytes"]),
            "yes" if model["present"] else "no",
        )
        for model in found
    ]
    table(("name", "summary", "prompts", "licence", "size", "present"), rows)


@app.command(cls=Command)
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|RUN", help="A name from `volsam models list`, or a run.")],
) -> None:
    """Show the card of a model: data, licence, scores, limits; of a run also its cases and settings."""
    from volsam.recipes.recipe import shipped
    from volsam.recipes.store import is_stored, stored

    recipes = shipped()
    known = record(recipes[name]) if name in recipes else {}
    if not known and (is_stored(name) or not Path(name).exists()):
        known = record_of_stored(stored(name))
    if not known or known.get("run"):
        known |= {"run": name, **record_of_run(name)}
    width = max(9, *map(len, known))
    for key, value in known.items():
        if value not in (None, "", []):
            typer.echo(f"{key:{width}} {in_words(value)}")
    card = recipes[name].card if name in recipes else None
    if card is not None and card.is_file():
        typer.echo("")
        typer.echo(card.read_text(encoding="utf-8").rstrip())


def record_of_run(name: str) -> dict[str, Any]:
    """What is known of a training run, for people."""
    from volsam.recipes.trained import place_of, record_of

    place = place_of(name)
    if place is None:
        raise BadInput(f"{name} is not a training run, nor a name from `volsam models list`")
    known = record_of(place)
    return {
        "method": known.method,
        "dataset": known.dataset,
        "labels": [f"{name} ({value})" for name, value in zip(known.plan.labels, known.plan.values, strict=True)],
        "learnt from": list(known.training),
        "chosen by": list(known.validation),
        "began with": known.init.name or "nothing",
        "weights": f"{known.trained:,} learnt, {known.frozen:,} frozen",
        "steps": f"{known.steps:,} in {known.minutes:.1f} minutes" if known.done else "not finished",
        "Dice": "" if known.best is None else f"{known.best:.3f}, of the cases that it was chosen by",
        "licence": known.licence,
        "trained": known.date,
        "settings": [f"{name}={value}" for name, value in known.config.items()],
    }


@app.command("import", cls=Command)
def import_model(
    file: Annotated[
        Path, typer.Argument(metavar="FILE|RUN", help="Published weights (safetensors, .pt, .pth), or a training run.")
    ],
    name: NewName = None,
    partner: Partner = None,
    family: OfFamily = None,
    licence: Licence = None,
    source: Source = None,
    force: Force = False,
) -> None:
    """Check weights and keep them; works offline, and runs nothing that is in the file.

    Example: volsam models import sam_vit_b_01ec64.pth --name sam-b
    """
    with Steps()(f"checking {file.name}"):
        from volsam.recipes.importing import import_checkpoint

        model = import_checkpoint(
            file, name=name, partner=partner, family=family, licence=licence, source=source, force=force
        )
    _say_stored(model)


@app.command(cls=Command)
def get(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="https://..., of a file of published weights.")],
    sha256: Annotated[str | None, typer.Option("--sha256", metavar="HEX", help="What the file must have.")] = None,
    no_checksum: Annotated[bool, typer.Option("--no-checksum", help="Take the file as it is.")] = False,
    name: NewName = None,
    partner: Partner = None,
    family: OfFamily = None,
    licence: Licence = None,
    source: Source = None,
    force: Force = False,
) -> None:
    """Fetch published weights, check them and keep them: the one command that uses a network.

    Example: volsam models get https://host/sam_vit_b.pth --sha256 ec2d...
    """
    from volsam.recipes import store
    from volsam.recipes.download import fetch, file_name, without_secrets

    if (sha256 is None) != no_checksum:
        raise BadInput(
            f"{address}: give --sha256 HEX, which its publisher says, or --no-checksum to take the file as it is; "
            f"{'neither was' if sha256 is None else 'both were'} given"
        )
    name = store.proposed_name(file_name(address)) if name is None else name
    store.require_name(name, force=force)
    with store.workplace() as folder:
        file, found = fetch(address, folder, sha256, track)
        if sha256 is None:
            typer.echo(f"sha256      {found}")
        with Steps()(f"checking {file.name}"):
            from volsam.recipes.importing import import_checkpoint

            model = import_checkpoint(
                file,
                name=name,
                partner=partner,
                family=family,
                licence=licence,
                source=source or without_secrets(address),
                force=force,
            )
    _say_stored(model)


@app.command(cls=Command)
def export(
    name: Annotated[str, typer.Argument(metavar="NAME|RUN", help="A name from `volsam models list`, or a run.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help=".safetensors, .pt or .pth.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write the weights of a model to a file, under the names of the original; of a run all that its model needs.

    Example: volsam models export runs/heart -o heart.safetensors
    """
    from volsam.recipes import store
    from volsam.recipes.recipe import shipped

    if output.is_file() and not force:
        raise BadInput(f"-o {output} is there already: give another name, or replace it with --force")
    with Steps()(f"writing {output.name}"):
        if name not in shipped() and (Path(name).is_dir() or (store.is_stored(name) and store.stored(name).card.run)):
            from volsam.recipes.trained import pack
            from volsam.training.packed import write

            write(pack(name), output)
        else:
            store.export(weights_of(name), output)
    typer.echo(f"weights    {output}, {in_megabytes(output.stat().st_size)}")


@app.command(cls=Command)
def remove(name: Name, yes: Annotated[bool, typer.Option("--yes", help="Yes, delete it.")] = False) -> None:
    """Delete a stored model."""
    from volsam.recipes import store
    from volsam.recipes.recipe import shipped

    if name in shipped():
        raise BadInput(
            f"{name} ships with volsam and is not removed; `volsam models list` shows which models are stored"
        )
    model = store.stored(name)
    if not yes:
        raise BadInput(f"{name} takes {model.card.bytes / 1e6:,.1f} MB in {model.path}: add --yes to delete it")
    store.remove(name)
    typer.echo(f"removed    {name}")


@app.command(cls=Command)
def verify(
    fixture: Annotated[Path, typer.Argument(metavar="FIXTURE.json", help="Its arrays lie beside it, as .npz.")],
) -> None:
    """Rebuild a published network, run it, and compare every array that the original computed."""
    from volsam.recipes.families.parity import TOLERANCE
    from volsam.recipes.families.parity import verify as compare

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


def record(recipe: Recipe, *, summed: bool = True) -> dict[str, Any]:
    """What is known of a model that ships, as plain data; unless `summed` its weights are not read."""
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "prompts": list(recipe.prompts),
        "licence": recipe.licence,
        "source": recipe.source,
        "present": recipe.present,
        "bytes": recipe.weights.stat().st_size if recipe.weights and recipe.present else None,
        "sha256": recipe.checksum() if summed else None,
    }


def record_of_stored(model: StoredModel) -> dict[str, Any]:
    """The same of an imported model, and where it came from."""
    card = model.card.model_dump(exclude={"computed"} if model.card.run else {"computed", "run"})
    return {
        "name": model.name,
        "summary": f"{card.pop('title')}, {card['parameters'] / 1e6:,.1f} million parameters",
        "prompts": list(card.pop("prompts")),
        "licence": card.pop("licence"),
        "source": card.pop("source"),
        "present": model.present,
        "bytes": card.pop("bytes"),
        "sha256": card.pop("sha256"),
        **card,
        "folder": str(model.path),
    }


def weights_of(name: str) -> Path:
    """The safetensors file of a model."""
    from volsam.recipes.recipe import shipped
    from volsam.recipes.store import stored

    recipes = shipped()
    weights = recipes[name].weights if name in recipes else stored(name).weights
    if weights is None or not weights.is_file():
        raise BadInput(f"the weights of {name} are not here: see `volsam models show {name}`")
    return weights


def in_words(value: Any) -> str:
    """A value of a record for the reader."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_words, value))
    if isinstance(value, dict):
        return " ".join(map(in_words, value.values()))
    return str(value)


def in_megabytes(size: int | None) -> str:
    """The size of a file, or a dash where there is none."""
    return "-" if size is None else f"{size / 1e6:,.1f} MB"


def _say_stored(model: StoredModel) -> None:
    card = model.card
    typer.echo(f"stored      {model.name}, {card.title}, in {model.path}")
    typer.echo(f"prompts     {', '.join(card.prompts) or 'none, it is automatic'}")
    typer.echo(f"licence     {card.licence}")
    typer.echo(f"size        {in_megabytes(card.bytes)}, {card.parameters:,} parameters")

"""`volsam view`: one scan in the browser, with a server of its own on this machine."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer

from volsam.cli.console import say
from volsam.cli.options import Device, Model
from volsam.cli.segment import Channel, Frame, Image
from volsam.cli.serve import listening, parts, run
from volsam.errors import BadFile

Port = Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes any that is free.")]
Labels = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="Labels of the scan to correct: one object for each value."),
]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Only print the address.")]

HOST = "127.0.0.1"


def view(
    image: Image,
    model: Model = None,
    frame: Frame = None,
    channel: Channel = None,
    labels: Labels = None,
    port: Port = 0,
    no_browser: NoBrowser = False,
    device: Device = "auto",
) -> None:
    """Open a scan in the browser and segment it by clicks; stop with Ctrl-C, everything is kept.

    Example: volsam view ct.nii.gz --labels predicted.nii.gz
    """
    image = image.expanduser().absolute()
    if not image.exists():
        raise BadFile(f"{image}: there is no such file or folder; give the scan to look at")
    if labels is not None and not labels.is_file():
        raise BadFile(f"--labels {labels}: there is no such file; give the labels of {image.name}")
    create_app, Settings = parts("volsam view")
    # No other tool is meant to come here, so no other protocol is spoken.
    chosen = {"models": (model,)} if model else {}
    settings = Settings(
        host=HOST, port=port, studies=image.parent, linked=(image.name,), dialects=(), device=device, **chosen
    )
    app = create_app(settings)
    core = app.state.core
    wanted: dict[str, object] = {"study": image.name, "frame": frame, "channel": channel}
    if labels is None:
        core.read_ahead(image.name, frame=frame, channel=channel or 0)  # refused here, not in the page
    else:
        lease = core.claim()
        talk = core.open_study(lease, image.name, frame=frame, channel=channel or 0, labels=labels.absolute())
        core.release(lease.token)
        wanted = {"session": talk.identity}
    query = urlencode({name: value for name, value in wanted.items() if value is not None})
    with listening(HOST, port) as socket:
        address = f"http://{HOST}:{socket.getsockname()[1]}/?{query}"

        def started() -> None:
            say(f"{image.name} is at {address} (stop with Ctrl-C)")
            if not no_browser and not webbrowser.open(address):
                say("no browser was found here: open the address in one")

        run(app, socket, started)

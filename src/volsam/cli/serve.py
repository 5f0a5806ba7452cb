"""`volsam serve`: sessions over HTTP, for the viewer, 3D Slicer and other tools."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from volsam.cli.console import say
from volsam.cli.options import Device
from volsam.errors import BadInput, MissingExtra

Host = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; another needs --api-key-file.")]
Port = Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes any that is free.")]
Models = Annotated[
    str | None,
    typer.Option("--models", metavar="A,B", help="Names or files that clients may choose; the first is the default."),
]
Studies = Annotated[
    Path | None,
    typer.Option("--studies", metavar="DIR", help="Volumes that may be opened by name; labels are saved below it."),
]
Sessions = Annotated[
    Path | None,
    typer.Option("--sessions", metavar="DIR", help="Where sessions are kept; by default under VOLSAM_HOME."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--api-key-file", metavar="FILE", help="Holds the key that clients must send, on one line."),
]
Dialects = Annotated[
    str | None,
    typer.Option("--dialects", metavar="A,B", help="Other tools' protocols to speak: all, none, or some by name."),
]
Most = Annotated[int, typer.Option("--max-sessions", metavar="N", min=1, help="Clients at a time.")]
Idle = Annotated[
    float,
    typer.Option("--idle-timeout", metavar="SECONDS", min=1, help="A place ends after this long without an action."),
]
Liveness = Annotated[
    float,
    typer.Option(
        "--liveness-timeout", metavar="SECONDS", min=1, help="A place ends after this long without a heartbeat."
    ),
]
Keep = Annotated[
    float,
    typer.Option("--keep-days", metavar="DAYS", min=0, help="Uploads untouched for so long are removed; 0 keeps them."),
]
Cache = Annotated[
    int,
    typer.Option(
        "--cache", metavar="MIB", min=0, help="Memory for encoded regions of all sessions; the rest are made again."
    ),
]
Origins = Annotated[
    list[str] | None,
    typer.Option("--allow-origin", metavar="URL", help="A web site whose scripts may use the server; '*' for any."),
]
Licences = Annotated[
    str | None,
    typer.Option("--allow-licence", metavar="A,B", help="Refuse to start with models of any other licence."),
]
Level = Annotated[str, typer.Option("--log-level", metavar="debug|info|warning|error", help="What is said meanwhile.")]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 1527,
    models: Models = None,
    studies: Studies = None,
    sessions: Sessions = None,
    api_key_file: KeyFile = None,
    dialects: Dialects = None,
    max_sessions: Most = 8,
    idle_timeout: Idle = 600.0,
    liveness_timeout: Liveness = 60.0,
    keep_days: Keep = 30.0,
    cache: Cache = 512,
    allow_origin: Origins = None,
    allow_licence: Licences = None,
    device: Device = "auto",
    log_level: Level = "warning",
) -> None:
    """Serve sessions over HTTP until it is stopped; nothing that was acknowledged is lost, however it ends.

    Example: volsam serve --studies scans
    """
    if log_level not in ("debug", "info", "warning", "error"):
        raise BadInput(f"--log-level is debug, info, warning or error, got {log_level!r}")
    create_app, Settings = parts("volsam serve")
    from volsam.server.settings import read_key

    chosen: dict[str, Any] = {} if models is None else {"models": _names(models, "--models", "names or files")}
    if sessions is not None:
        chosen["sessions"] = sessions
    settings = Settings(
        host=host,
        port=port,
        studies=studies,
        key=None if api_key_file is None else read_key(api_key_file),
        dialects=_named(dialects),
        max_leases=max_sessions,
        idle_timeout=idle_timeout,
        liveness_timeout=liveness_timeout,
        keep_days=keep_days,
        encodings=cache << 20,
        origins=tuple(allow_origin or ()),
        licences=None if allow_licence is None else _names(allow_licence, "--allow-licence", "licences"),
        device=device,
        **chosen,
    )
    place = f"[{host}]" if ":" in host else host
    with listening(host, port) as at:
        address = f"http://{place}:{at.getsockname()[1]}"
        run(create_app(settings), at, lambda: say(f"volsam serves at {address} (stop with Ctrl-C)"), log_level)


def parts(command: str) -> tuple[Any, Any]:
    """`create_app` and `Settings`, or which extra is missing for the command."""
    try:
        import uvicorn  # noqa: F401

        from volsam.server import heap

        heap.forget()  # what comes next brings the libraries
        from volsam.server.app import create_app
        from volsam.server.settings import Settings
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith("volsam"):
            raise
        raise MissingExtra(command, "serve") from None
    return create_app, Settings


def run(app: Any, at: socket.socket, started: Callable[[], None], log_level: str = "warning") -> None:
    """Serve an application at a socket until it is stopped; `started` is called as soon as it takes requests."""
    import uvicorn

    from volsam.server import heap

    heap.share()
    app.state.core.models.start()
    logger = logging.getLogger("volsam")
    # Warnings are made in any case: clients are told of those about their volume.
    logger.setLevel(min(logging.getLevelName(log_level.upper()), logging.WARNING))
    for handler in logger.handlers:
        handler.setLevel(log_level.upper())
    config = uvicorn.Config(
        app,
        log_level=log_level,
        access_log=log_level == "debug",
        timeout_graceful_shutdown=30,
        server_header=False,
        lifespan="on",
    )

    class Server(uvicorn.Server):
        """Tells when it takes requests."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    Server(config).run(sockets=[at])


def listening(host: str, port: int) -> socket.socket:
    """A socket at the place, taken before anything slow is done."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as reason:
        why = getattr(reason, "strerror", None) or str(reason)
        raise BadInput(f"cannot listen on {host} port {port}: {why}; choose another with --host and --port") from None


def _names(text: str, option: str, what: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise BadInput(f"{option} takes {what} with a comma between two, got {text!r}")
    return names


def _named(dialects: str | None) -> tuple[str, ...] | None:
    if dialects in (None, "all"):
        return None
    return () if dialects == "none" else tuple(str(dialects).split(","))

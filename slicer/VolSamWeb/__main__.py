"""Start the module in a browser: `.venv-slicer/bin/python slicer/VolSamWeb scan.nii.gz`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """Read the command line, and serve until it is stopped."""
    parser = argparse.ArgumentParser(prog="VolSamWeb", description="VolSam in a browser, with 3D Slicer's libraries.")
    parser.add_argument("volume", nargs="?", type=Path, help="a volume to open; others are opened in the page")
    parser.add_argument("--server", metavar="ADDRESS", help="the volsam server to ask, by default one on this computer")
    parser.add_argument("--environment", type=Path, help="start a volsam server from this Python environment")
    parser.add_argument("--port", type=int, default=8080, help="of the page; 0 for any that is free")
    parser.add_argument("--browser", action=argparse.BooleanOptionalAction, default=True, help="open the page")
    asked = parser.parse_args()
    if asked.volume and not asked.volume.is_file():
        sys.exit(f"error: there is no file {asked.volume}: give the path of a volume, for example a .nii.gz")
    try:
        socket.create_server(("127.0.0.1", asked.port)).close()
    except (OSError, OverflowError) as error:
        sys.exit(
            f"error: port {asked.port} cannot be had ({error}): choose another by --port, or 0 for any that is free"
        )
    has_screen = sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if not has_screen:
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
    # A page is not given up because a busy processor let it wait for some seconds.
    os.environ.setdefault("WSLINK_HEART_BEAT", "0")
    try:
        from VolSamWeb.app import Unreadable, VolSamApp
    except ModuleNotFoundError as error:
        sys.exit(f"error: there is no {error.name} here: make slicer-env, then start this with .venv-slicer/bin/python")
    from VolSamLib.server_process import NotPossible

    sys.argv = sys.argv[:1]  # trame reads it, too
    app = VolSamApp()
    conversation = app.logic.conversation
    try:
        if asked.environment:
            conversation.start_server(asked.environment)
        elif asked.server:
            conversation.use_server(asked.server)
        if asked.volume:
            app.logic.open(asked.volume)
    except (Unreadable, NotPossible) as refusal:
        conversation.close()
        sys.exit(f"error: {refusal}")

    def say(**_: object) -> None:
        sys.stdout.write(f"VolSam in the browser, at http://127.0.0.1:{app.server.port}\n")
        sys.stdout.flush()

    app.server.controller.on_server_ready.add(say)
    try:
        app.server.start(
            host="127.0.0.1",
            port=asked.port,
            open_browser=asked.browser and has_screen,
            show_connection_info=False,
            timeout=0,
        )
    finally:
        conversation.close()


if __name__ == "__main__":
    main()

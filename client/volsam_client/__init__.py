"""Talk to a volsam server: clicks out, masks in.

with Server("http://127.0.0.1:1527") as server:
    session = server.upload("ct.nii.gz")
    session.add(Click(session.to_world([70, 54, 44])))
    session.write("organ.nii.gz")
"""

from volsam_client.errors import Full, LeaseEnded, Refused, ServerError, Unreachable
from volsam_client.prompts import Box, Click, Lasso, MaskHint, Scribble
from volsam_client.server import Server
from volsam_client.session import Doubt, Session

__version__ = "0.1.0"

__all__ = [
    "Box",
    "Click",
    "Doubt",
    "Full",
    "Lasso",
    "LeaseEnded",
    "MaskHint",
    "Refused",
    "Scribble",
    "Server",
    "ServerError",
    "Session",
    "Unreachable",
]

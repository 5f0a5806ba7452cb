"""What can go wrong between here and the server; each text is one line for a user.

ServerError
├── Unreachable   nobody answers at that address
├── Refused       the request was understood and refused; `status` and `code` as in the reference
├── LeaseEnded    the place on the server has ended: resume the session by its id
└── Full          all places are taken; `retry_after` seconds
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of every error that volsam_client raises on purpose."""


class Unreachable(ServerError):
    """Nobody answers."""


class Refused(ServerError):
    """The server says no, and why."""

    def __init__(self, detail: str, status: int, code: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


class LeaseEnded(Refused):
    """The lease is missing or has expired; nothing is lost."""


class Full(Refused):
    """No place is free."""

    def __init__(self, detail: str, status: int, code: str, retry_after: float) -> None:
        super().__init__(detail, status, code)
        self.retry_after = retry_after

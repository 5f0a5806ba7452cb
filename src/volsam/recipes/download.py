"""Fetching a file from an address: the only lines of volsam that use a network, and only when a user asks for it."""

from __future__ import annotations

import hashlib
import re
import ssl
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from http.client import HTTPException
from itertools import count
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit

import volsam
from volsam.errors import BadFile, BadInput
from volsam.recipes.store import require_room

SCHEMES = ("https", "file")
TIMEOUT = 60  # seconds without a byte
MEGABYTE = 1_000_000

Progress = Callable[[Sequence[int], str], Iterable[int]]
"""Goes through the megabytes to come and shows how far it is."""


def fetch(address: str, folder: Path, sha256: str | None, progress: Progress) -> tuple[Path, str]:
    """The file behind an address, in `folder`, and its SHA-256; refused unless it is the expected one, where one is.

    What was fetched in part, or is not what was expected, does not stay.
    """
    expected = None if sha256 is None else _checked(sha256)
    target = folder / file_name(address)
    try:
        with _opened(address) as answer:
            found = _copied(answer, address, target, progress)
        if expected is not None and found != expected:
            raise BadFile(
                f"{address} has the SHA-256 {found}, and {expected} was expected: it was deleted. Compare the address "
                "and the checksum with what its publisher says"
            )
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return target, found


def file_name(address: str) -> str:
    """The last part of an address, fit for a file; refused with the address if it is of no kind that is fetched."""
    parts = urlsplit(address)
    if parts.scheme not in SCHEMES:
        raise BadInput(
            f"{address} begins with none of {', '.join(f'{known}://' for known in SCHEMES)}: give an address"
        )
    return re.sub(r"[^\w.+-]+", "-", Path(unquote(parts.path)).name).lstrip(".-") or "download"


def without_secrets(address: str) -> str:
    """An address as a card may keep it: no user, no password, no query, which may hold a token."""
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _checked(sha256: str) -> str:
    given = sha256.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", given):
        raise BadInput(f"--sha256 takes the 64 hexadecimal digits of a SHA-256, got {sha256!r}")
    return given


class _StaysSafe(urllib.request.HTTPRedirectHandler):
    """Follows to other addresses only where these are as safe as the first."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The next request."""
        if urlsplit(newurl).scheme not in SCHEMES[:1]:
            raise BadFile(f"{req.full_url} leads on to {newurl}, which is not https: give another address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opened(address: str) -> Any:
    """The answer to a request; proxies are those of the environment, certificates are checked."""
    offline = "or fetch it elsewhere, copy it here and use `volsam models import`"
    request = urllib.request.Request(address, headers={"User-Agent": f"volsam/{volsam.__version__}"})
    try:
        return urllib.request.build_opener(_StaysSafe).open(request, timeout=TIMEOUT)
    except HTTPError as error:
        raise BadFile(f"{address} answers {error.code} {error.reason}: check the address, {offline}") from None
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLCertVerificationError):
            reason = f"its certificate is not trusted, {reason.verify_message}"
        elif isinstance(reason, OSError) and reason.strerror:
            reason = reason.strerror
        raise BadFile(f"{address} cannot be reached ({reason}): check the address and the network, {offline}") from None


def _copied(answer: Any, address: str, target: Path, progress: Progress) -> str:
    """Write an answer to a file, megabyte by megabyte, as long as there is room; returns its SHA-256."""
    length = answer.headers.get("Content-Length", "")
    size = int(length) if length.isdigit() else None
    if size is not None:
        require_room(target.parent, 2 * size, f"{target.name}, fetched and then stored,")
    megabytes = count() if size is None else progress(range(-(-size // MEGABYTE)), f"fetching {target.name} (MB)")
    digest, done = hashlib.sha256(), 0
    with target.open("wb") as file:
        for megabyte in megabytes:
            if size is None and megabyte % 100 == 0:
                require_room(target.parent, done + 100 * MEGABYTE, f"{target.name}, fetched and then stored,")
            try:
                piece = answer.read(MEGABYTE)
            except (HTTPException, OSError) as error:
                raise BadFile(f"{address}: the connection broke after {done:,} bytes ({error}): try again") from None
            if not piece:
                break
            file.write(piece)
            digest.update(piece)
            done += len(piece)
    if size is not None and done != size:
        raise BadFile(f"{address}: the connection broke after {done:,} of {size:,} bytes: try again")
    return digest.hexdigest()

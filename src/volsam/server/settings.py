"""What can be set about a server."""

from __future__ import annotations

from pathlib import Path

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)

from volsam.errors import BadFile, BadInput
from volsam.recipes.recipe import EMBEDDED
from volsam.recipes.store import home

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LEAST_KEY = 16  # characters


class Settings(BaseModel, frozen=True, extra="forbid"):
    """Everything a server is told when it starts; `volsam serve` has an option for each that a user needs."""

    host: str = LOOPBACK[0]
    """Where it listens; anything but this machine itself needs a key."""
    port: int = Field(default=1527, ge=0, le=65535)
    """0 takes any that is free."""
    models: tuple[str, ...] = Field(default=(EMBEDDED,), min_length=1)
    """What clients may choose; the first is the default."""
    device: str = "auto"
    """Where the networks run."""
    studies: Path | None = None
    """The one folder whose volumes may be opened by name and whose `labels` may be written."""
    linked: tuple[str, ...] = ()
    """Studies that may be links which lead out of that folder, since the user of this very machine has named them."""
    licences: tuple[str, ...] | None = None
    """Models of other licences are refused; None allows all."""
    sessions: Path = Field(default_factory=lambda: home() / "sessions")
    """Where sessions are kept, and the volumes that were uploaded for them."""
    keep_days: NonNegativeFloat = 30.0
    """Sessions of uploads that were not touched for so long are removed when the server starts; 0 keeps all."""
    key: SecretStr | None = None
    """What clients must send; None asks for none."""
    dialects: tuple[str, ...] | None = None
    """Which of the other tools' protocols are spoken; None for all."""
    origins: tuple[str, ...] = ()
    """Web sites other than this server's own page whose scripts may use it; "*" for any."""
    max_leases: PositiveInt = 8
    """Clients at a time."""
    idle_timeout: PositiveFloat = 600.0
    """Seconds without an action after which a lease ends."""
    liveness_timeout: PositiveFloat = 60.0
    """Seconds without any sign after which the lease of a client that sends heartbeats ends."""
    max_waiting: PositiveInt = 8
    """Requests of one lease that may wait at a time."""
    encodings: NonNegativeInt = 512 << 20
    """Bytes of encoded regions kept, of all sessions together; one that was given away is made again."""
    max_upload: PositiveInt | None = None
    """Bytes of an upload; None for what fits into memory."""

    @model_validator(mode="after")
    def _key_for_others(self) -> Settings:
        if self.host not in LOOPBACK and self.key is None:
            raise BadInput(
                f"--host {self.host} can be reached by other machines, which needs a key: "
                "write one into a file and give it with --api-key-file, or listen on 127.0.0.1"
            )
        if self.studies is not None and not self.studies.is_dir():
            raise BadInput(f"--studies {self.studies} is not a folder: give the one that holds the volumes")
        return self


def read_key(path: Path) -> SecretStr:
    """The key in a file: its one line, at least 16 printable characters."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as reason:
        why = getattr(reason, "strerror", None) or "it is not text"
        raise BadFile(f"cannot read the key in {path}: {why}") from None
    if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise BadInput(
            f"{path} holds no good key: one line of at least {LEAST_KEY} letters, digits and signs without blanks, "
            f"such as: python -c 'import secrets; print(secrets.token_urlsafe())' > {path}"
        )
    return SecretStr(key)

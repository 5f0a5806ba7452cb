"""What can go wrong, as the user sees it: one line that says what was asked, what came, what to do.

VolsamError
├── BadInput            a value, a file or a dataset cannot be used as given
│   ├── BadFile         a file is missing, damaged, or of a kind that is not read
│   └── PromptOutside   a click, box or scribble lies outside the volume
├── MissingExtra        an optional dependency is not installed; the message names the extra
└── NotSupported        the request is understood and deliberately not served
"""

from __future__ import annotations


class VolsamError(Exception):
    """Base of every error that volsam raises on purpose; its text is fit for a user."""


class BadInput(VolsamError):
    """A value, a file or a dataset cannot be used as given."""


class BadFile(BadInput):
    """A file is missing, damaged, or of a kind that is not read."""


class PromptOutside(BadInput):
    """A click, a box or a scribble lies outside the volume."""


class MissingExtra(VolsamError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} needs the extra "{extra}": pip install "volsam[{extra}]"')


class NotSupported(VolsamError):
    """The request is understood and deliberately not served."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch has words and types of its own for that, which are no MemoryError."""
    said = f"{type(error).__name__} {error}"
    return isinstance(error, MemoryError) or any(sign in said for sign in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "not enough memory")

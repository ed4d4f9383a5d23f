"""The one exception that means "what you gave me is wrong": programs print it and exit with code 2."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """Unusable input (a file, an option, a shape); the message is one sentence fit for a person."""

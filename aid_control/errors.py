"""The exceptions that a program turns into one sentence: unusable input (exit code 2), a run that gave up (1)."""

from __future__ import annotations

__all__ = ["Diverged", "Failed", "InputError"]


class InputError(ValueError):
    """Unusable input (a file, an option, a shape); the message is one sentence fit for a person."""


class Failed(RuntimeError):
    """A run that cannot go on for a reason that a person can act on; the message is one sentence fit for one."""


class Diverged(Failed):
    """A training that gave up, after too many batches without finite gradients."""

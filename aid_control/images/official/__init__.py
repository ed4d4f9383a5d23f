"""Official EDM and EDM2 checkpoints, read without running what they contain."""

from .reader import Official, read_official

__all__ = ["Official", "read_official"]

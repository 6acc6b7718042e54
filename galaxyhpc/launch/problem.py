"""A reason why a sweep cannot be launched, as the checks before a launch report it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A reason why a sweep cannot be launched."""

    location: str
    message: str
    advice: str = ""  # the expected value, or what to do

    def __str__(self) -> str:
        return f"{self.location}: {self.message}" + (f"; {self.advice}" if self.advice else "")

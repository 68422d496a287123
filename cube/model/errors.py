"""The kinds of failure that are exceptions. Refusals are not here: they are values (outcome.py)."""

from __future__ import annotations


class CubeError(Exception):
    """Never raised as itself."""


class Unavailable(CubeError):
    """It did not happen, and may work later: no leader, no quorum, a peer or an engine out of reach."""


class OutcomeUnknown(CubeError):
    """It may or may not have happened. Retry with the same command_id, and only with that."""


class DriverFailed(CubeError):
    """A driver could not do what it was told.

    `transient` says whether the same call may work later (engine hung, image server busy) or never
    will (image does not exist, command not found, port taken). `code` is a short snake_case word
    that ends up as the task's reason: image_missing, command_not_found, port_taken, engine_down, …
    """

    def __init__(self, code: str, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.transient = transient


class BadBytes(CubeError):
    """What was read cannot be understood. Raised by codecs and by config only."""


class BadPacket(BadBytes):
    """A datagram, frame, log record or snapshot that no codec of ours wrote."""


class ConfigError(Exception):
    """One thing that is wrong in a file: where, what, and what to try."""

    def __init__(self, path: str, problem: str, hint: str = "") -> None:
        super().__init__(f"{path}: {problem}" + (f" ({hint})" if hint else ""))
        self.path = path
        self.problem = problem
        self.hint = hint


class BadConfig(BadBytes):
    """A job file or an agent's configuration is wrong. Shape: every error of the file at once."""

    def __init__(self, errors: list[ConfigError]) -> None:
        assert errors
        super().__init__("; ".join(str(error) for error in errors))
        self.errors = errors

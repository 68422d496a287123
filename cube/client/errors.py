"""How a request can fail, as a client sees it."""

from __future__ import annotations

from collections.abc import Sequence

from cube.model.views import ProblemError, ProblemView


class ClientError(Exception):
    """Never raised as itself."""


class ApiProblem(ClientError):
    """An agent answered, and the answer is no. `code` is stable, the texts are for people."""

    def __init__(self, problem: ProblemView) -> None:
        super().__init__(problem.detail)
        self.status = problem.status
        self.code = problem.code
        self.title = problem.title
        self.detail = problem.detail
        self.hint = problem.hint
        self.errors: tuple[ProblemError, ...] = problem.errors
        self.request_id = problem.request_id
        candidates = problem.candidates
        self.candidates: tuple[str, ...] = candidates if isinstance(candidates, tuple) else ()


class NoAgent(ClientError):
    """None of the addresses answered. `causes`: (address, what happened) in the order of trying."""

    def __init__(self, causes: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{address}: {cause}" for address, cause in causes))
        self.causes = tuple(causes)


class StreamBroken(ClientError):
    """A stream ended before its end."""


class BadAnswer(ClientError):
    """What answered is no agent that this client understands."""

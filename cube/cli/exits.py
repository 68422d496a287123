"""Exit codes and the sentences of errors: `error:` what, `why:`, `try:`."""

from __future__ import annotations

import sys

OK = 0
FAILED = 1  # the operation failed, or a plan has changes
USAGE = 2  # wrong arguments, invalid file
UNPLACED = 3
NOT_FOUND = 4
CONFLICT = 5
FORBIDDEN = 6
NO_CLUSTER = 7  # no agent, no leader
TIMED_OUT = 8
INTERRUPTED = 130

_BY_STATUS = {
    400: USAGE, 401: FORBIDDEN, 403: FORBIDDEN, 404: NOT_FOUND, 409: CONFLICT, 412: CONFLICT,
    413: USAGE, 415: USAGE, 422: USAGE, 429: NO_CLUSTER, 501: USAGE, 503: NO_CLUSTER, 504: TIMED_OUT,
}  # fmt: skip
# What the API advises those who use it with curl, in words of the command line.
_COMMANDS = {
    "GET /v1/jobs lists them": "cube job ls",
    "GET /v1/nodes lists them": "cube node ls",
    "GET /v1/tasks lists them": "cube ps --all",
    "GET /v1/services lists them": "cube service ls",
    "nothing was done; try again": "again in a moment: nothing was done (cube status shows the quorum)",
}


class CommandError(Exception):
    """A command cannot go on. `code` is the exit code; empty parts are not printed."""

    def __init__(self, code: int, what: str, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.why = why
        self.hint = hint


def complain(what: str, why: str = "", hint: str = "") -> None:
    """On stderr, in the one form that all errors have. Lines of a part are kept below each other."""
    from cube.cli.output import clean

    for word, text in (("error", what), ("  why", why), ("  try", hint)):
        for number, line in enumerate(text.splitlines()):
            lead = f"{word}: " if number == 0 else " " * (len(word) + 2)
            sys.stderr.write(f"{lead}{clean(line)}\n")


def exit_code_of(status: int) -> int:
    """Of an HTTP answer that was no success."""
    return _BY_STATUS.get(status, FAILED)


def report(error: BaseException) -> int:
    """The error is told on stderr; returns the exit code. Raises what is none of ours."""
    from cube.client.errors import ApiProblem, BadAnswer, NoAgent, StreamBroken

    match error:
        case CommandError():
            complain(error.what, error.why, error.hint)
            return error.code
        case ApiProblem(code="not_an_agent"):
            complain(
                f"what answers there is no Cube agent (HTTP status {error.status})",
                hint="cube --addr HOST:PORT status    with the address of an agent (or set CUBE_ADDR)",
            )
            return NO_CLUSTER
        case ApiProblem(code="not_joined" | "not_ready"):
            complain("the agent that answers is not ready yet", error.detail, "again in a moment")
            return exit_code_of(error.status)
        case ApiProblem(code="unauthenticated"):
            complain(
                "this cluster asks for an API token",
                error.detail,
                "CUBE_TOKEN or --token; the operator's is in the data directory of the node that made\n"
                "the cluster (file operator-token), and `cube token create` there makes others",
            )
            return exit_code_of(error.status)
        case ApiProblem():
            causes = [
                f"{item.path or item.pointer}: {item.detail}"
                + (f" ({item.hint})" if item.hint else "")
                for item in error.errors
            ]
            if len(causes) == 1:
                complain(causes[0])
            elif causes:
                complain(f"{len(causes)} things are wrong", "\n".join(causes))
            else:
                hint = _COMMANDS.get(error.hint, error.hint)
                complain(error.detail, "\n".join(error.candidates), hint)
            return exit_code_of(error.status)
        case NoAgent():
            where = ", ".join(address for address, _ in error.causes)
            complain(
                f"cannot reach a Cube agent at {where}",
                "; ".join(dict.fromkeys(cause for _, cause in error.causes)),
                "cube dev                        start a throw-away cluster on this machine\n"
                "cube --addr HOST:PORT status    if the agent is elsewhere (or set CUBE_ADDR;\n"
                "                                several addresses, comma-separated, are tried in turn)\n"
                "cube --cacert FILE --token T …  if it speaks HTTPS and its data directory is not here",
            )
            return NO_CLUSTER
        case StreamBroken():
            complain(str(error) or "the stream broke off", hint="run the command again")
            return NO_CLUSTER
        case BadAnswer():
            complain(str(error), "what answers there is no Cube agent of this version")
            return NO_CLUSTER
        case _:
            raise error

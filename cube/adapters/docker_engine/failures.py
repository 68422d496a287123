"""What the engine's refusals mean. It speaks in prose, so this is a table of its phrases.

Phrases were collected from engine 20.10; later ones word them alike.
"""

from __future__ import annotations

import re

import docker.errors
import requests
import urllib3

from cube.model.errors import DriverFailed

MESSAGE_CHARS_MAX = 500  # enough for the engine's longest useful sentence; it ends up in the state

# Anything that can come out of a call when the engine is not there, hangs, or dies half-way.
WEATHER = (
    requests.RequestException,
    docker.errors.DockerException,
    urllib3.exceptions.HTTPError,
    OSError,
)

# (phrase, code, transient, hint); the first that is found counts.
_PHRASES: tuple[tuple[str, str, bool, str], ...] = (
    ("invalid reference format", "image_invalid", False, "write it as registry/name:tag"),
    ("no such image", "image_missing", False, "docker pull it on the node, or set docker.pull"),
    ("manifest unknown", "image_missing", False, "check the image's name and tag"),
    ("manifest for .* not found", "image_missing", False, "check the image's name and tag"),
    ("pull access denied", "image_missing", False, "it does not exist, or needs a login"),
    ("repository does not exist", "image_missing", False, "check the image's name"),
    ("no basic auth credentials|unauthorized", "image_denied", False, "the registry wants a login"),
    ("toomanyrequests|too many requests", "pull_failed", True, "the registry asks to wait"),
    ("port is already allocated|address already in use", "port_taken", False, ""),
    ("cannot assign requested address", "address_missing", False, "no address of this host"),
    ("exec.*docker-init.*(not found|no such file)", "init_missing", False, "install tini"),
    ("executable file not found", "command_not_found", False, ""),
    ("exec: .*no such file or directory", "command_not_found", False, ""),
    ("exec: .*(is a directory|not a directory)", "command_not_found", False, ""),
    ("exec: .*(permission denied|exec format error)", "command_not_executable", False, ""),
    ("exec format error", "command_not_executable", False, "the image is for another architecture"),
    ("no command specified", "command_not_found", False, "the image names none: set command"),
    ("unable to find (user|group)|no matching entries in (passwd|group)", "user_missing", False, ""),
    ("bind source path does not exist", "mount_missing", False, ""),
    ("error gathering device information", "device_missing", False, ""),
    ("could not select device driver", "device_missing", False, "no GPU runtime on this node"),
    ("network .* not found|no such network", "network_missing", False, ""),
    ("no space left on device", "disk_full", True, "free some space, or docker system prune"),
    ("is not running|is paused", "not_running", False, ""),
    ("client version .* is too (new|old)", "engine_down", True, "the engine has been replaced"),
    ("no such container", "gone", False, ""),
    ("is already in use by container", "name_taken", False, "a container that is not ours has it"),
)  # fmt: skip
_COMPILED = [(re.compile(p), code, transient, hint) for p, code, transient, hint in _PHRASES]

SERVER_ERROR = 500


def engine_down(reason: str) -> DriverFailed:
    return DriverFailed("engine_down", reason, transient=True)


def explain(text: str) -> tuple[str, bool, str] | None:
    """Code, transient, hint for a sentence of the engine's; None when the table lacks it."""
    lowered = text.lower()
    for phrase, code, transient, hint in _COMPILED:
        if phrase.search(lowered):
            return code, transient, hint
    return None


def refused(error: docker.errors.APIError) -> DriverFailed:
    """The engine answered no. An unknown no is lasting when it blames the request (4xx)."""
    text = shorten(str(error.explanation or error))
    known = explain(text)
    if known is None:
        status = error.response.status_code if error.response is not None else SERVER_ERROR
        is_servers_fault = status >= SERVER_ERROR
        code = "engine_error" if is_servers_fault else "bad_option"
        return DriverFailed(code, f"the engine says: {text}", transient=is_servers_fault)
    code, transient, hint = known
    return DriverFailed(code, f"{text} ({hint})" if hint else text, transient=transient)


def pull_failed(image: str, text: str) -> DriverFailed:
    """A pull ended with this text. What is not known to be final may be the network: transient."""
    known = explain(text)
    if known is None:
        return DriverFailed("pull_failed", f"cannot pull {image}: {shorten(text)}", transient=True)
    code, transient, hint = known
    return DriverFailed(
        code,
        f"cannot pull {image}: {shorten(text)}" + (f" ({hint})" if hint else ""),
        transient=transient,
    )


def shorten(text: str) -> str:
    """One line, and without the layers of prose that every runtime error is wrapped in."""
    text = " ".join(text.split())
    for wrapping in (
        r"^failed to create (shim )?task( for container)?: ",
        r"^OCI runtime create failed: ",
        r"^runc create failed: ",
        r"^unable to start container process: ",
        r"^driver failed programming external connectivity on endpoint \S+ \(\w+\): ",
    ):
        text = re.sub(wrapping, "", text)
    text = text.removesuffix(": unknown")
    return text if len(text) <= MESSAGE_CHARS_MAX else text[: MESSAGE_CHARS_MAX - 1] + "…"

"""With whose name and password an image is pulled: the group's own, else the host's docker config.

Nothing here is logged, and no message has any of it.
"""

from __future__ import annotations

import json

import docker.auth
import docker.errors
from docker.credentials.errors import StoreError

from cube.model.errors import DriverFailed

# A credential helper is somebody's program: it may be missing, fail, or answer anything. (The SDK warns of
# one that is missing, which where warnings are errors comes up here too.)
_HELPER_FAILED = (
    docker.errors.DockerException,
    StoreError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    UserWarning,
)
HOW = "write USER:PASSWORD, or the content of a docker config.json with auths"


def header_for(registry: str, login: str) -> dict[str, str]:
    """The request header that shows it to the registry; none when nobody has a login for it.

    `login` is the content of the group's registry_secret; empty: ~/.docker/config.json of the agent's
    user (or DOCKER_CONFIG's), read anew each time, its credential helpers included."""
    found = _given(login, registry) if login else _of_host(registry)
    if not found:
        return {}
    header: bytes = docker.auth.encode_header(found)
    return {"X-Registry-Auth": header.decode()}


def _given(login: str, registry: str) -> dict[str, str]:
    if not login.lstrip().startswith("{"):
        user, colon, password = login.strip().partition(":")
        if not (user and colon and password):
            raise _invalid("it is neither")
        return {"username": user, "password": password, "serveraddress": registry}
    try:
        content = json.loads(login)
        auths = docker.auth.AuthConfig.parse_auth(content["auths"], raise_on_error=True)
    except (ValueError, KeyError, TypeError, AttributeError, docker.errors.DockerException):
        raise _invalid("it has no auths that can be read") from None
    found = docker.auth.AuthConfig({"auths": auths}).resolve_authconfig(registry)
    if not found:
        raise _invalid(f"it has no login for {registry}")
    return dict(found)


def _of_host(registry: str) -> dict[str, str]:
    try:
        return dict(docker.auth.load_config().resolve_authconfig(registry) or {})
    except _HELPER_FAILED:
        raise DriverFailed(
            "login_failed",
            f"the docker config of the agent's user does not give a login for {registry}: "
            "try docker login there, or set docker.registry_secret",
            transient=True,
        ) from None


def _invalid(why: str) -> DriverFailed:
    return DriverFailed("login_invalid", f"docker.registry_secret: {why} ({HOW})", transient=False)

"""Secrets and configs between the log and who needs them: sealed on the way in, opened on the way to a
driver, on the node that runs the task and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from cube.model.cluster import ClusterState
from cube.model.errors import BadPacket, DriverFailed, Unavailable
from cube.model.launch import Launch, LaunchValue
from cube.model.stored import FINGERPRINT_BYTES, StoredKind, StoredRef
from cube.model.trust import KEY_BYTES
from cube.services.keyring import Keyring, OpenEnvelope, SealEnvelope


class StoredValues:
    """A secret is sealed for its name: an envelope that is moved to another name does not open."""

    def __init__(
        self,
        state: Callable[[], ClusterState],
        keyring: Keyring,
        open_envelope: OpenEnvelope,
        seal_envelope: SealEnvelope,
    ) -> None:
        self._state = state
        self._keyring = keyring
        self._open_envelope = open_envelope
        self._seal_envelope = seal_envelope

    def seal(self, name: str, value: bytes) -> tuple[bytes, bytes]:
        """What the log may have of a secret, and its fingerprint: equal for equal values of the name,
        without the cluster key no help in guessing. Raises Unavailable while there are no keys."""
        cluster_key = self._keyring.known.cluster_key
        ref = StoredRef(StoredKind.SECRET, name)
        key = hashlib.blake2b(
            name.encode(), key=cluster_key, digest_size=KEY_BYTES, person=b"cube-fingerprint"
        ).digest()
        fingerprint = hashlib.blake2b(value, key=key, digest_size=FINGERPRINT_BYTES).digest()
        return self._seal_envelope(cluster_key, ref.key, value), fingerprint

    def with_login(self, launch: Launch) -> Launch:
        """The launch with the login of its registry. Raises DriverFailed."""
        if launch.login_from is None:
            return launch
        login = self._text(launch.login_from, "registry_secret")
        return msgspec.structs.replace(launch, login=login, login_from=None)

    def complete(self, launch: Launch) -> Launch:
        """The launch with all values in it. Raises DriverFailed."""
        launch = self.with_login(launch)
        if not launch.env_from and not launch.files:
            return launch
        given = {key: self._text(value, f"env {key}") for key, value in launch.env_from.items()}
        files = tuple(
            msgspec.structs.replace(file, data=self._value(file.value)) for file in launch.files
        )
        # What Cube sets wins, and no group can name it: the order does not matter.
        return msgspec.structs.replace(launch, env=given | launch.env, env_from={}, files=files)

    def _text(self, value: LaunchValue, what: str) -> str:
        try:
            text = self._value(value).decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise DriverFailed(
                "secret_not_text",
                f"{what}: {value.ref} is no text; mount it as a file instead",
                transient=False,
            ) from None
        return text

    def _value(self, value: LaunchValue) -> bytes:
        stored = self._state().stored.get(value.ref.key)
        version = None
        if stored is not None:
            version = stored.at(value.version) if value.version else stored.newest
        if version is None:
            which = f"version {value.version} of " if value.version else ""
            raise DriverFailed(
                f"{value.ref.kind.value}_missing",
                f"there is no {which}{value.ref}",
                transient=False,
            )
        if value.ref.kind is StoredKind.CONFIG:
            return version.data
        try:
            return self._open_envelope(self._keyring.known.cluster_key, value.ref.key, version.data)
        except (BadPacket, Unavailable):
            # Not the cause: it would say nothing more, and nothing of this may quote a value.
            raise DriverFailed(
                "secret_sealed",
                f"{value.ref} does not open with this cluster's key; set it again",
                transient=False,
            ) from None

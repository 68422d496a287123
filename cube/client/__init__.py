"""The typed HTTP client of the API."""

from cube.client.client import JSON, TOML, Client
from cube.client.errors import ApiProblem, BadAnswer, ClientError, NoAgent, StreamBroken
from cube.client.streams import StreamedEvent

__all__ = [
    "JSON",
    "TOML",
    "ApiProblem",
    "BadAnswer",
    "Client",
    "ClientError",
    "NoAgent",
    "StreamBroken",
    "StreamedEvent",
]

"""The agent's configuration: TOML, environment and flags → one frozen Config."""

from cube.config.load import build, load, parse_address
from cube.config.settings import Config, LogLevel, Switch

__all__ = ["Config", "LogLevel", "Switch", "build", "load", "parse_address"]

"""Errors of the device, sorted by what the caller can do about them.

TectumError
├── ConfigError      fix the configuration; the message carries the path of the wrong key
├── SourceError      wait and retry: a camera, microphone or sensor feed is not there now
│   └── SourceEnded  nothing more will come (a file or recording has been played): do not retry
├── BundleError      refuse the update; the model that runs keeps running
├── WireError        keep the bytes as a dead letter; `reason` is a stable word
├── StorageError     disk is full or a database is damaged; the message says which file was set aside
└── DeliveryError    wait and retry: broker or cloud is not there now
"""

from __future__ import annotations


class TectumError(Exception):
    """Base of every error that Tectum raises on purpose."""


class ConfigError(TectumError):
    """A configuration cannot be used. `path` names the key, as in `scenes[0].camera`."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class SourceError(TectumError):
    """A source cannot be opened or read now; the host waits and retries."""


class SourceEnded(SourceError):
    """A finite source has given its last sample."""


class BundleError(TectumError):
    """A model bundle is refused: missing or changed file, wrong version, failed self-test."""


class WireError(TectumError):
    """Bytes from outside are refused. `reason` is one of `edge_agent.contract.wire.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class StorageError(TectumError):
    """A local file or database cannot be used as it is."""


class DeliveryError(TectumError):
    """A message or an upload could not be handed over now."""

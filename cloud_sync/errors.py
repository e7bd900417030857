"""Errors of the cloud, sorted by what the caller can do about them.

CloudError
├── ConfigError        fix cloud.yaml; the message carries the path of the wrong key
├── StoreError         the database cannot be used as it is: an operator has to look
│   └── StoreBusy      wait and retry: locked, full or not reachable now
├── BrokerError        wait and retry: the broker is not there, or refuses what was asked of it
├── BlobRefused        an upload cannot be taken; `status` is the HTTP status to answer with
├── ReleaseError       a bundle cannot be signed or a retraining failed; nothing was released
├── AccessRefused      not logged in, not allowed, or too many attempts; `status` as above
└── NotFound           no such thing, or none that the asker may see
"""

from __future__ import annotations


class CloudError(Exception):
    """Base of every error that the cloud raises on purpose."""


class ConfigError(CloudError):
    """cloud.yaml cannot be used. `path` names the key, as in `broker.port`."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class StoreError(CloudError):
    """The database cannot be used as it is; the message says which one and why."""


class StoreBusy(StoreError):
    """The database is locked, full or not reachable now; nothing of the transaction was kept."""


class BrokerError(CloudError):
    """The broker is not there, or refuses what was asked of it."""


class BlobRefused(CloudError):
    """An upload is refused. `offset` is how many bytes are held, where that helps the sender."""

    def __init__(self, status: int, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.offset = offset


class ReleaseError(CloudError):
    """A bundle cannot be signed, or a retraining failed; what was released before stays in force."""


class AccessRefused(CloudError):
    """A person is refused: 401 who are you, 403 not yours to do, 429 too many attempts (`retry_s`)."""

    def __init__(self, status: int, message: str, retry_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_s = retry_s


class NotFound(CloudError):
    """There is no such thing, or none that the asker may see: the two are not told apart."""

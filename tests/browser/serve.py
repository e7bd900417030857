"""The real cloud application on a free port, in a process of its own: `python -m tests.browser.serve FOLDER`.

Prints the port, then serves until SIGTERM. `FOLDER` holds a cloud.yaml.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import uvicorn

from cloud_sync.app import build, open_services
from cloud_sync.config import load


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    services = open_services(load(Path(sys.argv[1]) / "cloud.yaml"))
    uvicorn.Server(uvicorn.Config(build(services), log_level="warning", timeout_graceful_shutdown=3)).run([listener])


if __name__ == "__main__":
    main()

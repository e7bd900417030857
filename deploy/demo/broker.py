"""The demo's broker: rumqttd inside the package `iotcore`, MQTT v5 on loopback, with the users of one file.

It has no access control by topic and keeps nothing on disk: sites and tests use Mosquitto (deploy/mosquitto/).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

_CONFIG = """
id = 0
[router]
id = 0
max_connections = 64
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v5.1]
name = "v5-1"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 262144
max_inflight_count = 200
dynamic_filters = true
[v5.1.connections.auth]
"""


def write_config(path: Path, port: int, users: dict[str, str]) -> None:
    """rumqttd's configuration file for `users` (name → password)."""
    lines = [f"{json.dumps(name)} = {json.dumps(password)}\n" for name, password in sorted(users.items())]
    path.touch(mode=0o600)
    path.write_text(_CONFIG.format(port=port) + "".join(lines))


def main() -> None:
    """Run the broker in this process until it is killed: `python -m deploy.demo.broker CONFIG`."""
    from iotcore import IotCoreBroker

    IotCoreBroker(config_path=sys.argv[1]).run_forever()


if __name__ == "__main__":
    main()

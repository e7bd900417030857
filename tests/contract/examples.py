"""One example of every record of the contract; the golden files of a version are made from these, once."""

from __future__ import annotations

import hashlib

import msgspec

from edge_agent.contract import event, identity, manifest, status

DIGEST = hashlib.sha256(b"example").hexdigest()
EVENT_ID = "0192d4e0-7f1c-7a3b-8c2d-5e6f708192a3"


def message(body: event.Body, seq: int = 7) -> event.Message:
    """`body` in an envelope of the device `porch`."""
    return event.Message(
        device="porch",
        stream="0123456789abcdef0123456789abcdef",
        seq=seq,
        boot="b3c1",
        id=EVENT_ID,
        wall_ns=1_790_000_000_000_000_000,
        wall_quality="ntp",
        monotonic_ns=123_456_789_000,
        body=body,
    )


EVENT = event.Event(
    scene="yard",
    label="fire",
    phase="new",
    onset_step=240,
    step=242,
    step_ms=500,
    revision=1,
    score=0.91,
    peak=0.93,
    threshold=0.6,
    classes={"fire": 0.88, "siren": 0.01},
    shares=event.Shares(vision=2.1, audio=0.4, sensors=1.2, none=-3.0),
    quality=event.Quality(present=("vision", "audio", "sensors"), dropped={"cam": 3}),
    trace=(event.ScorePoint(step=240, score=0.7), event.ScorePoint(step=241, score=0.93)),
    heat=event.Heat(rows=2, cols=3, values=bytes([0, 10, 200, 255, 3, 4])),
    bundle=DIGEST,
    calibrating=True,
    priority="critical",
)

EXAMPLES: dict[str, msgspec.Struct] = {
    "message-event": message(EVENT),
    "message-intrusion-end": message(
        event.Event(
            scene="yard",
            label="intrusion",
            phase="end",
            onset_step=240,
            step=260,
            step_ms=500,
            revision=4,
            score=0.1,
            peak=0.8,
            threshold=0.5,
            origin="rule",
            rule="fence",
        ),
        seq=8,
    ),
    "message-evidence": message(
        event.Evidence(
            scene="yard", role="clip", sha256=DIGEST, size=91_235, media_type="video/mp4", start_ns=118, end_ns=133
        ),
        seq=9,
    ),
    "message-gap": message(event.Gap(first=2, last=5, count=3, priority="normal", reason="full"), seq=10),
    "message-rollout": message(event.Rollout(bundle=DIGEST, state="refused", reason="self-test: off by 0.4"), seq=11),
    "ack": event.Ack(stream="0123456789abcdef0123456789abcdef", upto=10, holes=((3, 3), (5, 6))),
    "state": status.State(
        device="porch", online=True, boot="b3c1", agent="0.1.0", bundle=DIGEST, engine="openvino", scenes=("yard",)
    ),
    "health": status.Health(
        device="porch",
        boot="b3c1",
        bundle=DIGEST,
        uptime_s=61.5,
        rss_bytes=180_000_000,
        cpu_share=0.31,
        steps=120,
        step_p50_ms=3.1,
        step_p99_ms=5.2,
        outbox_rows=0,
        outbox_bytes=0,
        evicted=0,
        wall_quality="ntp",
        sources=(status.SourceStatus(name="cam", state="live", samples=600, dropped=2, rate_hz=10.0),),
        restarts={"source:cam": 1},
    ),
    "health-scenes": status.Health(
        device="porch",
        boot="b3c1",
        bundle=DIGEST,
        uptime_s=260_000.0,
        rss_bytes=180_000_000,
        cpu_share=0.31,
        steps=520_000,
        step_p50_ms=3.1,
        step_p99_ms=5.2,
        outbox_rows=0,
        outbox_bytes=0,
        evicted=0,
        wall_quality="ntp",
        scenes=(
            status.SceneStatus(
                name="yard",
                calibrating=False,
                threshold=0.93,
                blocks=861,
                alerts=1,
                memory={"vision": 211, "audio": 96, "sensors": 0},
                drift={"vision": 0.4, "audio": 5.2, "sensors": 0.0},
            ),
        ),
    ),
    "desired": status.Desired(bundle=DIGEST),
    "manifest": manifest.Manifest(
        family="tectum-default",
        name="first",
        counter=1,
        created="2026-11-22T12:00:00Z",
        classes=("fire", "gunshot"),
        vision=manifest.VisionSpec(width=240, height=160),
        audio=manifest.AudioSpec(),
        sensors=manifest.SensorSpec(quantities=("temperature",), units=("°C",)),
        thresholds=manifest.Thresholds(on=0.6, off=0.4, classes={"fire": 0.5}),
        files={"vision.onnx": manifest.FileRef(sha256=DIGEST, size=12)},
    ),
    "identity": identity.Identity(
        site="home",
        device="porch",
        broker=identity.Broker(host="127.0.0.1", port=1883, username="porch", password="secret", tls=False),
        cloud=identity.Cloud(url="http://127.0.0.1:8080", token="secret"),
    ),
}

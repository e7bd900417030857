"""`/usr/bin/python3 rtsp_process.py FILE PORT [USER PASSWORD]`: an RTSP server that plays FILE for ever at /live.

A program of its own, because the bindings of GStreamer belong to the distribution's Python. The whole file is
taken apart once; what is then sent are its own access units with times that go on rising from loop to loop, so
that picture and sound stay together and a client sees one endless stream. It says `ready` on stdout.
"""

from __future__ import annotations

import sys
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

# Parameter sets go by SDP alone: with config-interval=-1 GStreamer repeats them before each slice of a key picture,
# and a receiver takes the slices for pictures of their own.
PAYLOADERS = {
    "video/x-h264": "rtph264pay",
    "video/x-h265": "rtph265pay",
    "image/jpeg": "rtpjpegpay",
    "audio/mpeg": "rtpmp4gpay",
    "audio/x-mulaw": "rtppcmupay",
    "audio/x-alaw": "rtppcmapay",
}


class Track:
    """The access units of one stream: caps, and (pts, dts, duration, bytes) each."""

    def __init__(self, caps: Any) -> None:
        self.caps = caps
        self.units: list[tuple[int, int, int, bytes]] = []

    @property
    def payloader(self) -> str:
        name = self.caps.get_structure(0).get_name()
        if name not in PAYLOADERS:
            sys.exit(f"no payloader for {name}; there are {', '.join(PAYLOADERS)}")
        return PAYLOADERS[name]

    @property
    def end(self) -> int:
        return max(pts + duration for pts, _, duration, _ in self.units)


def take_apart(file: str) -> list[Track]:
    """Every video and audio stream of the file, parsed, in memory."""
    pipeline = Gst.parse_launch("filesrc name=file ! parsebin name=parts")
    pipeline.get_by_name("file").set_property("location", file)
    tracks: list[Track] = []

    def arrived(sink: Any) -> Any:
        sample = sink.emit("pull-sample")
        buffer = sample.get_buffer()
        track = next((each for each in tracks if each.caps.is_equal(sample.get_caps())), None)
        if track is None:
            track = Track(sample.get_caps())
            tracks.append(track)
        dts = buffer.dts if buffer.dts != Gst.CLOCK_TIME_NONE else buffer.pts
        track.units.append((buffer.pts, dts, buffer.duration, buffer.extract_dup(0, buffer.get_size())))
        return Gst.FlowReturn.OK

    def linked(_: Any, pad: Any) -> None:
        sink = Gst.ElementFactory.make("appsink")
        sink.set_property("sync", False)
        sink.set_property("async", False)  # added while running: it must not make the pipeline wait for it
        sink.set_property("emit-signals", True)
        sink.connect("new-sample", arrived)
        pipeline.add(sink)
        sink.sync_state_with_parent()
        pad.link(sink.get_static_pad("sink"))

    pipeline.get_by_name("parts").connect("pad-added", linked)
    pipeline.set_state(Gst.State.PLAYING)
    wanted = Gst.MessageType.EOS | Gst.MessageType.ERROR
    message = pipeline.get_bus().timed_pop_filtered(60 * Gst.SECOND, wanted)
    pipeline.set_state(Gst.State.NULL)
    if message is None or message.type == Gst.MessageType.ERROR or not tracks:
        sys.exit(f"cannot take {file} apart: {message.parse_error() if message else 'timed out'}")
    return tracks


class Feed:
    """Gives one client's appsrc its next access unit whenever it asks."""

    def __init__(self, track: Track, loop_ns: int) -> None:
        self._track = track
        self._loop_ns = loop_ns
        self._next = 0

    def need_data(self, source: Any, _: int) -> None:
        loop, index = divmod(self._next, len(self._track.units))
        self._next += 1
        pts, dts, duration, data = self._track.units[index]
        buffer = Gst.Buffer.new_wrapped(data)
        buffer.pts = pts + loop * self._loop_ns
        buffer.dts = dts + loop * self._loop_ns
        buffer.duration = duration
        source.emit("push-buffer", buffer)


def factory_of(tracks: list[Track]) -> Any:
    loop_ns = max(track.end for track in tracks)
    factory = GstRtspServer.RTSPMediaFactory()
    parts = [
        f"appsrc name=source{index} format=time ! queue ! {track.payloader} name=pay{index} pt={96 + index}"
        for index, track in enumerate(tracks)
    ]
    factory.set_launch("( " + " ".join(parts) + " )")

    def configure(_: Any, media: Any) -> None:
        for index, track in enumerate(tracks):
            source = media.get_element().get_child_by_name(f"source{index}")
            source.set_property("caps", track.caps)
            feed = Feed(track, loop_ns)
            source.connect("need-data", feed.need_data)

    factory.connect("media-configure", configure)
    return factory


def protect(server: Any, factory: Any, user: str, password: str) -> None:
    """Digest, as most cameras ask for."""
    auth = GstRtspServer.RTSPAuth()
    auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
    token = GstRtspServer.RTSPToken()
    token.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "viewer")
    auth.add_digest(user, password, token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("viewer", GstRtspServer.RTSP_PERM_MEDIA_FACTORY_ACCESS, True)
    permissions.add_permission_for_role("viewer", GstRtspServer.RTSP_PERM_MEDIA_FACTORY_CONSTRUCT, True)
    factory.set_permissions(permissions)


def main() -> None:
    file, port, *credentials = sys.argv[1:]
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = factory_of(take_apart(file))
    if credentials:
        protect(server, factory, *credentials)
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        sys.exit(f"cannot listen on 127.0.0.1:{port}")
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()

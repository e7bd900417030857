"""Building blocks of the pages: safe elements, and the Vue components in `web/`.

Text from outside (labels, notes, device names) reaches the page only as text nodes, attributes and component
properties. Nothing in the dashboard makes markup out of strings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement
from nicegui.events import GenericEventArguments

WEB = Path(__file__).parent / "web"


class Tag(TextElement):
    """An HTML element with classes, text and attributes, each set as a value and never parsed."""

    def __init__(self, tag: str, classes: str = "", text: str = "", **attributes: Any) -> None:
        super().__init__(tag=tag, text=text)
        self.classes(classes)
        for name, value in attributes.items():
            self._props[name.rstrip("_").replace("_", "-")] = value


def icon(name: str) -> None:
    """A decorative icon of the bundled font; screen readers skip it."""
    Tag("q-icon", name=name, aria_hidden="true")


def refill(container: ui.element, build: Callable[[], object]) -> None:
    """Make the content of a container anew."""
    container.clear()
    with container:
        build()


class _Component(ui.element, component=None, esm={"tectum": "web"}):
    """A Vue component whose properties are plain data."""

    def show(self, **data: object) -> None:
        """Set properties; sends them to the browser only if they changed."""
        new = {name: value for name, value in data.items() if self._props.get(name, ...) != value}
        if new:
            self._props.update(new)


def _payload(handler: Callable[[dict[str, Any]], Any]) -> Callable[[GenericEventArguments], Any]:
    return lambda event: handler(event.args if isinstance(event.args, dict) else {})


class Moment(_Component, component="web/tectum_moment.js"):
    """A time: `form` is moment (time, with the day if it is not today), full, or ago."""

    def __init__(self, ms: int, form: str = "moment") -> None:
        super().__init__()
        self.show(ms=ms, form=form)


class Mix(_Component, component="web/tectum_shares.js"):
    """Shares of the modalities: a bar, or with `full` a chart."""


class Clip(_Component, component="web/tectum_clip.js"):
    """The clip player."""


class Heat(_Component, component="web/tectum_heat.js"):
    """The snapshot under its heat map."""


class Tracks(_Component, component="web/tectum_tracks.js"):
    """What was measured, on one time axis."""


class VerdictPanel(_Component, component="web/tectum_verdict.js"):
    """Verdict buttons, note and history; `on_judge` gets {verdict, note} as the browser sent it: check it."""

    def __init__(self, on_judge: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__()
        self.on("judge", _payload(on_judge))


class AlertList(_Component, component="web/tectum_list.js"):
    """The list; `on_judge` gets {id, verdict} as the browser sent it: check it."""

    def __init__(self, on_judge: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__()
        self.on("judge", _payload(on_judge))

    def merge(self, changed: list[dict[str, object]], gone: list[str], rows: list[dict[str, object]]) -> None:
        """Show what changed and take away what left; `rows` is the whole list, for a browser that reconnects."""
        with self._props.suspend_updates():  # it is the difference that travels now
            self._props["rows"] = rows
        self.run_method("merge", changed, gone)

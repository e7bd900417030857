"""Write docs/reference/ from the code: every configuration key, message field, command and metric in its own words.

Run from the root of the repository: `python scripts/reference.py`; `--check` only says what is out of date.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import io
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
REFERENCE = ROOT / "docs" / "reference"
_MADE = "<!-- made by scripts/reference.py; do not edit -->\n"


@dataclass(frozen=True)
class Field:
    """One field of a record: its type and default as the source writes them, and the comment beside it."""

    name: str
    type: str
    default: str
    comment: str


def records(path: Path, names: set[str] | None = None) -> Iterator[tuple[str, str, list[Field]]]:
    """Name, docstring and fields of each Struct in a source file, in its order."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef) or not any("Struct" in ast.unparse(base) for base in node.bases):
            continue
        if node.name.startswith("_") or (names is not None and node.name not in names):
            continue
        fields = [_field(item, lines) for item in node.body if isinstance(item, ast.AnnAssign)]
        yield node.name, ast.get_docstring(node) or "", fields


def _field(item: ast.AnnAssign, lines: list[str]) -> Field:
    last = lines[(item.end_lineno or item.lineno) - 1]
    comment = last.partition("#:")[2].strip()
    if not comment:
        above: list[str] = []
        for line in reversed(lines[: item.lineno - 1]):
            if not line.strip().startswith("#:"):
                break
            above.insert(0, line.strip().removeprefix("#:").strip())
        comment = " ".join(above)
    kind = re.sub(r"Annotated\[(.+), Meta\((.+)\)\]", r"\1 (\2)", ast.unparse(item.annotation))
    default = "" if item.value is None else ast.unparse(item.value)
    default = re.sub(r".*lambda: (.+)\)$", r"\1", default)
    default = re.sub(r"(?<=\w)\(\)$", "", default)
    return Field(ast.unparse(item.target), kind, default, comment)


def table(fields: list[Field]) -> str:
    """A Markdown table of fields."""
    rows = ["| key | type | default | |", "| --- | --- | --- | --- |"]
    for field in fields:
        cells = [f"`{field.name}`", f"`{field.type}`", f"`{field.default}`" if field.default else "required"]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, field.comment]) + " |")
    return "\n".join(rows)


def section(path: Path, names: set[str] | None = None, depth: str = "##", title: str = "") -> str:
    """Every record of a source file as a section."""
    parts = [
        f"{depth} {title or name}\n\n{_prose(text)}\n\n{table(fields) if fields else ''}\n"
        for name, text, fields in records(path, names)
    ]
    return "\n".join(parts)


def _prose(text: str) -> str:
    return textwrap.dedent(text).strip()


def configuration() -> str:
    """Keys of the device's file, of each driver and of the cloud's file."""
    drivers = []
    for path in sorted((ROOT / "edge_agent" / "sources").glob("*.py")):
        made = [part for part in records(path) if part[2]]
        if made and path.stem != "recording":  # its records are a file format, not options
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            drivers.append(f"### driver: {path.stem}\n\n{doc.splitlines()[0] if doc else ''}\n")
            drivers += [f"#### {name}\n\n{_prose(text)}\n\n{table(fields)}\n" for name, text, fields in made]
    return "\n".join(
        [
            "# Configuration\n",
            "The device reads one YAML file: `edge-agent check FILE` validates it, `edge-agent schema` prints its",
            "JSON Schema for editors. `${env:NAME}` and `${file:PATH}` stand for secrets. Unknown keys are errors.\n",
            "# The device\n",
            section(ROOT / "edge_agent" / "config.py"),
            "# Options of the drivers\n",
            *drivers,
            "# The identity file\n",
            "Made by `cloud-sync enrol DEVICE`; nobody writes it by hand.\n",
            section(ROOT / "edge_agent" / "contract" / "identity.py"),
            "# The cloud\n",
            section(ROOT / "cloud_sync" / "config.py"),
        ]
    )


def messages() -> str:
    """Topics and every record on the wire."""
    contract = ROOT / "edge_agent" / "contract"
    topics = """
| topic | direction | what | retained |
| --- | --- | --- | --- |
| `tectum/v1/<site>/<device>/up/event` | device → cloud | `Message` with an `Event`, `Evidence` or `Gap` | no |
| `tectum/v1/<site>/<device>/up/rollout` | device → cloud | `Message` with a `Rollout` | no |
| `tectum/v1/<site>/<device>/up/health` | device → cloud | `Health`, every 30 s | no |
| `tectum/v1/<site>/<device>/up/state` | device → cloud | `State`; the last will says `online: false` | yes |
| `tectum/v1/<site>/<device>/down/ack` | cloud → device | `Ack`, after the cloud's commit | no |
| `tectum/v1/<site>/<device>/down/desired` | cloud → device | `Desired`, a hint that is not trusted | yes |

MQTT v5, QoS 1, client id = user name = device. A payload is one JSON message, or a zstd frame with a JSON array of
messages; 128 KiB at most, 1 MiB when unpacked, 16 levels deep, finite numbers only. JSON Schemas are in
`edge_agent/contract/schema/`.
"""
    parts = ["# Messages\n", topics]
    for name, title in (("event", "Durable messages"), ("status", "Status"), ("manifest", "The bundle's manifest")):
        parts += [f"# {title}\n", section(contract / f"{name}.py")]
    return "\n".join(parts)


def commands() -> str:
    """Every command of every program with its arguments."""
    parts = ["# Commands\n"]
    programs = (
        ("edge-agent", "edge_agent.__main__"),
        ("cloud-sync", "cloud_sync.__main__"),
        ("python -m models", "models.__main__"),
    )
    for program, module in programs:
        parser = importlib.import_module(module).build_parser()
        parts += [f"# {program}\n", _prose(parser.description or ""), ""]
        parts += [f"```\n{_prose(parser.epilog)}\n```\n"] if parser.epilog else []
        for name, words, command in _subcommands(parser):
            rows = [_argument(action) for action in command._actions if action.dest not in ("help", "==SUPPRESS==")]
            table = ["| argument | default | |", "| --- | --- | --- |", *filter(None, rows), ""]
            parts += [f"## {program} {name}\n", f"{words[:1].upper()}{words[1:]}.\n", *(table if any(rows) else [])]
    return "\n".join(parts)


def _subcommands(
    parser: argparse.ArgumentParser, prefix: str = ""
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, child in action.choices.items():
                yield f"{prefix}{name}", words.get(name, "").rstrip("."), child
                yield from _subcommands(child, f"{prefix}{name} ")


def _argument(action: argparse.Action) -> str:
    if isinstance(action, argparse._SubParsersAction):
        return ""
    value = "" if action.nargs == 0 else f" {action.metavar or '|'.join(action.choices or ()) or action.dest.upper()}"
    name = f"{action.option_strings[-1]}{value}" if action.option_strings else value.strip()
    flag = action.nargs == 0 or action.default is None or action.default == argparse.SUPPRESS
    default = "" if flag or "default:" in (action.help or "") else f"`{action.default}`"
    if not action.option_strings:
        default = "required" if action.nargs not in ("?", "*") else ""
    # A default that is this machine's own (the interpreter, a path) is said by the help text alone.
    default = "" if sys.prefix in default or str(ROOT) in default else default
    name = name.replace("|", "\\|")
    return f"| `{name}` | {default} | {(action.help or '').replace('|', '/')} |".replace("%%", "%")


def metrics() -> str:
    """Every Prometheus metric of the agent with its own help text."""
    source = (ROOT / "edge_agent" / "health.py").read_text(encoding="utf-8")
    rows = ["| metric | kind | labels | |", "| --- | --- | --- | --- |"]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or len(node.args) < 2:
            continue
        first, text = node.args[0], node.args[1]
        if not (isinstance(first, ast.Constant) and str(first.value).startswith("tectum_")):
            continue
        if not isinstance(text, ast.Constant):
            continue
        kind = ast.unparse(node.func).rpartition(".")[2]
        rest = [ast.literal_eval(arg) for arg in node.args[2:3] if isinstance(arg, ast.Tuple | ast.List)]
        labels = ", ".join(f"`{label}`" for label in (rest[0] if rest else ()))
        rows.append(f"| `{first.value}` | {kind} | {labels} | {text.value} |")
    intro = "The agent serves them on loopback at `http://127.0.0.1:9464/metrics` (`health.port`).\n"
    return "\n".join(["# Metrics\n", intro, *rows, ""])


def main() -> int:
    """Write the pages, or with --check say which are out of date (exit 1)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    check = parser.parse_args().check
    stale = []
    for page in (configuration, messages, commands, metrics):
        path = REFERENCE / f"{page.__name__}.md"
        with redirect_stdout(io.StringIO()):
            text = _MADE + page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

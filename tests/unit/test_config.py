"""The configuration is right to the key, or the error says which key, what was expected and what to do."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import jsonschema
import pytest
import yaml

from edge_agent import config, sources
from edge_agent.clock import SystemClock
from edge_agent.errors import ConfigError

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
SMALL = """
version: 1
sources: [{name: cam, driver: camera, options: {url: clip.mp4}}]
scenes: [{name: porch, camera: cam}]
"""


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_and_fit_the_schema(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text()
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    for line in text.split("${file:")[1:]:
        text = text.replace(line.partition("}")[0], str(secret))
    monkeypatch.setenv("PORCH_CAM_PASSWORD", "hush")
    loaded = config.parse(text, tmp_path)
    assert loaded.scenes
    for source in loaded.sources:
        sources.create(source, SystemClock())  # the drivers take their options
    assert "${" not in json.dumps([source.options for source in loaded.sources])
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(json.dumps(config.schema())))


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ("- 1", "", "expected a mapping"),
        ("a: [", "", "not YAML"),
        (changed(SMALL, "version: 1", "version: 2"), "version", "1"),
        (changed(SMALL, "camera: cam", "camra: cam"), "scenes[0]", "camra"),
        (changed(SMALL, "camera: cam", "camera: attic"), "scenes[0].camera", "there are cam"),
        (changed(SMALL, ", camera: cam", ""), "scenes[0]", "needs a camera"),
        (changed(SMALL, "name: porch", "name: Porch!"), "scenes[0].name", "regex"),
        (SMALL + "model: {threads: 0}", "model.threads", ">= 1"),
        (SMALL + "model: {engine: magic}", "model.engine", "magic"),
        (SMALL + "evidence: {pre_s: soon}", "evidence.pre_s", "float"),
        (SMALL + "health: {port: 70000}", "health.port", "65535"),
        (SMALL + "health: {port: ${env:TECTUM_UNSET}}", "", "not YAML"),
        (SMALL + "log: {level: '${env:TECTUM_UNSET}'}", "log.level", "TECTUM_UNSET"),
        (SMALL + "log: {level: '${file:/nowhere/at/all}'}", "log.level", "/nowhere/at/all"),
        (
            changed(SMALL, "camera: cam", "camera: cam, masks: [[[0, 0], [1, 2], [1, 1]]]"),
            "scenes[0].masks[0][1][1]",
            "<= 1.0",
        ),
        (
            changed(SMALL, "camera: cam", "camera: cam, masks: [[[0, 0], [1, 1]]]"),
            "scenes[0].masks[0]",
            "length >= 3",
        ),
    ],
)
def test_wrong_key_is_named(text: str, path: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, Path("/"))
    assert caught.value.path.startswith(path) or not path
    assert says in str(caught.value)


def test_names_must_be_unique() -> None:
    twice = changed(SMALL, "sources: [", "sources: [{name: cam, driver: csv}, ")
    with pytest.raises(ConfigError, match=r"sources\[1\].name: source name 'cam' is taken"):
        config.parse(twice, Path("/"))


def test_rule_names_must_be_unique() -> None:
    rule = "{name: gate, polygon: [[0,0],[1,0],[1,1]]}"
    text = changed(SMALL, "camera: cam", f"camera: cam, rules: [{rule}, {rule}]")
    with pytest.raises(ConfigError, match=r"scenes\[0\].rules\[1\].name: rule name 'gate' is taken"):
        config.parse(text, Path("/"))


def test_rules_need_a_camera() -> None:
    text = textwrap.dedent("""
        version: 1
        sources: [{name: mic, driver: microphone}]
        scenes: [{name: porch, microphone: mic, rules: [{name: yard, polygon: [[0,0],[1,0],[1,1]]}]}]
    """)
    with pytest.raises(ConfigError, match=r"scenes\[0\].rules: an intrusion rule needs a camera"):
        config.parse(text, Path("/"))


def test_secrets_are_looked_up_and_paths_anchored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TECTUM_TEST_URL", "rtsp://x/y")
    text = changed(SMALL, "clip.mp4", "'${env:TECTUM_TEST_URL}'") + "data_dir: state\nidentity: id.yaml\n"
    path = tmp_path / "site.yaml"
    path.write_text(text)
    loaded = config.load(path)
    assert loaded.sources[0].options["url"] == "rtsp://x/y"
    assert loaded.data_dir == tmp_path / "state"
    assert loaded.identity == tmp_path / "id.yaml"


def test_a_file_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="see examples/"):
        config.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cloud-sync enrol"):
        config.load_identity(tmp_path / "none.yaml")


def test_an_identity_with_a_wrong_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "id.yaml"
    path.write_text("site: home\ndevice: porch\n")
    with pytest.raises(ConfigError, match="not an identity file"):
        config.load_identity(path)

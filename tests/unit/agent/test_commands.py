"""The commands by their front door: exit codes, and errors that say which key and what to do."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from edge_agent import doctor
from edge_agent.__main__ import build_parser, main
from edge_agent.config import load
from tests.parts.agent import simulated
from tests.parts.bundle import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def changed(config: Path, **keys: object) -> Path:
    tree = msgspec.yaml.decode(config.read_bytes())
    config.write_bytes(msgspec.yaml.encode(tree | keys))
    return config


def test_check_says_what_a_configuration_amounts_to(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(simulated(tmp_path, bundle))]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ok\n")
    for word in ("sim (synthetic)", "hall", "tiny-0", "box at http://127.0.0.1", str(tmp_path / "data")):
        assert word in out
    assert "geheim" not in out


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"sources": [{"name": "sim", "driver": "sythetic"}]}, "sources[sim].driver: no driver 'sythetic'"),
        (
            {"sources": [{"name": "sim", "driver": "synthetic", "options": {"sed": 1}}]},
            "sources[sim].options: Object contains unknown field `sed`",
        ),
        ({"evidence": {"pre_s": -1}}, "evidence.pre_s"),
        ({"identity": "nowhere.yaml"}, "cloud-sync enrol"),
        ({"scenes": [{"name": "hall", "camera": "door"}]}, "scenes[0].camera: no source is named 'door'"),
    ],
)
def test_check_names_the_wrong_key(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, object], told: str
) -> None:
    assert main(["check", str(changed(simulated(tmp_path, bundle), **keys))]) == 2
    assert told in capsys.readouterr().err


def test_a_bundle_that_is_not_there_is_no_matter_of_configuration(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(simulated(tmp_path, bundle), model={"bundle": str(tmp_path)})
    assert main(["check", str(config)]) == 3
    assert "manifest.json" in capsys.readouterr().err


def test_replay_of_no_recording_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path)]) == 3
    assert "edge-agent record" in capsys.readouterr().err


def test_schema_is_the_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert "Config" in json.loads(capsys.readouterr().out)["$defs"]


def test_a_wrong_command_line_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rum"])
    assert ended.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_the_help_tells_the_exit_codes() -> None:
    text = build_parser().format_help()
    for code in ("  0 ", "  1 ", "  2 ", "  3 ", "  70 "):
        assert code in text


def test_help_does_not_wait_for_libraries() -> None:
    code = "import sys; from edge_agent.__main__ import build_parser; build_parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "cv2", "av", "openvino", "paho"} & set(done.stdout.split())


# --- doctor ---


def states(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings}


def test_the_doctor_looks_at_the_machine_without_a_site(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("engines", "codecs", "cameras", "microphones", "clock", "drivers"):
        assert word in out


def test_the_doctor_says_what_to_do_about_what_is_missing(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = simulated(tmp_path, bundle)
    (tmp_path / "identity.yaml").chmod(0o644)
    assert main(["doctor", str(config)]) == 1
    found = doctor.examine(load(config))
    seen = states(found)
    assert seen["bundle"] == seen["source sim"] == seen["disk"] == seen["data_dir"] == "ok"
    assert seen["identity"] == seen["broker"] == seen["cloud"] == "missing"
    assert seen["updates"] == "note"
    remedies = {finding.what: finding.remedy for finding in found}
    assert remedies["identity"] == f"chmod 600 {tmp_path / 'identity.yaml'}"
    assert all(finding.remedy for finding in found if finding.state == "missing")
    assert "geheim" not in capsys.readouterr().out


def test_the_doctor_finds_a_disk_that_is_too_small_and_a_folder_it_may_not_use(tmp_path: Path, bundle: Path) -> None:
    config = load(changed(simulated(tmp_path, bundle), identity=None, evidence={"disk_mb": 1 << 40}))
    assert states(doctor.examine(config))["disk"] == "missing"


def test_the_doctor_finds_a_source_that_is_not_there(tmp_path: Path, bundle: Path) -> None:
    source = {"name": "sim", "driver": "camera", "options": {"url": str(tmp_path / "no.mp4")}}
    config = load(changed(simulated(tmp_path, bundle), identity=None, sources=[source]))
    findings = {finding.what: finding for finding in doctor.examine(config)}
    assert findings["source sim"].state == "missing"
    assert "no.mp4" in findings["source sim"].detail


def test_the_doctor_tells_a_wrong_certificate_from_a_missing_server(tmp_path: Path) -> None:
    certificate = _self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            for _ in range(2):
                line, _ = server.accept()
                try:
                    with line, context.wrap_socket(line, server_side=True) as secure:
                        secure.recv(1)
                except OSError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        unknown = doctor.reach("broker", "localhost", port, tls=True, ca_pem="")
        known = doctor.reach("broker", "localhost", port, tls=True, ca_pem=certificate[0].read_text())
        thread.join(10)
    assert (unknown.state, known.state) == ("missing", "ok")
    assert "certificate" in unknown.detail
    assert "CA" in unknown.remedy


def _self_signed(folder: Path) -> tuple[Path, Path]:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    os.chmod(paths[1], 0o600)
    return paths

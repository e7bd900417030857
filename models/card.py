"""The model card of a bundle, written from its figures: nothing in it is typed by hand that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from models.config import CLASSES

_SETS = {
    "esc10": "ESC-10 (Piczak 2015), CC BY 3.0; folds 1–3 train, 4 dev; two CC Sampling+ clips left out",
    "sesa": "SESA (Spadini 2019), CC BY 4.0; split by `use`, near duplicates kept together",
    "sample_videos": "Intel sample videos (CC BY 4.0), OpenCV vtest (Apache-2.0); last quarter of each film is dev",
    "fire_video": "FURG fire video, one clip (CC0 1.0); last quarter is dev",
    "occupancy": "UCI Occupancy Detection (Candanedo & Feldheim 2016), CC BY 4.0; datatraining train, datatest dev",
    "nab": "NAB ambient temperature (MIT), as a background level; labelled failures left out",
    "site": "a site's own recordings (`--site`); a quarter of the groups, and of each film, is dev",
}
#: What simulated sites hold and no free recording shows.
_SYNTHESISED = ("glass_break", "alarm", "fight", "intrusion")


def write(figures: Mapping[str, Any], beside: Sequence[Mapping[str, Any]] = ()) -> str:
    """Markdown. `beside`: figures of trainings that differ in nothing but their seed."""
    lines = [
        f"# Tectum model “{figures['preset']}”",
        "",
        "An anomaly score for one place, fused from picture, sound and sensors, any of which may be missing.",
        *_claimed(figures),
        "",
        "## Use",
        "Meant for: a hint to a person, with its evidence, at a fixed camera, microphone and room sensors.",
        "Not meant for: life safety (it replaces no smoke detector or alarm system), identifying or judging people,",
        "action without a person in between, moving cameras.",
        "",
        "## Data",
        *([f"* {_SETS[name]}" for name in figures["sets"]] or ["* no recorded data: **simulated parts alone**"]),
        "* generated: the simulated site, flames, warm stills, misshapen or too fast objects, sensor traces,",
        "  thunder, slammed doors, knocks and hammering (as sounds that are no threat)",
        "",
        "Nothing else trained the weights. `fire_images` (rights not cleared) is for evaluation only.",
        "No set has all three modalities together: fused episodes are composed from parts of one split.",
        *([f"Mixture of the composed episodes: {figures['mixture']}."] if figures.get("mixture") else []),
        "",
        *([*figures["balance"], ""] if figures.get("balance") else []),
        *_measured(figures),
        *_spread([figures, *beside]),
        *_calibrated(figures.get("calibration", {})),
        "## Limits",
        f"* {'One real fire film' if 'fire_video' in figures['sets'] else 'No real fire'} trained the eyes; all "
        "other fire is generated. Far fire, or smoke alone, is missed.",
        "* Knocks, hammering and footsteps in echoing halls pass for blasts or shots more than other sounds do.",
        "* Presence in a room is weak evidence by design and never an alert by itself.",
        "* Sirens are often harmless; the class says what is heard, not that something is wrong.",
        "* Figures on composed or simulated data say that the parts work together, not how a site will be.",
        "* Thresholds come from simulated quiet sites until a scene has hours of its own.",
        "",
        "## Privacy",
        "The embeddings hold no picture and no speech that can be played back. No person is identified. The training",
        "films show people in public or posed for a sample; no face is a label.",
        "",
        "## How it was made",
        f"`python -m models train --preset {figures['preset']} --seed {figures['seed']}`; one thread, deterministic.",
        "int8 (symmetric, per channel, float bias): "
        + "; ".join(f"{name} {text}" for name, text in figures["int8"].items())
        + "; sensors and fusion float32.",
        "",
    ]
    return "\n".join(lines)


def _claimed(figures: Mapping[str, Any]) -> list[str]:
    """A class is claimed if recordings of it trained: what was only ever synthesised is not."""
    learned = [name for name in CLASSES if name in figures["learned"]]
    others = [name for name in (*CLASSES, *_SYNTHESISED) if name not in learned]
    return [
        f"Event classes claimed: {', '.join(learned) or 'none'}; everything else that stands out is `anomaly`.",
        f"What was only ever synthesised ({', '.join(dict.fromkeys(others))}) is not claimed: the novelty of such a "
        "thing raises the score.",
    ]


def _spread(trained: Sequence[Mapping[str, Any]]) -> list[str]:
    """Mean and standard deviation over seeds, of the figures that all of them have."""
    if len(trained) < 2:
        return []
    tables = [_single(figures) for figures in trained]
    rows = [
        f"| {name} | {mean(values):.3f} ± {stdev(values):.3f} | {', '.join(f'{value:.3f}' for value in values)} |"
        for name in tables[0]
        if len(values := [table[name] for table in tables if name in table]) == len(tables)
    ]
    seeds = ", ".join(str(figures["seed"]) for figures in trained)
    return [
        f"The same recipe with seeds {seeds}, mean ± standard deviation (this bundle is the first):",
        "",
        "| figure | mean | by seed |",
        "| --- | --- | --- |",
        *rows,
        "",
    ]


def _single(figures: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one training, by name."""
    found: dict[str, float] = {}
    for name, row in figures.get("recorded", {}).items():
        found[name] = row["auc"] if "auc" in row else row["share"]
    for name, row in figures.get("composed", {}).items():
        if isinstance(row, dict) and "ap" in row:
            found[f"composed, {name}: AP"] = row["ap"]
    thresholds = figures.get("thresholds", {})
    told = {"quiet_alerts": "alerts on quiet sites", "demo_astray": "alerts of demo sites that belong to nothing"}
    return found | {title: float(thresholds[key]) for key, title in told.items() if key in thresholds}


def _calibrated(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not found:
        return []
    rows = [
        f"| {name} | {row['temperature']} | {row['ece_before']} | {row['ece']} | {row['nll_before']} | {row['nll']} "
        f"| {row['windows']} |"
        for name, row in found.items()
    ]
    return [
        "Probabilities: the temperature of each output, in the graph, fitted on one half of held-out composed and",
        "simulated windows and judged on another; expected calibration error (15 bins) and negative log likelihood:",
        "",
        "| output | temperature | ECE before | ECE | NLL before | NLL | windows |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
    ]


def _measured(figures: Mapping[str, Any]) -> list[str]:
    lines = ["## Figures", ""]
    if figures.get("recorded"):
        lines += ["Recorded data that trained nothing, one modality alone, int8 on OpenVINO:", ""]
        lines += ["| data | AUC | 95 % bootstrap | n |", "| --- | --- | --- | --- |"]
        for name, found in figures["recorded"].items():
            if "auc" in found:
                lines.append(
                    f"| {name} | {found['auc']:.3f} | {found['low']:.3f}–{found['high']:.3f} | {found['n']} |"
                )
            else:
                lines.append(f"| {name} | {found['share']:.3f} | – | {found['n']} |")
        lines.append("")
    if figures.get("composed"):
        lines += ["**Composed** dev episodes (recorded and simulated parts, not recorded together):", ""]
        lines += ["| | AP | AUC |", "| --- | --- | --- |"]
        for name, found in figures["composed"].items():
            if isinstance(found, dict):
                lines.append(f"| {name} | {found.get('ap', '–')} | {found['auc']} |")
        lines.append("")
    found = figures.get("thresholds")
    if found:
        caught = ", ".join(f"{label} {share}" for label, share in found["demo_caught"].items())
        lines += [
            f"**Simulated** sites: {found['quiet_alerts']} alerts in {found['quiet_s']} s of quiet sites; episodes of"
            f" other sites that reach the threshold ({found['on']:.3f}): {caught}. (thunder, shadow, door_slam, "
            "dropped_sensor, orange_person, warm_lamp and sunset are meant not to.)",
            "",
        ]
    return lines

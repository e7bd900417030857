"""Readers of recorded sets, on tiny made-up folders in each format: labels, splits, what is missing."""

from __future__ import annotations

import csv
import json
import wave
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")
av = pytest.importorskip("av", reason="pip install av")
import cv2  # noqa: E402

from edge_agent.contract.manifest import VisionSpec  # noqa: E402
from edge_agent.errors import ConfigError  # noqa: E402
from models.__main__ import main  # noqa: E402
from models.data import mixture  # noqa: E402
from models.data.media import Pictures, Sound  # noqa: E402
from models.data.records import NORMAL, check_groups  # noqa: E402
from models.data.registry import FORMATS, read  # noqa: E402

SMALL = VisionSpec(width=32, height=16)


def _text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sound(path: Path, rate_hz: int = 16_000, channels: int = 1, level: int = 1000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.full((rate_hz // 10, channels), level, np.int16).tobytes())


def _film(path: Path, frames: int = 10, rate: int = 10, size: tuple[int, int] = (48, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(frames):
            picture = np.full((size[1], size[0], 3), 20 * index % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _frames(folder: Path, count: int, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index:03d}{suffix}"), np.full((8, 12, 3), index, np.uint8))


def _esc10(root: Path) -> None:
    header = "filename,fold,target,category,freesound_clip_id,take,orig_duration_s,licence,author,source_url,split"
    rows = ["dog.wav,1,0,rain,11,A,5,CC0,x,u,train", "b.wav,4,0,rooster,12,A,5,CC-Sampling+,x,u,dev"]
    _text(root / "esc10" / "meta.csv", header, *rows, "gone.wav,5,0,rain,14,A,5,CC0,x,u,hidden")
    for name in ("dog", "b"):
        _sound(root / "esc10" / "audio" / f"{name}.wav")


def _sesa(root: Path) -> None:
    header = "filename,official_split,target,category,duration_s,rms_dbfs,use,group"
    _text(
        root / "sesa" / "meta.csv",
        header,
        "train/casual_1.wav,train,1,gunshot,1,-20,dev,7",
        "test/s.wav,test,0,casual,1,-2,train,8",
    )
    _sound(root / "sesa" / "train" / "casual_1.wav")
    _sound(root / "sesa" / "test" / "s.wav")


def _fights(root: Path) -> None:
    header = "clip,label,fight,source_video,start,end,orig_size,orig_fps,duration_s,audio,audio_rms_dbfs,size,split"
    rows = ["a.mp4,x,1,yt1,0,1,1x1,25,1,silent,-180,1x1,train", "b.mp4,x,0,yt2,0,1,1x1,25,1,none,,1x1,dev"]
    _text(root / "fight_surv" / "labels.csv", header, *rows)
    for name in "ab":
        _film(root / "fight_surv" / "clips" / f"{name}.mp4", 4)


def _ped2_films(root: Path) -> None:
    _film(root / "ucsd_ped2" / "train" / "01.mp4")
    _film(root / "ucsd_ped2" / "test" / "02.mp4")
    marks = [f"02,{i},{int(i >= 6)}" for i in range(10)] + ["05,0,1"]
    _text(root / "ucsd_ped2" / "test_frame_labels.csv", "clip,frame,abnormal", *marks)


def _skab(root: Path) -> None:
    columns = (
        "Accelerometer1RMS;Accelerometer2RMS;Current;Pressure;Temperature;Thermocouple;Voltage;Volume Flow RateRMS"
    )
    for name in ("valve1/0.csv", "valve2/1.csv", "other/3.csv"):
        _text(
            root / "skab" / name,
            f"datetime;{columns};anomaly;changepoint",
            *(f"2020-03-09 10:14:3{i};1;2;3;4;5;6;7;8;{i // 2}.0;0" for i in range(3)),
        )


def _nab(root: Path) -> None:
    name = "realKnownCause/ambient_temperature_system_failure.csv"
    _text(
        root / "nab" / "data" / name,
        "timestamp,value",
        *(f"2014-01-01 {h:02d}:00:00,{32 + 1.8 * h}" for h in range(5)),
    )
    labels = {name: [["2014-01-01 02:00:00.000", "2014-01-01 03:00:00.000"]], "gone/x.csv": []}
    _text(root / "nab" / "labels" / "combined_windows.json", json.dumps(labels))


def _ucf_crime(root: Path) -> None:
    _film(root / "Videos" / "Abuse" / "Abuse028_x264.avi", 4)
    _film(root / "Videos" / "Normal" / "N1_x264.avi", 4)
    _film(root / "Videos" / "Arson" / "T1_x264.avi", 4)
    _text(
        root / "Temporal_Anomaly_Annotation.txt",
        "Abuse028_x264.avi  Abuse  30  90  120  150",
        "N1_x264.avi  Normal  -1  -1  -1  -1",
        "Gone_x264.avi  Abuse  1  2  -1  -1",
    )
    _text(root / "Anomaly_Train.txt", "Arson/T1_x264.avi")


def _xd_violence(root: Path) -> None:
    for name in ("test/A__#1_label_G.avi", "test/B__#1_label_A.avi", "train/C__#2_label_B1-0-0.avi"):
        _film(root / name, 4)
    _text(root / "annotations.txt", "A__#1_label_G 24 48")
    (root / "annotations.txt").write_text("A__#1_label_G.avi 24 48\n", encoding="utf-8")


def _shanghaitech(root: Path) -> None:
    _film(root / "training" / "videos" / "01_001.avi", 4)
    _frames(root / "testing" / "frames" / "02_0014", 6, ".jpg")
    (root / "testing" / "test_frame_mask").mkdir()
    np.save(root / "testing" / "test_frame_mask" / "02_0014.npy", np.array([0, 0, 1, 1, 0, 0]))


def _avenue(root: Path) -> None:
    from scipy.io import savemat

    _film(root / "training_videos" / "01.avi", 4)
    _film(root / "testing_videos" / "02.avi", 4)
    masks = np.empty((1, 4), object)
    for index in range(4):
        masks[0, index] = np.full((2, 2), int(index >= 2), np.uint8)
    (root / "labels").mkdir()
    savemat(root / "labels" / "2_label.mat", {"volLabel": masks})


def _ped2(root: Path) -> None:
    _frames(root / "Train" / "Train001", 4, ".tif")
    _frames(root / "Test" / "Test001", 6, ".tif")
    _text(root / "Test" / "UCSDped2.m", "TestVideoFile = {};", "TestVideoFile{end+1}.gt_frame = [3:5];")


def _esc50(root: Path) -> None:
    _text(
        root / "meta" / "esc50.csv",
        "filename,fold,target,category,esc10,src_file,take",
        "1-9-A-0.wav,3,0,dog,True,9,A",
    )
    _sound(root / "audio" / "1-9-A-0.wav", 44_100)


def _urbansound8k(root: Path) -> None:
    _text(
        root / "metadata" / "UrbanSound8K.csv",
        "slice_file_name,fsID,start,end,salience,fold,classID,class",
        "7-6-0-0.wav,7,0,1,1,5,6,gun_shot",
    )
    _sound(root / "audio" / "fold5" / "7-6-0-0.wav", 22_050, 2)


def _mimii(root: Path) -> None:
    for kind in ("normal", "abnormal"):
        _sound(root / "fan" / "id_00" / kind / "00000000.wav", channels=8)


def _audio_folder(root: Path) -> None:
    _text(
        root / "labels.csv",
        "file,label,split,group,start_s,end_s",
        "a.wav,bang,train,g,0.02,0.05",
        "b.wav,normal,dev,h,,",
    )
    _sound(root / "a.wav")
    _sound(root / "b.wav")


def _sensor_csv(root: Path) -> None:
    _text(
        root / "plant.csv",
        "Timestamp;flow;state;anomaly",
        "2024-01-01T00:00:00;1.5;on;0",
        "2024-01-01T00:00:10;2.5;on;1",
    )


#: Format → (maker of its folder, what one of its recordings is: item, split, group, label, spans, modalities).
CASES = {
    "esc10": (_esc10, ("dog.wav", "train", "11", "rain", 0, ("audio",))),
    "sesa": (_sesa, ("train/casual_1.wav", "dev", "7", "gunshot", 0, ("audio",))),
    "fight_surv": (_fights, ("a.mp4", "train", "yt1", "fight", 0, ("vision",))),
    "ucsd_ped2": (_ped2_films, ("test/02.mp4", "test", "test/02", "", 1, ("vision",))),
    "skab": (_skab, ("other/3.csv", "test", "other/3", "", 0, ("sensors",))),
    "nab": (
        _nab,
        (
            "realKnownCause/ambient_temperature_system_failure.csv",
            "",
            "realKnownCause/ambient_temperature_system_failure.csv",
            "",
            0,
            ("sensors",),
        ),
    ),
    "ucf_crime": (_ucf_crime, ("Abuse028_x264.avi", "test", "Abuse028_x264.avi", "", 2, ("vision",))),
    "xd_violence": (_xd_violence, ("A__#1_label_G.avi", "test", "A", "", 1, ("vision",))),
    "shanghaitech": (_shanghaitech, ("02_0014", "test", "test/02", "", 1, ("vision",))),
    "avenue": (_avenue, ("test/02.avi", "test", "test/02.avi", "", 1, ("vision",))),
    "ped2": (_ped2, ("Test001", "test", "Test001", "", 1, ("vision",))),
    "esc50": (_esc50, ("1-9-A-0.wav", "fold3", "9", "dog", 0, ("audio",))),
    "urbansound8k": (_urbansound8k, ("7-6-0-0.wav", "fold5", "7", "gun_shot", 0, ("audio",))),
    "mimii": (_mimii, ("fan/id_00/abnormal/00000000.wav", "", "fan/id_00", "abnormal", 0, ("audio",))),
    "audio_folder": (_audio_folder, ("a.wav", "train", "g", "", 1, ("audio",))),
    "sensor_csv": (_sensor_csv, ("plant.csv", "", "plant.csv", "", 0, ("sensors",))),
}


@pytest.mark.parametrize("name", CASES)
def test_each_format_is_read_by_its_own_table(name, tmp_path):
    make, wanted = CASES[name]
    make(tmp_path)
    by_item = {r.item: r for r in read(name, tmp_path)}
    found = by_item[wanted[0]]
    assert (found.item, found.split, found.group, found.label, len(found.spans), found.modalities) == wanted
    for recording in by_item.values():
        if recording.pictures is not None:
            assert recording.frames(SMALL).shape[1:] == (16, 32, 3)
        if recording.sound is not None:
            assert recording.pcm(16_000).dtype == np.int16
        if recording.readings is not None:
            log = recording.log()
            assert log.values.shape == (len(log.time_s), len(log.names))


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_without_the_set_says_what_was_looked_for(name, tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(name, tmp_path)
    assert str(tmp_path) in str(caught.value)


def _write(name: str, *lines: str):
    return lambda root: _text(root / name, *lines)


def _bytes(name: str):
    return lambda root: (root / name).write_bytes(b"neither this nor that")


def _decode(recordings) -> None:
    for recording in recordings:
        if recording.pictures is not None:
            recording.frames(SMALL)
        if recording.sound is not None:
            recording.pcm(16_000)
        if recording.readings is not None:
            recording.log()


#: Format, what is done to its folder, what the error says.
BROKEN = [
    ("ucf_crime", _write("Temporal_Anomaly_Annotation.txt", "N1_x264.avi Normal 3 x"), "N1_x264.avi Normal 3 x"),
    ("ucf_crime", _write("Temporal_Anomaly_Annotation.txt", "N1_x264.avi Abuse 3 4 5"), "pairs of frames"),
    ("ucf_crime", _write("Temporal_Anomaly_Annotation.txt", "N1_x264.avi"), "pairs of a first and a later"),
    ("ucf_crime", _write("Temporal_Anomaly_Annotation.txt", "N1_x264.avi Abuse 9 4"), "pairs of a first and a later"),
    ("ucf_crime", _write("Temporal_Anomaly_Annotation.txt"), "Annotation.txt is empty"),
    ("ucf_crime", _bytes("Videos/Abuse/Abuse028_x264.avi"), "cannot open film"),
    ("xd_violence", _write("annotations.txt", "A__#1_label_G.avi 24"), "pairs of frames"),
    ("shanghaitech", _bytes("testing/test_frame_mask/02_0014.npy"), "frame labels"),
    ("shanghaitech", lambda root: (root / "testing/frames/02_0014/000.jpg").unlink(), "6 frames, and .* holds 5"),
    ("avenue", _bytes("labels/2_label.mat"), "volLabel"),
    ("avenue", lambda root: np.save(root / "2.npy", np.array(["a", "b"])), "holds no numbers"),
    ("ped2", _write("Test/UCSDped2.m", "TestVideoFile = {};"), "nothing says what is unusual in Test001"),
    ("ped2", _bytes("Test/Test001/000.tif"), r"cannot read picture .*000\.tif"),
    ("esc50", _write("meta/esc50.csv", "filename,fold,category", "1-9-A-0.wav,3,dog"), "no column 'src_file'"),
    ("esc50", _bytes("audio/1-9-A-0.wav"), "cannot read sound"),
    ("urbansound8k", _write("metadata/UrbanSound8K.csv", "slice_file_name,fold,class", "a.wav,5,x"), "column 'fsID'"),
    ("mimii", _bytes("fan/id_00/normal/00000000.wav"), "cannot read sound"),
    ("skab", _write("skab/valve1/0.csv", "datetime;x", "1;2"), "no column 'Accelerometer1RMS'"),
    ("nab", _write("nab/labels/combined_windows.json", '{"a.csv": [["2014-01-01"]]}'), "label windows"),
    (
        "audio_folder",
        _write("labels.csv", "file,label,start_s,end_s", "a.wav,bang,x,2"),
        "start_s and end_s are seconds",
    ),
    (
        "audio_folder",
        _write("labels.csv", "file,label,start_s,end_s", "a.wav,bang,2,1"),
        "nothing lies from 2 s until 1 s",
    ),
    (
        "audio_folder",
        _write("labels.csv", "file,label,split", "a.wav,x,dev", "a.wav,y,train"),
        "two values of 'split'",
    ),
    ("audio_folder", _write("labels.csv", "file;label", "a.wav;x"), "without a file or a label"),
    ("audio_folder", _write("labels.csv", "name,label", "a.wav,x"), "without a file or a label"),
    ("sensor_csv", _write("plant.csv", "time,flow", "later,1"), "'later' is no time"),
    ("sensor_csv", _write("plant.csv", "time,flow,anomaly", "1,1,yes"), "label 'yes' is neither 0 nor 1"),
    ("sensor_csv", _write("plant.csv", "time,flow", "1,on", "2,inf"), "no column of numbers"),
    ("sensor_csv", _write("plant.csv"), "is empty"),
]


@pytest.mark.parametrize(("name", "spoil", "said"), BROKEN)
def test_a_broken_set_is_refused_by_what_is_wrong_with_it(name, spoil, said, tmp_path):
    CASES[name][0](tmp_path)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=said):
        _decode(read(name, tmp_path))


def test_labels_find_a_sound_in_another_container_and_under_a_longer_path(tmp_path):
    _audio_folder(tmp_path)
    _text(tmp_path / "labels.csv", "filename,label", "./a.flac,bang", "b.wav,")
    assert [(r.item, r.label) for r in read("audio_folder", tmp_path)] == [("./a.flac", "bang"), ("b.wav", "")]


def test_a_table_as_a_spreadsheet_exports_it(tmp_path):
    """A byte order mark, quotes, the newest row first, empty cells in the first row and among the labels."""
    lines = '\ufeff"time","flow","level","anomaly"', '"2","","3","1"', '"1","7","4",""', '"0","8","nan","0"'
    _text(tmp_path / "plant.csv", *lines)
    log = read("sensor_csv", tmp_path)[0].log()
    assert log.names == ("flow", "level")
    assert log.time_s.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(log.values, [[8, np.nan], [7, 4], [np.nan, 3]])
    assert log.wrong.tolist() == [0, -1, 1]


def test_an_unknown_format_lists_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match="ucf_crime"):
        read("imagenet", tmp_path)


def test_annotations_become_intervals(tmp_path):
    for make, name in ((_ucf_crime, "ucf_crime"), (_xd_violence, "xd_violence"), (_shanghaitech, "shanghaitech")):
        make(tmp_path / name)
    crime = {r.item: r for r in read("ucf_crime", tmp_path / "ucf_crime")}
    assert crime["Abuse028_x264.avi"].wrong([0.9, 1.0, 2.9, 3.0, 4.5]).tolist() == [0, 1, 1, 0, 1]
    assert crime["N1_x264.avi"].label == NORMAL
    assert crime["T1_x264.avi"].label == "arson"
    violence = {r.group: r for r in read("xd_violence", tmp_path / "xd_violence")}
    assert violence["A"].wrong([0.5, 1.5]).tolist() == [0, 1]
    assert violence["B"].wrong([0.5]).tolist() == [0]
    assert violence["C"].wrong([0.5]).tolist() == [-1]  # its name says what it is, and nobody reads it
    clip = next(r for r in read("shanghaitech", tmp_path / "shanghaitech") if r.split == "test")
    assert clip.wrong(np.arange(6) / 24).tolist() == [0, 0, 1, 1, 0, 0]


def test_sounds_of_one_name_in_two_folders_are_two(tmp_path):
    for folder in ("a", "b"):
        _sound(tmp_path / folder / "1.wav")
    assert [r.item for r in read("audio_folder", tmp_path)] == ["a/1.wav", "b/1.wav"]


def test_a_label_finds_its_sound_in_another_container(tmp_path):
    _text(tmp_path / "labels.csv", "file,label", "a.flac,bang")
    _sound(tmp_path / "a.wav")
    (found,) = read("audio_folder", tmp_path)
    assert (found.item, found.label, len(found.pcm(16_000)) > 0) == ("a.flac", "bang", True)


@pytest.mark.parametrize(("header", "row"), [("name,label", "a,b"), ("file,kind", "a,b"), ("file,label", ",b")])
def test_labels_without_a_file_or_a_label_are_refused(tmp_path, header, row):
    _text(tmp_path / "labels.csv", header, row)
    _sound(tmp_path / "a.wav")
    with pytest.raises(ConfigError, match="without a file or a label"):
        read("audio_folder", tmp_path)


def test_licences_and_rows_without_files(tmp_path, capsys):
    _esc10(tmp_path)
    assert [r.ships for r in read("esc10", tmp_path)] == [True, False]
    assert "1 items" in capsys.readouterr().err
    assert [r.item for r in read("esc10", tmp_path / "esc10")] == ["dog.wav", "b.wav"]  # the set's own folder will do


def test_fahrenheit_windows_and_row_labels(tmp_path):
    _nab(tmp_path)
    _skab(tmp_path)
    (stream,) = read("nab", tmp_path)
    assert stream.log().values[:, 0].round(6).tolist() == [0, 1, 2, 3, 4]
    assert stream.log().wrong.tolist() == [0, 0, 1, 1, 0]  # both ends of a window are inside
    assert read("skab", tmp_path)[0].log().wrong.tolist() == [0, 0, 1]


def test_sound_of_any_rate_and_count_of_channels_becomes_mono(tmp_path):
    _sound(tmp_path / "a.wav", 44_100, 2)
    _sound(tmp_path / "b.wav", 8_000, 8, level=700)
    stereo, array = (Sound(tmp_path / name).pcm(16_000) for name in ("a.wav", "b.wav"))
    assert abs(len(stereo) - 1600) <= 32
    assert abs(int(np.median(stereo)) - 1000) <= 3
    assert abs(int(np.median(array)) - 700) <= 3
    assert len(Sound(tmp_path / "a.wav", start_s=0.02, end_s=0.05).pcm(16_000)) == 480


@pytest.mark.parametrize("rate", [5, 10, 25])
def test_films_keep_their_time_at_any_rate(tmp_path, rate):
    _film(tmp_path / "a.avi", 2 * rate, rate)
    times = [time_s for _, time_s, _ in Pictures(tmp_path / "a.avi").stream(10.0)]
    assert len(times) in (19, 20)
    assert np.allclose(np.diff(times), 0.1)
    assert len(list(Pictures(tmp_path / "a.avi").stream())) == 2 * rate


def test_what_cannot_be_decoded_names_the_file(tmp_path):
    _text(tmp_path / "a.wav", "no sound")
    with pytest.raises(ConfigError, match=r"a\.wav"):
        Sound(tmp_path / "a.wav").pcm(16_000)
    with pytest.raises(ConfigError, match=r"a\.wav"):
        list(Pictures(tmp_path / "a.wav").stream())


def test_the_command_tells_what_a_set_holds_and_composes_episodes_of_it(tmp_path, capsys):
    _esc10(tmp_path)
    _sesa(tmp_path)
    manifest = tmp_path / "m.jsonl"
    arguments = ["data", "esc10,sesa", str(tmp_path), "--leaks", "--manifest", str(manifest), "--count", "3"]
    assert main(arguments) == 1  # every sound here is the same
    assert "leaks between splits" in capsys.readouterr().err
    assert main([a for a in arguments if a != "--leaks"]) == 0
    assert "| train | audio | rain | 1 | 0.00 |" in capsys.readouterr().out
    assert len(mixture.read(manifest)) == 3
    assert main(["data", "imagenet", str(tmp_path)]) == 1


@pytest.mark.needs("data")
def test_no_group_of_the_recorded_sets_crosses(data_root):
    for name in ("sesa", "esc10", "fight_surv", "skab", "ucsd_ped2"):
        check_groups((r.group, r.split) for r in read(name, data_root))
    with (data_root / "sesa" / "meta.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(read("sesa", data_root))

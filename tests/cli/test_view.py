"""`volsam view` up to the browser; what happens in it is in tests/server/viewer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from volsam.data.io import read_volume, write_volume
from volsam.server.problems import Problem

from .conftest import Type, error_of


class Stage:
    """Stands for the server and the browser."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.app: Any = None
        self.browser = True

    def run(self, app: Any, at: Any, started: Callable[[], None]) -> None:
        self.app, self.port = app, at.getsockname()[1]
        started()
        at.close()

    def open(self, address: str) -> bool:
        self.opened.append(address)
        return self.browser


@pytest.fixture
def a_stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    pytest.importorskip("fastapi")
    stage = Stage()
    monkeypatch.setattr("volsam.cli.view.run", stage.run)
    monkeypatch.setattr("volsam.cli.view.webbrowser.open", stage.open)
    return stage


def several(file: Path, shape: tuple[int, ...], dtype: type = np.float32) -> None:
    """A file with as many frames and channels as the shape says."""
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, dtype), np.eye(4)), file)


def test_the_scan_is_opened_in_the_browser_from_a_server_on_this_machine_alone(
    type_: Type, a_scan: Path, a_stage: Stage
) -> None:
    result = type_("view", a_scan)
    assert result.exit_code == 0, result.output
    address = f"http://127.0.0.1:{a_stage.port}/?study=ct.nii.gz"
    assert a_stage.opened == [address]
    assert address in result.stderr
    settings = a_stage.app.state.core.settings
    assert (settings.host, settings.studies, settings.dialects) == ("127.0.0.1", a_scan.parent, ())


def test_the_scan_is_read_once(type_: Type, a_scan: Path, a_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    from volsam.server import volumes

    read: list[Path] = []
    monkeypatch.setattr(
        volumes, "read_volume", lambda path, **options: (read.append(path), read_volume(path, **options))[1]
    )
    type_("view", a_scan)
    core = a_stage.app.state.core
    lease = core.claim()
    first = core.open_study(lease, a_scan.name)
    assert read == [a_scan]
    np.testing.assert_array_equal(first.session.volume.data, read_volume(a_scan).data)
    core.open_study(lease, a_scan.name)  # whoever opens it later sees what the file is by then
    assert read == [a_scan, a_scan]
    core.shut_down()


def test_names_are_written_as_addresses_want_them(type_: Type, a_scan: Path, a_stage: Stage) -> None:
    odd = a_scan.rename(a_scan.with_name("Müller & Co 1.nii.gz"))
    assert type_("view", odd, "--no-browser").exit_code == 0
    assert a_stage.opened == []
    type_("view", odd)
    assert a_stage.opened[0].endswith("/?study=M%C3%BCller+%26+Co+1.nii.gz")


def test_a_link_to_a_scan_elsewhere_is_opened_and_no_other_one(type_: Type, a_scan: Path, a_stage: Stage) -> None:
    place = a_scan.parent / "dataset"
    place.mkdir()
    for name in ("ct.nii.gz", "other.nii.gz"):
        (place / name).symlink_to(a_scan)
    assert type_("view", place / "ct.nii.gz").exit_code == 0
    core = a_stage.app.state.core
    lease = core.claim()
    talk = core.open_study(lease, "ct.nii.gz")
    np.testing.assert_array_equal(talk.session.volume.data, read_volume(a_scan).data)
    with pytest.raises(Problem, match="leads out"):
        core.open_study(lease, "other.nii.gz")
    core.shut_down()


def test_a_chosen_model_is_the_one_that_is_served(type_: Type, a_scan: Path, a_stage: Stage) -> None:
    type_("view", a_scan, "--model", "sam-med3d-turbo")
    assert a_stage.app.state.core.settings.models == ("sam-med3d-turbo",)


def test_a_frame_and_a_channel_are_passed_on(type_: Type, a_scan: Path, a_stage: Stage) -> None:
    several(a_scan, (8, 8, 8, 3, 2))
    type_("view", a_scan, "--frame", "2", "--channel", "1")
    assert a_stage.opened[0].endswith("/?study=ct.nii.gz&frame=2&channel=1")


def test_without_a_browser_one_is_told_what_to_do(type_: Type, a_scan: Path, a_stage: Stage) -> None:
    a_stage.browser = False
    assert "open the address" in type_("view", a_scan).stderr


def test_a_scan_that_is_not_there_is_refused_at_once(type_: Type, tmp_path: Path, a_stage: Stage) -> None:
    assert "there is no such file" in error_of(type_("view", tmp_path / "nothing.nii.gz"))
    assert a_stage.app is None


def test_a_port_that_is_taken_is_told(type_: Type, a_scan: Path, a_stage: Stage) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = error_of(type_("view", a_scan, "--port", taken.getsockname()[1]))
    assert "choose another" in line


# --- scans and models that cannot be opened are refused at once, as `volsam segment` does --------------------------


def test_a_scan_that_is_cut_short_is_refused(type_: Type, a_scan: Path, a_stage: Stage) -> None:
    a_scan.write_bytes(a_scan.read_bytes()[:-5000])
    line = error_of(type_("view", a_scan))
    assert line == error_of(type_("segment", a_scan, "-p", "5,5,5"))
    assert a_stage.app is None


def test_a_scan_of_complex_numbers_is_refused(type_: Type, a_scan: Path, a_stage: Stage) -> None:
    several(a_scan, (8, 8, 8), np.complex64)
    assert "complex numbers" in error_of(type_("view", a_scan))
    assert a_stage.app is None


def test_of_several_frames_one_has_to_be_chosen(type_: Type, a_scan: Path, a_stage: Stage) -> None:
    several(a_scan, (8, 8, 8, 3))
    assert "choose one of 0..2, with --frame of `volsam view`" in error_of(type_("view", a_scan))
    assert "holds 3 frames, 0..2" in error_of(type_("view", a_scan, "--frame", "7"))
    assert a_stage.app is None


def test_a_folder_of_several_series_is_refused(type_: Type, tmp_path: Path, a_stage: Stage, monkeypatch: Any) -> None:
    pytest.importorskip("SimpleITK")
    folder = tmp_path / "scans" / "series"
    folder.mkdir(parents=True)
    monkeypatch.setattr("SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs", lambda *_: ("1.2", "1.3"))
    assert "holds 2 DICOM series" in error_of(type_("view", folder))
    assert a_stage.app is None


def test_a_model_that_nobody_knows_is_refused(type_: Type, a_scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: pytest.fail("it serves"))
    line = error_of(type_("view", a_scan, "--model", "nope"))
    assert line == error_of(type_("segment", a_scan, "-p", "5,5,5", "--model", "nope"))
    assert "no model is called 'nope'" in line


def test_labels_are_opened_as_objects_to_correct(type_: Type, a_scan: Path, a_stage: Stage, tmp_path: Path) -> None:
    scan = read_volume(a_scan)
    labels = np.zeros(scan.grid.shape, np.uint8)
    labels[10:20, 10:20, 10:20], labels[30:34, 10:20, 10:20] = 1, 3
    file = tmp_path / "elsewhere" / "predicted.nii.gz"
    file.parent.mkdir()
    write_volume(scan.with_data(labels[None]), file)
    file.with_name("predicted.json").write_text('{"labels": [{"name": "liver", "number": 1}]}')
    result = type_("view", a_scan, "--labels", file, "--no-browser")
    assert result.exit_code == 0, result.output
    identity = result.stderr.split("?session=")[1].split()[0]
    core = a_stage.app.state.core
    talk = core.resume(core.claim(), identity)
    assert [thing.name for thing in talk.things] == ["liver", "label 3"]
    assert np.array_equal(talk.whole(3), labels == 3)
    core.shut_down()


def test_labels_that_do_not_fit_are_refused(type_: Type, a_scan: Path, a_stage: Stage, tmp_path: Path) -> None:
    assert "no-such.nii.gz: there is no such file" in error_of(
        type_("view", a_scan, "--labels", tmp_path / "no-such.nii.gz")
    )
    scan = read_volume(a_scan)
    other = scan.grid.crop((0, 0, 0), (8, 8, 8))
    write_volume(type(scan)(np.ones((1, 8, 8, 8), np.uint8), other, "part"), tmp_path / "part.nii.gz")
    assert "a label lies on the grid of its image" in error_of(
        type_("view", a_scan, "--labels", tmp_path / "part.nii.gz")
    )

"""A DICOM series comes as one upload."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from volsam_client import Server

from volsam.data.io import read_volume

pytestmark = pytest.mark.slow


def packed(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd" if kind != tarfile.REGTYPE else ""
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def sent(client, content: bytes, status: int = 201, name: str = "chest.tar") -> dict:
    return client.ask("POST", f"/session/file?name={name}", status, content=content)


@pytest.fixture
def slices(a_dicom_series) -> list[tuple[str, bytes]]:
    """The files of a series, two of them of the same name in two folders, and what lies beside them on a disc."""
    files = sorted(a_dicom_series.iterdir())
    named = [f"disc/{place % 2}/IM{place // 2}" for place in range(len(files))]
    found = [(name, file.read_bytes()) for name, file in zip(named, files, strict=True)]
    return [*found, ("disc/.DS_Store", b"nothing")]


def test_slices_in_an_archive_are_opened_as_a_volume(http, client, slices, a_dicom_series):
    ana = client(http)
    state = sent(ana, packed(*slices))
    whole = read_volume(a_dicom_series)
    assert state["name"] == "chest"
    assert state["study"] is None
    assert tuple(state["shape"]) == whole.grid.shape
    np.testing.assert_allclose(state["affine"], whole.grid.affine)
    ana.shape = tuple(state["shape"])
    ana.click((5, 4, 2))
    bob = client(http)
    assert bob.resume(state["id"], take=True)["name"] == "chest"
    assert np.array_equal(bob.mask(), ana.masks[1])


def test_its_labels_are_segments_of_the_series(http, client, slices, tmp_path):
    import highdicom

    ana = client(http)
    state = sent(ana, packed(*slices))
    assert state["dicom"]
    ana.shape = tuple(state["shape"])
    ana.click((5, 4, 2))
    (tmp_path / "got.dcm").write_bytes(ana("GET", "/session/labels.dcm").content)
    read = highdicom.seg.segread(tmp_path / "got.dcm")
    assert np.count_nonzero(read.pixel_array) == ana.masks[1].sum()
    assert "download" in ana.ask("POST", "/session/save", 409, json={"format": "dicom_seg"})["detail"]


def test_links_and_paths_in_an_archive_lead_nowhere(http, client, slices, tmp_path):
    ana = client(http)
    assert "holds no file" in sent(ana, packed(("passwd", b""), kind=tarfile.SYMTYPE), 400)["detail"]
    sent(ana, packed(*((f"../../../{name}", content) for name, content in slices)))
    outside = [path for path in tmp_path.rglob("*IM*") if "upload" not in path.parts]
    assert not outside


def test_a_damaged_archive_is_refused_and_nothing_is_left(http, client, slices):
    ana = client(http)
    whole = packed(*slices)
    for cut in (len(whole) // 2, whole.index(b"disc/0/IM1"), len(whole) - 10240):
        assert "damaged" in sent(ana, whole[:cut], 400)["detail"]
    assert sent(ana, packed(("notes.txt", b"not a slice")), 400)["code"] == "bad_input"
    assert ana.ask("GET", "/sessions")["sessions"] == []


def test_the_python_client_sends_a_folder(http, a_dicom_series):
    with Server("http://127.0.0.1", http=http) as server:
        session = server.upload(a_dicom_series)
        assert session.shape == read_volume(a_dicom_series).grid.shape

"""Whatever type and order of bytes a NIfTI has, the page reads its voxels."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from .conftest import Viewer

pytestmark = [pytest.mark.slow, pytest.mark.browser]

# A stream in pieces that end within a voxel, read by the page's own class.
READ = """async ([text, packed, shape]) => {
  const { Volume } = await import("./volume.js");
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new ReadableStream({
    start(source) {
      for (let at = 0; at < bytes.length; at += 101) source.enqueue(bytes.slice(at, at + 101));
      source.close();
    },
  });
  const affine = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]];
  const volume = new Volume({ shape, affine, spacing: [1, 1, 1] });
  await volume.fill({ body: stream }, packed, () => {});
  const values = [];
  for (let k = 0; k < shape[2]; k++) for (let j = 0; j < shape[1]; j++) for (let i = 0; i < shape[0]; i++) {
    values.push(volume.value([i, j, k]));
  }
  const pixels = volume.paint(volume.planes.axial, 0, [0, 100], new Uint32Array(shape[0] * shape[1]));
  return { values, pixels: [...pixels] };
}"""


def nifti(values: np.ndarray, order: str, version: type = nibabel.Nifti1Image) -> bytes:
    """A NIfTI with the bytes of header and voxels in an order, < or >."""
    header = version.header_class(endianness=order)
    header.set_data_dtype(values.dtype.newbyteorder(order))
    image = version(values, np.eye(4), header, dtype=values.dtype.newbyteorder(order))
    assert image.header.endianness == order
    return image.to_bytes()


@pytest.fixture
def page(viewer: Viewer) -> Any:
    viewer.page.goto(viewer.address)
    return viewer.page


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_of_voxel_is_read(page: Any, order: str) -> None:
    shape = (5, 4, 3)
    numbers = np.arange(60).reshape(shape)
    for kind in ("u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8", "i8", "u8"):
        values = numbers.astype(kind)
        if kind == "i8":
            values[0, 0, 0], values[1, 0, 0] = -(2**40), 2**53
        if kind == "u8":
            values[0, 0, 0] = 2**63
        for version in (nibabel.Nifti1Image, nibabel.Nifti2Image):
            data = nifti(values, order, version)
            for packed in (False, True):
                sent = base64.b64encode(gzip.compress(data) if packed else data).decode()
                read = page.evaluate(READ, [sent, packed, list(shape)])
                expected = values.ravel(order="F").astype(np.float64)
                np.testing.assert_array_equal(np.array(read["values"], np.float64), expected, f"{kind} {version}")
    greys = {pixel & 0xFF for pixel in read["pixels"]}
    assert len(greys) > 5, "wide integers are painted as greys"


@pytest.mark.parametrize(("order", "kind"), [(">", "i2"), ("<", "i8")])
def test_a_file_that_the_server_passes_on_as_it_is_is_shown(
    viewer: Viewer, studies: Path, order: str, kind: str
) -> None:
    values = np.arange(20 * 18 * 12).reshape(20, 18, 12).astype(kind)
    (studies / "odd.nii.gz").write_bytes(gzip.compress(nifti(values, order)))

    # A page from afar asks for the packed file, which the server does not write anew.
    def afar(route: Any) -> None:
        answer = route.fetch(url=f"{route.request.url}.gz")
        assert answer.body()[:2] == b"\x1f\x8b"
        route.fulfill(status=200, body=gzip.decompress(answer.body()))

    viewer.page.route("**/session/image.nii", afar)
    viewer.open("?study=odd.nii.gz")
    assert viewer.page.is_hidden("#toast")
    assert viewer.page.evaluate("volsam.view.volume.value([3, 2, 1])") == values[3, 2, 1]

"""Servers as processes: killed, stopped, and driven by the real client of another project."""

from __future__ import annotations

import signal
import threading

import numpy as np
import pytest
from volsam_client import Click as Sent
from volsam_client import Server, ServerError

import volsam
from volsam.geometry import Grid
from volsam.prompts import Box, Click
from volsam.server.strokes import painted
from volsam.volume import Volume

pytestmark = pytest.mark.slow

A, B = (22, 20, 14), (30, 28, 18)


def test_the_real_nninteractive_client_gets_the_masks_of_a_session(start, a_small_ct):
    from nnInteractive.inference.remote.remote_session import nnInteractiveRemoteInferenceSession as Remote

    spacing = (2.5, 1.4, 1.2)
    image = a_small_ct.data[0].transpose(2, 1, 0).astype(np.float32)  # as Slicer sends it
    alone = volsam.Session(volsam.load_model(device="cpu"), Volume(image, Grid.at(image.shape, spacing)))
    grid = alone.volume.grid
    place, other = A[::-1], B[::-1]
    with Remote(start().address) as remote:
        assert remote.ping()
        assert remote.supports_undo
        assert remote.license == "Apache-2.0"
        remote.set_image(image[None], {"spacing": np.array(spacing)})
        assert remote.original_image_shape == (1, *image.shape)
        buffer = np.zeros(image.shape, np.uint8)
        remote.set_target_buffer(buffer)

        def same() -> None:
            assert np.array_equal(buffer, alone.mask.data[0])

        changed = remote.add_point_interaction(place, include_interaction=True)
        low, high = alone.add(Click(tuple(grid.to_world(place))))
        same()
        assert changed == [list(pair) for pair in zip(low, high, strict=True)]
        assert buffer[place] == 1
        remote.add_point_interaction(other, include_interaction=False)
        alone.add(Click(tuple(grid.to_world(other)), positive=False))
        same()
        remote.add_bbox_interaction([[10, 19], [10, 31], [12, 33]], include_interaction=True)
        corners = grid.to_world([(10, 10, 12), (18, 30, 32)])
        alone.add(Box(tuple(corners[0]), tuple(corners[1])))
        same()
        stroke = np.ones((1, 1, 8), np.uint8)
        remote.add_scribble_interaction(stroke, True, interaction_bbox=[[14, 15], [20, 21], [18, 26]])
        alone.add(painted(stroke > 0, (14, 20, 18), True, grid))
        same()
        for _ in range(4):
            assert remote.undo()
            alone.undo()
            same()
        assert not remote.undo()
        remote.add_point_interaction(place, include_interaction=True)
        remote.reset_interactions()
        assert not buffer.any()
        assert remote.lease_status()["remaining_seconds"] > 0
        assert remote.heartbeat() > 0


def test_after_a_kill_every_session_goes_on_with_all_acknowledged_prompts(start):
    first = start()
    acknowledged: dict[str, int] = {}
    masks: dict[str, np.ndarray] = {}
    enough = threading.Semaphore(0)

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        server = Server(first.address)
        session = server.open("ct.nii.gz")
        try:
            while True:
                voxel = rng.integers((8, 8, 6), (40, 36, 24))
                session.add(
                    Sent(session.to_world(voxel), bool(acknowledged.get(session.id, 0) == 0 or rng.random() < 0.6))
                )
                acknowledged[session.id] = acknowledged.get(session.id, 0) + 1
                masks[session.id] = session.mask.copy()
                enough.release()
        except ServerError:
            return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(12):
        assert enough.acquire(timeout=120)
    first.end(signal.SIGKILL)
    for thread in threads:
        thread.join(timeout=120)
    assert sum(acknowledged.values()) >= 12
    with Server(start().address) as server:
        for identity, count in acknowledged.items():
            session = server.resume(identity)
            standing = [item["id"] for item in session.prompts]
            # One more may have been saved, whose answer did not come any more.
            assert standing in ([*range(1, count + 1)], [*range(1, count + 2)])
            if len(standing) > count:
                session.remove(standing[-1])
            assert np.array_equal(session.mask, masks[identity])


def test_a_stopped_server_ends_well_and_loses_nothing(start):
    first = start()
    server = Server(first.address)
    session = server.open("ct.nii.gz")
    session.add(Sent(session.to_world(A)))
    mask = session.mask.copy()
    assert first.end(signal.SIGTERM) in (0, -signal.SIGTERM)
    assert "Traceback" not in first.said
    server.close()
    with Server(start("--dialects", "none").address) as again:
        assert np.array_equal(again.resume(session.id).mask, mask)
        assert again.version()["dialects"] == []

"""Encodings of all sessions in one budget: nothing is kept beyond it, and what is made again is the same."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

import volsam
from volsam.inference.model import Decoded
from volsam.prompts import Click
from volsam.server import heap
from volsam.server.encodings import Encoded, Encodings, size_of

pytestmark = pytest.mark.slow

A, B, C = (22, 20, 14), (30, 28, 18), (12, 12, 8)
MEBIBYTE = 1 << 20


@pytest.fixture
def a_model(a_model):
    """One that encodes into a mebibyte, answers unfinished, looks at any zoom, and notes who asks it."""

    class Large(type(a_model)):
        spacing = None

        def __init__(self) -> None:
            super().__init__()
            self.alive: list[weakref.ref] = []
            self.callers: set[int] = set()
            self.encoded = 0

        @property
        def kept(self) -> int:
            gc.collect()
            return sum(reference() is not None for reference in self.alive)

        def encode(self, volume, roi):
            self.callers.add(threading.get_ident())
            self.encoded += 1
            found = np.full(MEBIBYTE, volume.data.mean() > 0, np.uint8)
            self.alive.append(weakref.ref(found))
            return found

        def decode(self, encoded, prompts, previous):
            self.callers.add(threading.get_ident())
            assert encoded.nbytes == MEBIBYTE
            found = super().decode(0.0, prompts, previous)

            def logits():
                self.callers.add(threading.get_ident())
                return found.logits * encoded[0]

            return Decoded(found.low_res, logits, found.part, found.quality)

    return Large()


# --- what is kept ----------------------------------------------------------------------------------------------------


def kept(encodings: Encodings, *names: str) -> dict[str, Encoded]:
    return {name: encodings.new(lambda: np.zeros(10, np.uint8)) for name in names}


def test_what_was_needed_last_is_kept():
    encodings = Encodings(20)
    all_of = kept(encodings, "a", "b")
    encodings.of(all_of["a"])
    all_of |= kept(encodings, "c")
    assert [name for name, one in all_of.items() if one.found is not None] == ["a", "c"]
    assert encodings.size == 20


def test_what_was_given_away_is_made_again():
    made = []
    encodings = Encodings(15)
    first = encodings.new(lambda: made.append("first") or np.arange(10, dtype=np.uint8))
    kept(encodings, "second")
    assert first.found is None
    assert np.array_equal(encodings.of(first), np.arange(10))
    assert made == ["first", "first"]


def test_the_newest_is_kept_however_large_it_is():
    encodings = Encodings(0)
    one = encodings.new(lambda: np.zeros(10, np.uint8))
    assert encodings.of(one) is encodings.of(one)
    assert encodings.size == 10


def test_what_nobody_holds_counts_no_more():
    encodings = Encodings(20)
    all_of = kept(encodings, "a", "b")
    del all_of["a"]
    all_of |= kept(encodings, "c")
    assert all_of["b"].found is not None
    assert encodings.size == 20


def test_a_draft_goes_with_the_encoding_that_it_needs():
    class Draft:
        pass

    encodings = Encodings(10)
    first, draft = encodings.new(lambda: np.zeros(10, np.uint8)), Draft()
    alive = weakref.ref(draft)
    encodings.attach(first, draft)
    del draft
    assert alive() is not None
    kept(encodings, "second")
    assert alive() is None


def test_the_size_is_that_of_all_parts():
    @dataclass
    class Parts:
        one: np.ndarray
        more: tuple
        name: str = "parts"

    torch = pytest.importorskip("torch")
    wide = torch.zeros(1).expand(1000)  # takes four bytes
    assert size_of(Parts(np.zeros(5, np.int16), (torch.zeros(3), [np.zeros(2, bool)], wide))) == 10 + 12 + 2 + 4
    assert size_of(3.5) == 0


# --- through the server ----------------------------------------------------------------------------------------------


def test_all_sessions_together_keep_no_more_than_was_set(serve, client, a_model):
    http = serve(encodings=3 * MEBIBYTE)
    people = [client(http) for _ in range(4)]
    for one in people:
        one.open()
        for place in (A, B, C):
            one.click(place)
            assert a_model.kept <= 3
    assert http.app.state.core.encodings.size == 3 * MEBIBYTE
    assert "volsam_encodings_bytes 3.145728e+06" in http.get("/metrics").text
    for one in people:
        one.ask("DELETE", "/session")
    assert a_model.kept == 0
    assert http.app.state.core.encodings.size == 0


@pytest.mark.parametrize("room", [0, 3 * MEBIBYTE, 100 * MEBIBYTE])
def test_masks_are_the_same_however_little_is_kept(serve, client, a_model, a_small_ct, room):
    http = serve(encodings=room)
    alone = volsam.Session(type(a_model)(), a_small_ct)
    ana, ben = client(http), client(http)
    ana.open()
    ben.open()

    def same() -> None:
        assert np.array_equal(ana.masks[1], alone.mask.data[0] > 0)

    for number, place in enumerate((A, B, C)):
        ana.click(place, positive=number != 1)
        ben.click(place)  # takes the room that was ana's
        alone.add(Click(tuple(alone.volume.grid.to_world(place)), number != 1))
        same()
    for action in ("undo", "undo", "redo", "reset", "undo"):
        ana.ask("POST", f"/session/{action}", json={})
        ben.click(B)
        getattr(alone, action)()
        same()
    assert np.array_equal(ana.mask(), ana.masks[1])


def test_less_room_costs_encodings_and_enough_room_none(serve, client, a_model):
    def asked(room: int) -> int:
        http, before = serve(encodings=room), a_model.encoded
        people = [client(http), client(http)]
        for one in people:
            one.open()
            one.click(A)
        for _ in range(3):
            for one in people:
                one.click(B, positive=False)
        return a_model.encoded - before

    assert asked(0) > asked(100 * MEBIBYTE)


def test_every_step_of_a_network_runs_in_the_one_thread(ana, a_model):
    for place in (A, B, C):
        ana.click(place)
    ana.ask("GET", "/session/objects/1/uncertainty")
    assert len(a_model.callers) == 1


def test_many_at_once_with_no_room_at_all_get_their_masks(serve, client, a_model, a_small_ct):
    http = serve(encodings=0)
    alone = volsam.Session(type(a_model)(), a_small_ct)
    for place in (A, B, C):
        alone.add(Click(tuple(alone.volume.grid.to_world(place))))
    people = [client(http) for _ in range(4)]
    for one in people:
        one.open()
    threads = [
        threading.Thread(target=lambda one=one: [one.click(place) for place in (A, B, C)], daemon=True)
        for one in people
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert all(np.array_equal(one.masks[1], alone.mask.data[0] > 0) for one in people)


@pytest.mark.slow
def test_the_model_that_ships_gives_the_same_masks_with_and_without_room(start, a_small_ct):
    from volsam_client import Click as Sent
    from volsam_client import Server

    alone = volsam.Session(volsam.load_model(device="cpu"), a_small_ct)
    with Server(start("--cache", "0").address) as one, Server(start("--cache", "512").address) as other:
        sessions = [server.open("ct.nii.gz") for server in (one, other)]
        for place, positive in ((A, True), (B, False), (C, True)):
            point = tuple(alone.volume.grid.to_world(place).tolist())
            alone.add(Click(point, positive))
            for session in sessions:
                session.add(Sent(point, positive))
                assert np.array_equal(session.mask, alone.mask.data[0])


# --- the heap --------------------------------------------------------------------------------------------------------

ARENAS = """
import ctypes, sys, threading
from volsam.server import heap
if sys.argv[1] == "shared":
    heap.share()
together = threading.Barrier(6)
def take():
    held = [bytes(5000) for _ in range(10)]
    together.wait()
threads = [threading.Thread(target=take) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
ctypes.CDLL(None).malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are of the GNU C library")
def test_threads_take_memory_from_one_heap():
    def arenas(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", ARENAS, how], capture_output=True, text=True, check=True)
        return done.stderr.count("Arena ")

    assert arenas("as it is") > 1
    assert arenas("shared") == 1


def test_a_c_library_without_arenas_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    heap.share()


def test_a_process_that_serves_shares_its_heap_before_models_are_loaded(monkeypatch):
    uvicorn = pytest.importorskip("uvicorn")
    from volsam.cli import serve

    done = []
    monkeypatch.setattr(heap, "share", lambda: done.append("shared"))
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: done.append("served"))
    models = SimpleNamespace(start=lambda: done.append("loaded"))
    serve.run(SimpleNamespace(state=SimpleNamespace(core=SimpleNamespace(models=models))), None, lambda: None)
    assert done == ["shared", "loaded", "served"]


KEPT = """
import ctypes, gc, sys
from volsam.server import heap
if sys.argv[1] == "forgotten":
    heap.forget()
import torch
class Info(ctypes.Structure):
    _fields_ = [(f"field{n}", ctypes.c_size_t) for n in range(10)]
inner = ctypes.CDLL(None)
inner.mallinfo2.restype = Info
def in_use():
    gc.collect()
    info = inner.mallinfo2()
    return info.field4 + info.field7  # mapped, and in the heap
torch.set_num_threads(1)
gelu = torch.nn.functional.gelu
gelu(torch.ones(1, 8))
before = in_use()
with torch.inference_mode():
    for rows in range(1, 600):
        gelu(torch.ones(rows, 8))
        torch.ones(rows, 64) @ torch.ones(64, 300)
print(in_use() - before)
"""


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="needs MKL, and a C library that tells what is in use",
)
def test_libraries_forget_what_they_were_asked_before():
    # A test before this one may have had a command say it to this process.
    environment = {name: value for name, value in os.environ.items() if name not in heap.KEPT}

    def kept(how: str) -> int:
        line = [sys.executable, "-c", KEPT, how]
        return int(subprocess.run(line, capture_output=True, text=True, check=True, env=environment).stdout)

    as_it_is, forgotten = kept("as it is"), kept("forgotten")
    assert forgotten < as_it_is / 2


def test_a_command_that_serves_says_so_before_torch_is_there():
    script = """
import os, sys
from volsam.cli.serve import parts
from volsam.server import heap
heap.forget = lambda: print("torch" in sys.modules)
parts("serve")
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]

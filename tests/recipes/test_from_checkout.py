"""Networks from a checkout: here one that the test writes, with the names and the habits of published ones."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from volsam.cli import app
from volsam.errors import BadFile, BadInput
from volsam.recipes import trained
from volsam.recipes.methods import runs
from volsam.recipes.methods.from_checkout import PRESETS, TRUSTED, Answer, CheckoutConfig, complete

from ..training.conftest import make_dataset

PARTS = """
from torch import nn

def layer(channels, classes):
    return nn.Conv3d(channels, classes, 3, padding=1)
"""
NETWORK = """
from os import system
from pathlib import Path

import torch
from torch import nn

from toynet.parts import layer

with (Path(__file__).parent / "imported.txt").open("a") as file:
    file.write("once\\n")


class Toy(nn.Module):
    def __init__(self, channels, classes, size, depth=1, deep=False):
        super().__init__()
        self.first = layer(channels, classes)
        self.more = nn.Sequential(*(layer(classes, classes) for _ in range(depth - 1)))
        self.size, self.deep = list(size), deep

    def forward(self, x):
        assert list(x.shape[2:]) == self.size, "another size"
        x = self.more(self.first(x))
        return [x, x[:, :, ::2, ::2, ::2]] if self.deep else x


def pair(**arguments):
    return [1, 2], Toy(**arguments)


def hungry(**arguments):
    import no_such_package
"""
ARGUMENTS = "{channels: $channels, classes: $classes, size: $patch, depth: 2}"
QUICK = ["--set", "max_steps=2", "--set", "edge=32", "--set", "augment=none", "--device", "cpu"]


@pytest.fixture(autouse=True)
def a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("VOLSAM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(TRUSTED, raising=False)


@pytest.fixture
def a_dataset(tmp_path):
    return make_dataset(tmp_path / "Dataset001_Shapes")


@pytest.fixture
def a_checkout(tmp_path):
    """Its folder; what was imported from it is forgotten afterwards."""
    folder = tmp_path / "checkout"
    (folder / "toynet").mkdir(parents=True)
    (folder / "toynet/parts.py").write_text(PARTS)
    (folder / "toynet/network.py").write_text(NETWORK)
    (folder / "toynet/wanting.py").write_text("import no_such_package\n")
    (folder / "toynet/script.py").write_text("import sys\nsys.exit('usage: script DATA')\n")
    yield folder
    forget("toynet")


def forget(package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def said(*words):
    done = CliRunner().invoke(app, list(map(str, words)))
    return done.exit_code, done.output


def train(dataset, run, checkout, *more):
    words = ["--set", f"path={checkout}", "--set", "factory=toynet.network:Toy", "--set", f"arguments={ARGUMENTS}"]
    return said("train", "checkout", dataset.folder, "-o", run, *words, *QUICK, *more)


def times_imported(checkout):
    return (checkout / "toynet/imported.txt").read_text().count("once")


def test_a_network_from_a_checkout_is_trained_and_scored_like_any_other(a_dataset, a_checkout, tmp_path, monkeypatch):
    code, output = train(a_dataset, tmp_path / "run", a_checkout)
    assert code == 0, output
    assert "expected: about" in output
    config = json.loads((tmp_path / "run/run.json").read_text())["config"]
    assert (config["path"], config["factory"]) == (str(a_checkout), "toynet.network:Toy")
    assert config["arguments"] == {"channels": "$channels", "classes": "$classes", "size": "$patch", "depth": 2}
    monkeypatch.setenv(TRUSTED, str(a_checkout))
    code, output = said("evaluate", tmp_path / "run", a_dataset.folder, "-o", tmp_path / "report", "--pictures", 0)
    assert code == 0, output
    rows = json.loads((tmp_path / "report/results.json").read_text())["rows"]
    assert {row["object"] for row in rows} == {"ball", "box"}
    code, output = train(a_dataset, tmp_path / "run", a_checkout)
    assert code == 0, output  # the same command again goes on with a run that is done


def test_a_stored_run_executes_no_code_until_the_user_says_so(a_dataset, a_checkout, tmp_path, monkeypatch):
    train(a_dataset, tmp_path / "run", a_checkout)
    forget("toynet")
    before = times_imported(a_checkout)
    for words in (
        ["evaluate", tmp_path / "run", a_dataset.folder, "-o", tmp_path / "report"],
        ["predict", tmp_path / "run", a_dataset.cases[0].images[0], "-o", tmp_path / "labels"],
    ):
        code, output = said(*words)
        assert code == 1
        assert f"if you trust both, name the folder in the environment, {TRUSTED}={a_checkout}" in output
        assert len(output.strip().splitlines()) == 1
    assert times_imported(a_checkout) == before
    monkeypatch.setenv(TRUSTED, str(a_checkout))
    trained.load_run(tmp_path / "run", "cpu")
    assert times_imported(a_checkout) == before + 1


def test_a_checkout_may_move_but_not_go_or_change(a_dataset, a_checkout, tmp_path, monkeypatch):
    train(a_dataset, tmp_path / "run", a_checkout)
    forget("toynet")
    moved = a_checkout.rename(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match=r"checkout, which is not there any more, and loading it runs"):
        trained.load_run(tmp_path / "run", "cpu")
    monkeypatch.setenv(TRUSTED, str(a_checkout))
    with pytest.raises(BadFile, match=r"there is no checkout at .*bring it back"):
        trained.load_run(tmp_path / "run", "cpu")
    monkeypatch.setenv(TRUSTED, str(moved))
    trained.load_run(tmp_path / "run", "cpu")
    with (moved / "toynet/network.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(BadFile, match="is not what it was when this run was trained"):
        trained.load_run(tmp_path / "run", "cpu")


def test_of_several_outputs_the_wanted_one_is_learnt_from(a_dataset, a_checkout, tmp_path):
    deep = ARGUMENTS.replace("depth: 2", "deep: true")
    code, output = train(a_dataset, tmp_path / "run", a_checkout, "--set", f"arguments={deep}")
    assert code == 0, output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["path="], "say where it is with --set path=FOLDER"),
        (["path=/nowhere"], "there is no checkout at /nowhere"),
        (["factory="], "--set preset=NAME with one of nnformer, transbts, unetr++"),
        (["factory=Toy"], "is not of the form MODULE:CALLABLE"),
        (["factory=toynet.other:Toy"], "has no toynet/other.py"),
        (["factory=toynet.network:Tony"], "defines no callable 'Tony'"),
        (["factory=toynet.network:system"], "the callable is not of the checkout"),
        (["factory=toynet.wanting:Toy"], "wants the package 'no_such_package', which is not here"),
        (["factory=toynet.script:Toy"], "could not be imported: SystemExit: usage: script DATA"),
        (["factory=toynet.network:pair"], "gave a tuple, where a network (nn.Module) is wanted"),
        (["factory=toynet.network:hungry"], "failed: ModuleNotFoundError"),
        (["arguments={chanels: 1}"], "unexpected keyword argument 'chanels'"),
        (["arguments={channels: $chanels}"], "$chanels stands for nothing; there are $channels, $classes"),
        (
            ["arguments={channels: 1, classes: 2, size: $patch}"],
            "gave shape (2, 2, 32, 32, 32); scores of 3 ",
        ),
        (["arguments={channels: 1, classes: 3, size: [8, 8, 8]}"], "failed on 1 channel(s) of 32 × 32 × 32 voxels"),
        (["patch=[32,32,16]", "arguments={channels: $side}"], "wants a cube"),
        (["preset=nnFormer"], "preset='nnFormer' is not valid"),
    ],
)
def test_what_will_not_do_is_told_in_one_line(a_dataset, a_checkout, tmp_path, words, told):
    code, output = train(a_dataset, tmp_path / "run", a_checkout, *(part for word in words for part in ("--set", word)))
    assert code == 1
    assert told in output
    assert output.strip().splitlines()[-1].startswith("error: ")


# --- published networks ----------------------------------------------------------------------------------------------

# The parameters that the public constructors have; what they would compute is no matter here.
PUBLISHED = {
    "nnformer": "crop_size, embedding_dim=192, input_channels=1, num_classes=14, conv_op=None, depths=None, "
    "num_heads=None, patch_size=None, window_size=None, deep_supervision=True",
    "transbts": "img_dim, patch_dim, num_channels, num_classes, embedding_dim, num_heads, num_layers, hidden_dim, "
    "dropout_rate=0.0, attn_dropout_rate=0.0, conv_patch_representation=True, positional_encoding_type='learned'",
    "unetr++": "in_channels, out_channels, img_size, feature_size=16, hidden_size=256, num_heads=4, pos_embed='', "
    "norm_name='', dropout_rate=0.0, depths=None, dims=None, conv_op=None, do_ds=True",
}
STANDIN = """
from torch import nn

class {name}(nn.Module):
    def __init__(self, {parameters}):
        super().__init__()
        given = dict(locals())
        self.given = {{name: value for name, value in given.items() if name not in ("self", "__class__")}}
        channels = next(given[name] for name in ("input_channels", "num_channels", "in_channels") if name in given)
        classes = next(given[name] for name in ("num_classes", "out_channels") if name in given)
        self.layer = nn.Conv3d(channels, classes, 1)

    def forward(self, x):
        x = self.layer(x)
        return x.softmax(dim=1) if "img_dim" in self.given else x
"""


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_speaks_to_the_published_constructor(preset, a_dataset, tmp_path):
    module, _, name = PRESETS[preset].factory.partition(":")
    file = tmp_path.joinpath("published", *module.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True)
    file.write_text(STANDIN.format(name=name, parameters=PUBLISHED[preset]))
    settings = {"path": str(tmp_path / "published"), "preset": preset, "patch": [32, 32, 32], "max_steps": 1}
    fold = runs.choose_cases(a_dataset, 0, 1, 0)
    try:
        job = runs.start("checkout", a_dataset, tmp_path / "run", settings=settings, fold=fold)
        runs.train(job)
    finally:
        forget(module.partition(".")[0])
    given = job.network.inner.given
    size = next(given[each] for each in ("crop_size", "img_dim", "img_size") if each in given)
    assert size == (32 if preset == "transbts" else [32, 32, 32])
    assert not given.get("deep_supervision", False)
    assert not given.get("do_ds", False)
    assert job.config.answer == ("probabilities" if preset == "transbts" else "logits")


def test_what_is_said_besides_a_preset_wins_over_it(tmp_path):
    file = tmp_path / "models/TransBTS/TransBTS_downsample8x_skipconnection.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    found = complete({"path": str(tmp_path), "preset": "transbts", "arguments": {"num_layers": 2}}, None)
    assert found["arguments"]["num_layers"] == 2
    assert found["arguments"]["embedding_dim"] == 512
    assert found["patch"] == (128, 128, 128)
    assert complete(found | {"patch": (64, 64, 64)}, None)["patch"] == (64, 64, 64)


def test_probabilities_become_logits_of_the_same_classes():
    scores = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    answer = Answer(torch.nn.Softmax(dim=1), 3, CheckoutConfig(answer="probabilities"))
    np.testing.assert_allclose(answer(scores), scores.log_softmax(dim=1), atol=1e-4)
    certain = torch.tensor([200.0, 0.0, 0.0]).reshape(1, 3, 1, 1, 1)
    assert answer(certain).isfinite().all()

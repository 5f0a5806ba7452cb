"""The client is for places that have no torch: its own distribution, numpy only."""

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[2] / "client"

BLOCKED = """
import sys
sys.path.insert(0, {folder!r})
for name in ("torch", "volsam", "fastapi", "httpx", "requests", "scipy", "nibabel", "monai", "SimpleITK", "pydantic"):
    sys.modules[name] = None
import volsam_client
assert sorted(volsam_client.__all__) == volsam_client.__all__
for name in volsam_client.__all__:
    getattr(volsam_client, name)
volsam_client.Server("http://127.0.0.1:9").close()
"""


def test_the_client_imports_without_torch_and_without_volsam():
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(folder=str(CLIENT))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_distribution_asks_for_numpy_only():
    text = (CLIENT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^dependencies = \[(.*)\]$", text, re.MULTILINE)
    assert found is not None
    assert re.findall(r'"([a-z0-9-]+)', found[1]) == ["numpy"]

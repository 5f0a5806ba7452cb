"""The module in a browser: trame-slicer's segmentation application with VolSamLib in it, instead of Slicer with Qt.

It is a program of this checkout, not a part of the extension. What it shows is Slicer's own scene and views.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

_MODULE = Path(__file__).resolve().parents[1] / "VolSam"
if find_spec("VolSamLib") is None:
    sys.path.append(str(_MODULE))

"""What the module does, in parts that know no Qt (all but `widget`) and no torch.

What a server understands is said by `volsam_client`. The built extension has it beside this package; a checkout has it
in `client/`.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[3] / "client"
if find_spec("volsam_client") is None and (_CHECKOUT / "volsam_client").is_dir():
    sys.path.append(str(_CHECKOUT))

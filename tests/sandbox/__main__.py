"""``python -m sandbox FOLDER``: four facilities behind Globus, until Ctrl-C."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from sandbox.rehearsal import main

main(Path(sys.argv[1]))

"""What all tests share: helpers in tests/support can be imported by their names."""

import sys
from pathlib import Path

# --import-mode=importlib leaves folders off the path.
sys.path.insert(0, str(Path(__file__).parent / "support"))

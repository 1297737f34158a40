"""Makes the golden casks' maker importable."""

import sys
from pathlib import Path

# --import-mode=importlib leaves the folder off the path.
sys.path.insert(0, str(Path(__file__).parent))

"""Official annotations of the benchmarks -> the label maps that evaluation reads.

python -m freecp_d2.data.prepare <name> [...] [--root FOLDER] [--workers N] [--verify] [--partial]
"""

from .verify import Verified, verify
from .write import Prepared, prepare

__all__ = ["Prepared", "Verified", "prepare", "verify"]

"""Official annotations of the eight benchmarks -> the label maps that evaluation reads.

python -m freecp_d2.data.prepare <benchmark> [...] [--root FOLDER] [--workers N] [--verify]
"""

from .verify import Verified, verify
from .write import Prepared, prepare

__all__ = ["Prepared", "Verified", "prepare", "verify"]

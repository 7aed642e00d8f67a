"""Segment images, or a video, of one's own into classes that are named in words.

    python projects/Demo/demo.py --config-file scenes/clearclip \\
        --vocabulary "sky,lawn,road,mushroom" --input photo.jpg folder/ --output output/photos

The code is in freecp_d2/cli/segment/, which `freecp segment` runs where the library is installed.
"""

import os
import sys

from freecp import openmp_settings

if __name__ == "__main__":
    os.environ.update(openmp_settings())

    from freecp_d2.cli.segment import main

    sys.exit(main())

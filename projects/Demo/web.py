"""A web page: drop a picture, type classes, see a base method without and with FreeCP.

    python projects/Demo/web.py --config-file scenes/clearclip

Then open http://127.0.0.1:7860. The page is served to this machine alone unless --host says
otherwise. Uploads lie in a temporary folder, are deleted after some minutes, and all of it when the
page is shut down (Ctrl-C). The words that people type stay in memory, until their session ends.
The code is in freecp_d2/cli/web, which `freecp web` runs where the library is installed.
"""

import os

from freecp import openmp_settings

if __name__ == "__main__":
    os.environ.update(openmp_settings())

    from freecp_d2.cli.web import main

    main()

"""A web page: drop a picture, type classes, see a base method without and with FreeCP.

    python projects/Demo/web.py --config-file scenes/clearclip

Then open http://127.0.0.1:7860. The page is served to this machine alone unless --host says
otherwise. Uploads lie in a temporary folder, are deleted after some minutes, and all of it when the
page is shut down (Ctrl-C). The words that people type stay in memory, until their session ends.
The page itself: freecp_d2/cli/web.
"""

import os

if __name__ == "__main__":
    # Before torch and huggingface_hub are loaded; see train_net.py and freecp_d2/cli/web.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

    from freecp_d2.cli.web import main

    main()

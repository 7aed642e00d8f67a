"""Take the picture of the web page that the README shows, or pictures of it in six sizes.

    python projects/Demo/screenshot.py --output docs/pictures/web.png
    python projects/Demo/screenshot.py --looks output/looks

Needs Playwright (`pip install playwright`) and a chromium.
"""

import argparse
import io
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Literal

from PIL import Image

WIDTHS = 390, 768, 1440
ROOT = Path(__file__).resolve().parents[2]
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """The path of an installed chromium."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def serve(**environment: str) -> Iterator[str]:
    """Run web.py on a free port; gives the page's address.

    Args:
        environment: the whole of it, where given.

    Raises:
        RuntimeError: the page did not come up, or did not shut down when told to.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "projects/Demo/web.py"), "--port", str(port)]
    page = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment or None)
    try:
        assert page.stdout is not None
        if not any(line.startswith("Open ") for line in page.stdout):
            raise RuntimeError(f"web.py ended with {page.wait()} before it served, see above")
        urllib.request.urlopen(f"http://127.0.0.1:{port}").close()
        yield f"http://127.0.0.1:{port}"
        page.send_signal(signal.SIGTERM)
        if page.wait(60):
            raise RuntimeError(f"web.py ended with {page.returncode}, see above")
    finally:
        page.kill()
        page.wait()


def take(url: str, width: int, scheme: Literal["light", "dark"]) -> Image.Image:
    """The whole page as it is when it has been loaded."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto(url)
        page.wait_for_function("window.freecp?.ready")
        page.wait_for_timeout(1_000)  # until everything has faded in
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        browser.close()
    return picture


def main() -> None:
    """Serve, take the pictures, write that of the README in 256 colours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs/pictures/web.png")
    parser.add_argument(
        "--looks",
        type=Path,
        metavar="FOLDER",
        help="for telephones, tablets and desks, light and dark, in place of --output",
    )
    args = parser.parse_args()
    if find_chromium() is None:
        sys.exit("screenshot.py: no chromium found; install one (apt install chromium)")
    with serve() as url:
        for width, scheme in product(WIDTHS if args.looks else (), ("light", "dark")):
            args.looks.mkdir(parents=True, exist_ok=True)
            take(url, width, scheme).save(args.looks / f"{width}_{scheme}.png")
        if args.looks:
            return
        picture = take(url, 1280, "light")
    # Of Pillow's methods the one that keeps the few pixels of the legend's colours.
    picture = picture.convert("RGB")
    few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(args.output, optimize=True)
    print(f"{args.output}: {args.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

"""By which route did SmolLM2-135M-Instruct come to want the blue wire cut?

Prints the graph of the demo's decision (see run.py) and writes the page demo-graph.html. With a file name, and Chromium
on the path, it also draws the page into that file: ``python demo/graph.py docs/graph.png`` made the README's picture.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from run import PROMPT
from smollm2 import model_directory

from lrp_fast.cli import main

PAGE = Path("demo-graph.html")


def draw(picture: Path) -> None:
    """A picture of the page as it opens, with the node at layer 24 of the last token chosen."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("no Chromium on the path, which draws the picture")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1000",
             f"--user-data-dir={profile}", f"--screenshot={picture.resolve()}", PAGE.resolve().as_uri() + "#24,28"],
            check=True, capture_output=True,
        )  # fmt: skip


if __name__ == "__main__":
    status = main(
        ["graph", str(model_directory()), "--prompt", PROMPT, "--target", " blue", "--contrast", " red"]
        + ["--paths", "3", "--html", str(PAGE)]
    )
    if status == 0 and len(sys.argv) > 1:
        draw(Path(sys.argv[1]))
    sys.exit(status)

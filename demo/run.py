"""Why does SmolLM2-135M-Instruct want the blue wire cut?

The prompt says to cut the red wire and not the blue one; the model's first choice for the next token is " blue". It is
one of many that were tried, picked for being plain to read. `make demo` runs this; it prints the table and writes
demo.html, demo.json and demo.safetensors.
"""

import sys

from smollm2 import model_directory

from lrp_fast.cli import main

PROMPT = """\
Cut the red wire. Do not cut the blue wire.

Question: Which wire should I cut?
Answer: You should cut the"""

if __name__ == "__main__":
    sys.exit(
        main(
            ["attribute", str(model_directory()), "--prompt", PROMPT, "--out", "demo"]
            + ["--target", " blue", "--contrast", " red"]
        )
    )

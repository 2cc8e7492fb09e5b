"""
Shows what a trained model makes of text.

    python sample.py --run=out/quickstart --mode=reconstruct --text="Return the number of items in the list."
    python sample.py --run=out/quickstart --mode=embed --text="$(cat lines.txt)"

`reconstruct` reads the text into concepts and predicts it from those alone; `embed` prints one JSON list a text.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lab import command, runs
from lab.configurator import parse


@dataclass
class SampleConfig:
    run: Annotated[str, "run folder that train.py wrote"] = ""
    mode: Annotated[Literal["reconstruct", "embed"], "what to do with each text"] = "reconstruct"
    text: Annotated[str, "the text; several lines are several texts"] = ""
    ckpt: Annotated[str, "latest, best or a step"] = "latest"
    device: Annotated[str, "auto, cpu or cuda"] = "auto"

    def __post_init__(self):
        if not self.run:
            raise ValueError("no run is given; write --run=out/quickstart")
        if not self.text.strip():
            raise ValueError('no text is given; write --text="some text"')


def main(argv) -> int:
    root = Path(__file__).resolve().parent
    parsed = parse(argv, SampleConfig, prog="sample.py", doc=__doc__, root=root, positional=False)
    config = parsed.make(SampleConfig)
    texts = config.text.splitlines()
    run = runs.load_run(config.run, config.ckpt, config.device)
    if config.mode == "embed":
        for vector in run.embed(texts):
            print(json.dumps([round(x, 6) for x in vector.tolist()]))
        return 0
    for text in texts:
        predicted, agree = run.generate(text)
        print(f"text:      {text}\npredicted: {predicted}\n           {agree:.0%} of the tokens are the same\n")
    return 0


if __name__ == "__main__":
    command.command(main)

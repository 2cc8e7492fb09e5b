"""
Shows what a trained model makes of text.

    python sample.py --run=out/quickstart --mode=reconstruct --text="Return the number of items in the list."
    python sample.py --run=out/quickstart --mode=embed --text="$(cat lines.txt)"
    python sample.py --run=out/quickstart --mode=neighbours --text="king river tuesday"

`reconstruct` reads the text into concepts and predicts it from those alone; `embed` prints one JSON list a text;
`neighbours` prints, for each word of the text, the tokens whose embeddings have the largest cosine to that of its
(first) token.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch.nn.functional import normalize

from lab import command, dataset, runs
from lab.configurator import parse

NEIGHBOURS = 8


@dataclass
class SampleConfig(runs.OneRun):
    mode: Annotated[Literal["reconstruct", "embed", "neighbours"], "what to do with each text"] = "reconstruct"
    text: Annotated[str, "the text; several lines are several texts"] = ""
    temperature: Annotated[
        float, "reconstruct: tokens are drawn from softmax(logits / temperature); 0: the likeliest"
    ] = 0.0
    seed: Annotated[int, "of what is drawn"] = 0

    def __post_init__(self):
        super().__post_init__()
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature} is negative; write 0 for the likeliest token")
        if not self.text.strip():
            raise ValueError('no text is given; write --text="some text"')


def neighbours(run: runs.LoadedRun, words: list[str]) -> list[str]:
    """A line for each word: its token, and the nearest others by the cosine of their embeddings."""
    table = normalize(run.model.tokens.weight.detach().float(), dim=1)
    special = list(dataset.special_ids(run.tokenizer).values())
    lines = []
    for word, ids in zip(words, run.encode_texts(words), strict=True):
        cosines = table @ table[ids[0]]
        cosines[[ids[0], *special]] = -1
        values, nearest = cosines.topk(min(NEIGHBOURS, len(cosines)))
        shown = [f"{run.tokenizer.decode([i]).strip()} {v:.2f}" for v, i in zip(values, nearest.tolist(), strict=True)]
        note = f" (of {len(ids)} tokens the first, {run.tokenizer.decode(ids[:1])!r})" if len(ids) > 1 else ""
        lines.append(f"{word}{note}: {', '.join(shown)}")
    return lines


def main(argv) -> int:
    root = Path(__file__).resolve().parent
    parsed = parse(argv, SampleConfig, prog="sample.py", doc=__doc__, root=root, positional=False)
    config = parsed.make(SampleConfig)
    texts = config.text.splitlines()
    run = config.load()
    if config.mode == "neighbours":
        print("\n".join(neighbours(run, config.text.split())))
    elif config.mode == "embed":
        for vector in run.embed(texts):
            print(json.dumps([round(x, 6) for x in vector.tolist()]))
    else:
        torch.manual_seed(config.seed)
        for text in texts:
            predicted, agree = run.generate(text, config.temperature)
            print(f"text:      {text}\npredicted: {predicted}\n           {agree:.0%} of the tokens are the same\n")
    return 0


if __name__ == "__main__":
    command.command(main)

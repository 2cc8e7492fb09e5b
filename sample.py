"""
Shows what a trained model predicts from texts.

    python sample.py --run=out/quickstart --mode=reconstruct --text="Return the number of items in the list."
    python sample.py --run=out/quickstart --mode=interpolate --file=pairs.txt --steps=7
    python sample.py --run=out/prefix_cpu --mode=continue --text="Return the number of"
    python sample.py --run=out/diffusion_elbo_cpu --mode=unmask --text="Return the [MASK] of items." --order=ancestral
    python sample.py --run=out/quickstart --mode=embed --text="$(cat lines.txt)"
    python sample.py --run=out/quickstart --mode=neighbours --text="king river tuesday"

`reconstruct` encodes the text into concepts and decodes it from them alone; `interpolate` decodes points on the line
between the concepts of two texts; `swap` decodes the first half of one text's concepts with the second half of the
other's; `continue` predicts what follows (objective prefix); `unmask` fills in [MASK]s, or generates the whole text
from its concepts in several passes (objective diffusion); `embed` prints one JSON list per text; `neighbours` prints,
for each word, the tokens whose embeddings are most similar (cosine) to that of its first token.

If the true text is known, two token accuracies are printed: teacher-forced (given the true previous tokens, if the
decoder sees tokens) and free-running (given its own). --file=FILE reads one text per line and prints one prediction per
line; --json=True prints one object per prediction.
"""

from lab import command  # isort: skip  (first: it tells an older Python)
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch.nn.functional import normalize

from lab.analysis.measure import written
from lab.configurator import PathStr, UserError, fields_of, parse, warn
from lab.data import text_files
from lab.data.tokenizers import clean, special_ids
from lab.runs import LoadedRun, OneRun
from noise import count
from objectives import Bounds, ObjectiveConfig, Objectives

NEIGHBOURS = 8
PAIRED = ("interpolate", "swap")  # modes that take two texts


@dataclass
class SampleConfig(OneRun):
    mode: Annotated[
        Literal["reconstruct", "interpolate", "swap", "continue", "unmask", "embed", "neighbours"],
        "what to do with each text, or each pair of texts",
    ] = "reconstruct"
    text: Annotated[str, "the text; several lines are several texts"] = ""
    file: Annotated[
        PathStr, 'instead of text: a file with one text, or JSON with a "text", per line; prints one line per text'
    ] = ""
    temperature: Annotated[
        float,
        "predicted tokens are sampled from softmax(logits / temperature); 0: the most likely one",
        Bounds(0),
    ] = 0.0
    steps: Annotated[
        int,
        "interpolate: points on the line, ends included (0: 5); unmask: passes (0: as many as tokens)",
        Bounds(0),
    ] = 0
    order: Annotated[
        Literal["confidence", "ancestral"], "unmask: the most confident tokens first, or random order (ancestral)"
    ] = "confidence"
    length: Annotated[int, "continue, unmask of the next text: tokens to predict (0: as in training)", Bounds(0)] = 0
    json: Annotated[bool, "print a JSON object per prediction"] = False
    seed: Annotated[int, "random seed of sampling"] = 0

    def __post_init__(self):
        super().__post_init__()
        if self.mode == "interpolate" and self.steps == 1:
            raise ValueError("steps = 1, but a line has two ends; leave steps out")
        if self.text and self.file:
            raise ValueError("both a text and a file are given; leave one out")
        if not self.file and not self.text.strip():
            raise ValueError('no text is given; write --text="some text"')

    def texts(self) -> list[str]:
        return text_files.read_lines(self.file) if self.file else clean(self.text).splitlines()


def neighbours(run: LoadedRun, words: list[str]) -> list[dict]:
    """For each word: its first token, its number of tokens, and the nearest tokens by cosine of embeddings."""
    table = normalize(run.model.tokens.weight.detach().float(), dim=1)
    special = list(special_ids(run.tokenizer).values())
    found = []
    for word, ids in zip(words, run.encode_texts(words), strict=True):
        cosines = table @ table[ids[0]]
        cosines[[ids[0], *special]] = -1
        values, nearest = cosines.topk(min(NEIGHBOURS, len(cosines)))
        near = [(run.tokenizer.decode([i]).strip(), v.item()) for v, i in zip(values, nearest.tolist(), strict=True)]
        found.append({"word": word, "token": run.tokenizer.decode(ids[:1]), "of": len(ids), "neighbours": near})
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Predictions. Each is a record: text(s), "predicted" and, if the true text is known, both accuracies.


def follows(part) -> bool:
    """Whether this part of an objective predicts a continuation of what the encoder reads."""
    return part.name == "prefix" or part.adjacent_rows


def trained_part(run: LoadedRun, mode: str):
    """The part of the run's objective that trained what this mode shows; UserError if there is none."""
    if run.model.decoder is None:
        raise UserError("the run was trained without a decoder, so it predicts no text; use its embeddings")
    keys = {key: run.config[key] for key in fields_of(ObjectiveConfig)}
    parts = [part for part in Objectives(ObjectiveConfig(**keys)).parts if part.predicts == "positions"]
    fits, train = {
        "continue": (lambda part: part.name == "prefix", "config/prefix_cpu.py"),
        "unmask": (lambda part: part.name == "diffusion", "config/diffusion_elbo_cpu.py"),
    }.get(mode, (lambda part: not follows(part), "config/quickstart.py"))
    if found := next(filter(fits, parts), None):
        return found
    modes = {"unmask" if part.name == "diffusion" else "continue" if follows(part) else "reconstruct" for part in parts}
    what = f"objective={run.config['objective']!r} did not train what mode={mode} shows"
    raise UserError(f"{what}; write --mode={min(modes)}, or train {train}")


def accuracies(ids, out) -> dict:
    """Token accuracies of `written`, given the true tokens ids."""
    return {name.replace("-", "_"): float((x == ids).cpu().double().mean()) for name, x in out.items()}


def reconstruct(run, config, part, text):
    ids = run.read(text)
    out = written(run.model, run.model.encode(ids), ids, config.temperature)
    return [{"text": text, "predicted": run.show(out["free-running"][0])} | accuracies(ids, out)]


def interpolate(run, config, part, *texts):
    ids = [run.read(text) for text in texts]
    ends, steps = [run.model.encode(x) for x in ids], config.steps or 5
    records = []
    for i in range(steps):
        share = i / (steps - 1)
        concepts, length = torch.lerp(*ends, share), round((1 - share) * ids[0].shape[1] + share * ids[1].shape[1])
        record = {"share": share}
        if share in (0, 1):  # the true text is known
            out = written(run.model, concepts, ids[int(share)], config.temperature)
            record |= {"text": texts[int(share)]} | accuracies(ids[int(share)], out)
            predicted = out["free-running"]
        else:
            predicted = run.model.generate(concepts, length, config.temperature)
        records.append(record | {"predicted": run.show(predicted[0])})
    return records


def swap(run, config, part, *texts):
    ids = [run.read(text) for text in texts]
    concepts = [run.model.encode(x) for x in ids]
    half, records = concepts[0].shape[1] // 2, []
    for i in (0, 1):  # with the length of the text that gives the first half
        mixed = torch.cat([concepts[i][:, :half], concepts[1 - i][:, half:]], 1)
        predicted = run.model.generate(mixed, ids[i].shape[1], config.temperature)
        records.append({"first": texts[i], "second": texts[1 - i], "predicted": run.show(predicted[0])})
    return records


def length_of(run, config, usual: int) -> int:
    """How many tokens to predict: --length, or `usual`."""
    if config.length > run.model.config.max_length:
        raise UserError(f"length={config.length} is past max_length; write {run.model.config.max_length} or less")
    return config.length or usual


def continue_(run, config, part, text):
    (ids,), longest, rates = run.encode_texts([text]), run.max_length, part.config.prefix_rate
    least, most = (longest, longest) if part.adjacent_rows else (count(min(rates), longest), count(max(rates), longest))
    if len(ids) > most:
        warn(f"the text has {len(ids)} tokens; only the last {most} are read, as in training")
    ids = torch.tensor([ids[-most:]], device=run.device)
    usual = longest if part.adjacent_rows else longest - max(least, ids.shape[1])
    predicted = run.model.generate(run.model.encode(ids), length_of(run, config, usual), config.temperature, True)
    return [{"text": text, "predicted": run.show(predicted[0])}]


def masked(run, text: str):
    """Text with [MASK]s -> ids [1, n]. The pieces between [MASK]s are encoded separately."""
    mask, parts = run.tokenizer.id_to_token(run.model.mask_id), []
    for piece in text.split(mask):
        spaced = piece[:1].isspace() or not parts
        encoded = run.encode_texts([piece])[0] if spaced else run.tokenizer.encode(piece, add_special_tokens=False).ids
        parts += [*(encoded if piece.strip() else []), run.model.mask_id]
    ids = torch.tensor([parts[:-1][: run.max_length]], device=run.device)
    if (ids == run.model.mask_id).all():
        raise UserError(f"{text!r} has nothing that can be read; write some words beside {mask}")
    return ids


def unmask(run, config, part, text):
    model, mask = run.model, run.model.mask_id
    given = run.tokenizer.id_to_token(mask) in text
    if given and follows(part):
        raise UserError("the run predicts the next text whole; leave [MASK] out of the text that is read")
    ids = masked(run, text) if given else run.read(text)
    seen = (ids[0] != mask).nonzero().T  # [1, S]: the encoder never reads [MASK] in training
    concepts, length = model.encode(ids[:, seen[0]], seen), ids.shape[1]
    if follows(part):
        length = length_of(run, config, run.max_length)
    canvas = ids if given else torch.full((1, length), mask, device=run.device)
    how = (config.steps, config.order, config.temperature)
    out = {"free-running": model.unmask(concepts, canvas, *how)}
    record = {"text": text, "predicted": run.show(out["free-running"][0])}
    if given or follows(part):
        return [record]
    return [record | accuracies(ids, {"teacher-forced": model.unmask(concepts, canvas, *how, truth=ids)} | out)]


MAKERS = {"reconstruct": reconstruct, "interpolate": interpolate, "swap": swap, "continue": continue_, "unmask": unmask}


def lines_of(record: dict) -> str:
    """A record as text: input, prediction, accuracies."""
    lines = [f"{key + ':':<11}{record[key]}" for key in ("first", "second", "text", "predicted") if key in record]
    if "share" in record:
        lines.insert(0, f"{'share:':<11}{record['share']:.2f} of the second")
    if "free_running" in record:
        both = f"teacher-forced {record['teacher_forced']:.0%}, free-running {record['free_running']:.0%}"
        lines.append(f"{'':<11}{both} of the tokens are the same")
    return "\n".join(lines) + "\n"


def predictions(run: LoadedRun, config: SampleConfig, texts: list[str]):
    """Yields records; the prediction for an empty text is empty."""
    part, size = trained_part(run, config.mode), 2 if config.mode in PAIRED else 1
    if len(texts) % size:
        raise UserError(f"mode={config.mode} takes two texts, a line each, and {len(texts)} are given; write one more")
    torch.manual_seed(config.seed)
    for i in range(0, len(texts), size):
        given = texts[i : i + size]
        yield from (
            MAKERS[config.mode](run, config, part, *given)
            if all(map(str.strip, given))
            else [{"text": "", "predicted": ""}]
        )


def main(argv) -> int:
    root = Path(__file__).resolve().parent
    parsed = parse(argv, SampleConfig, prog="sample.py", doc=__doc__, root=root, positional=False)
    config = parsed.make(SampleConfig)
    texts = config.texts()
    run = config.load()
    if config.mode == "neighbours":
        for found in neighbours(run, " ".join(texts).split()):
            note = f" (of {found['of']} tokens the first, {found['token']!r})" if found["of"] > 1 else ""
            near = ", ".join(f"{token} {cosine:.2f}" for token, cosine in found["neighbours"])
            print(json.dumps(found) if config.json else f"{found['word']}{note}: {near}")
    elif config.mode == "embed":
        for text, vector in zip(texts, run.embed(texts).tolist(), strict=True):
            vector = [round(x, 6) for x in vector]
            print(json.dumps({"text": text, "vector": vector} if config.json else vector))
    else:
        for record in predictions(run, config, texts):
            if config.json:
                print(json.dumps({"mode": config.mode} | record))
            else:
                print(" ".join(record["predicted"].split()) if config.file else lines_of(record))
    return 0


if __name__ == "__main__":
    command.command(main)

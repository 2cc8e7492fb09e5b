"""
Did a model collapse, what is each of its concepts worth, and does its decoder use them?

    python analyze.py --run=out/quickstart            # RUN/analysis/: report.html, metrics.json, pictures
    python analyze.py --run=out/quickstart --quick    # a health check: a line a finding; exit code 3 if there is one

It reads the rows of the validation text that the run folder keeps (its shortest row length), so it needs no data.
Beside each number stands that of the untrained twin: the same model as it began.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

import geometry
from lab import command, dataset, report
from lab.command import say
from lab.configurator import UserError, fields_of, parse
from lab.distributed import World
from lab.files import write_atomic
from lab.runs import LoadedRun, OneRun, RunFolder
from lab.validation import Batch, Judge
from objectives import ObjectiveConfig, Objectives, Problem, Vocabulary

ROOT = Path(__file__).resolve().parent
ROWS = 512
QUICK = geometry.ROWS, 64  # rows, and tokens of them, of the health check: seconds for a six-layer model on a CPU
BUCKETS = 8  # of positions
COLLAPSED = 1e-4  # a dimension whose variance is below this share of the mean one's says nothing


@dataclass
class AnalyzeConfig(OneRun):
    quick: Annotated[bool, "only the health check: a line a finding, exit code 3 if there is one"] = False


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def judge_of(run: LoadedRun, count: int, length: int | None = None) -> Judge:
    """The run's model and objective on `count` of the rows that it keeps, up to `length`; every token counts alike."""
    keys = {key: run.config[key] for key in fields_of(ObjectiveConfig) if key in run.config} | {"token_weight": "none"}
    objectives = Objectives(ObjectiveConfig(**keys))
    V, special = run.model.config.vocab_size, tuple(dataset.special_ids(run.tokenizer).values())
    vocab = Vocabulary(V, run.model.mask_id, special, torch.ones(V, device=run.device))
    ids = run.rows[:count, :length].long()
    if len(ids) < geometry.ROWS:
        raise UserError(f"the run keeps {len(ids)} rows of text, {geometry.ROWS} are needed; train it on more text")
    numbers = torch.arange(len(ids))
    parts = [Batch(rows, ids[rows], rows) for rows in numbers.split(128)]
    return Judge(run.model, objectives, vocab, World(0, 1, run.device, "float32"), parts)


def ended(steps: Iterator):
    """What a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@torch.no_grad()
def numbers_of(judge: Judge) -> dict:
    """As in metrics.jsonl; and how many dimensions of the pooled vectors hardly change with the text."""
    variance = ended(judge.whole()).mean(1).double().var(0)
    numbers = ended(judge.geometry())
    return numbers | {"collapsed_dimensions": int((variance < COLLAPSED * variance.mean()).sum())}


@torch.no_grad()
def use_of_concepts(judge: Judge) -> dict:
    """What the decoder makes of the concepts: {"knock_out": [C] loss rise when one of them becomes its mean over texts,
    "bits": that a concept carries on average (loss with all at their means less the loss, x scored tokens / (C ln 2)),
    "position": the first position of each bucket, "delta_...": [buckets] loss rise there}; empty without a decoder."""
    part = judge.judged()
    if part is None or part.predicts != "positions":
        return {}
    problems = [judge.problem(part, batch) for batch in judge.fixed]
    concepts = ended(judge.concepts(problems))
    own, mean = ended(judge.loss_from(problems, concepts)), concepts.mean(0)
    C, rises = concepts.shape[1], []
    for c in range(C):
        other = concepts.clone()
        other[:, c] = mean[c]
        rises.append(ended(judge.loss_from(problems, other)) - own)
    ablated = geometry.ablations(concepts)
    scored = problems[0].targets.shape[1] if problems[0].scored is None else problems[0].scored.shape[1]
    bits = (ended(judge.loss_from(problems, ablated["mean"])) - own) * scored / (C * math.log(2))
    at, losses = losses_by_position(judge, problems, {"own": concepts} | ablated)
    deltas = {f"delta_{name}": (losses[name] - losses["own"]).tolist() for name in ablated}
    return {"knock_out": rises, "bits": bits, "position": at} | deltas


def losses_by_position(judge: Judge, problems: list[Problem], kinds: dict[str, Tensor]):
    """(first position of each bucket, {kind of concepts: mean loss [buckets]})."""
    model, T = judge.model, problems[0].query_pos.shape[-1]
    width = -(-T // min(BUCKETS, T))
    sums = {name: torch.zeros(-(-T // width), dtype=torch.float64) for name in kinds}
    seen = torch.zeros(-(-T // width), dtype=torch.float64)
    size = len(problems[0].source)
    for i, problem in enumerate(problems):
        columns = torch.arange(T, device=judge.world.device)[None].expand(len(problem.source), -1)
        columns = columns if problem.scored is None else problem.scored
        targets, bucket = problem.targets.gather(1, columns), (columns // width).flatten().cpu()
        seen += torch.bincount(bucket, minlength=len(seen)).double()
        for name, concepts in kinds.items():
            hidden = model.decode(concepts[i * size : (i + 1) * size], problem).expand(len(targets), -1, -1)
            each = [
                F.cross_entropy(model.logits(h).float(), t, reduction="none")
                for h, t in zip(hidden, targets, strict=True)
            ]
            sums[name] += torch.zeros_like(seen).index_add_(0, bucket, torch.cat(each).double().cpu())
    return list(range(0, T, width)), {name: total / seen.clamp_min(1) for name, total in sums.items()}


@torch.no_grad()
def shape_of_concepts(judge: Judge) -> dict[str, Tensor]:
    """spectrum: mean singular values of a text's slot-centred concepts; pooled: those of the centred means; similarity
    [C, C]: mean cosine of two concepts of a text; variance [C]: how much each changes with the text."""
    c = ended(judge.whole()).cpu()
    centred, unit = geometry.centred(c), F.normalize(c.double(), dim=-1)
    return {
        "spectrum": geometry.singular_values(centred).mean(0).flip(0),
        "pooled": geometry.singular_values(geometry.centred(c.mean(1, dtype=torch.float64))).flip(0),
        "similarity": (unit @ unit.mT).mean(0),
        "variance": geometry.variances(c),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The health check

ADVICE = (  # how a finding begins, what to try
    (
        "slots are static",
        "another init (fan_in_positions), spectral tokens, or an objective that needs the text: tsdae",
    ),
    ("slots are duplicates", "fewer concepts, or concept_position=learned"),
    ("one direction", "tsdae + bow in the place of contrastive or bow alone; whitening=0.25 when texts are compared"),
    ("decoder ignores", "a higher mask_rate or delete_rate, visible_only=True, spectral tokens, or decoder=posonly"),
    ("", "fewer concepts, a lower learning rate, or longer training"),
)


def findings(run: LoadedRun, numbers: dict | None) -> list[str]:
    """What is unhealthy, a line each, with what to try. numbers: None where weights are not finite."""
    broken = [name for name, tensor in run.model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        return [f"{len(broken)} tensors are not finite, {broken[0]} first; go back to another --ckpt"]
    found = [] if numbers["verdict"].startswith("healthy") else numbers["verdict"].split("; ")
    if count := numbers["collapsed_dimensions"]:
        found.append(f"{count} of {run.config['hidden']} dimensions hardly change with the text")
    return [f"{what}; try {next(text for start, text in ADVICE if what.startswith(start))}" for what in found]


# ---------------------------------------------------------------------------------------------------------------------
# The page

DEFINED = {
    "rank_slot_centred": "directions that a text's concepts use for what is its own; at most the number of concepts",
    "rank_raw": "the same with what all texts share",
    "rank_pooled": "directions that tell texts apart",
    "input_share": "share of the concepts' variance that the text makes; 0: they are constants",
    "dead_slots": "concepts that hardly change with the text",
    "collapsed_dimensions": "dimensions of the pooled vector that hardly change with the text",
    "sim_mean": "mean cosine, without sign, of two concepts of a text",
    "sim_max": "the largest cosine of two concepts of a text",
    "delta_shuffle": "nats that another text's concepts cost",
    "delta_zero": "nats that zeros in the place of the concepts cost",
    "delta_mean": "nats that the mean concepts cost",
    "bits": "bits that a concept carries: what all of them save, for each",
}


def shown(value) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


@torch.no_grad()
def samples(run: LoadedRun, judge: Judge, count: int = 6) -> tuple[list[list[str]], str]:
    """(rows of the table of reconstructions, a sentence with both accuracies). Teacher-forced: each position is
    predicted with the true tokens before it, where the decoder sees them; free-running: with its own."""
    part = next((part for part in judge.objectives.parts if part.predicts == "positions"), None)
    if part is None:
        return [], "There is no decoder, so there is no reconstruction."
    problem = judge.problem(part, judge.fixed[0])
    concepts, model = run.model.encode(problem.source, problem.source_pos), run.model
    free = model.generate(concepts, problem.targets.shape[1])
    whole = Problem(problem.source, targets=problem.targets, query_pos=problem.query_pos)
    forced = torch.stack([model.logits(h).argmax(-1) for h in model.decode(concepts, whole).expand(len(free), -1, -1)])
    kinds = (problem.targets, problem.source, forced, free)
    rows = [
        [" ".join(run.tokenizer.decode(x[i].tolist(), skip_special_tokens=False).split()) for x in kinds]
        for i in range(count)
    ]
    right = [100 * (x == problem.targets).double().mean().item() for x in (forced, free)]
    return rows, f"Right tokens of {len(free)} rows: teacher-forced {right[0]:.1f} %, free-running {right[1]:.1f} %."


@torch.no_grad()
def between(run: LoadedRun, judge: Judge, steps: int = 5) -> list[list[str]]:
    """What is decoded on the straight line between the concepts of two texts; nothing without a decoder."""
    if run.model.decoder is None:
        return []
    a, b = run.model.encode(judge.fixed[0].ids[:2].to(run.device))
    texts = run.model.generate(
        torch.stack([torch.lerp(a, b, i / (steps - 1)) for i in range(steps)]), judge.fixed[0].ids.shape[1]
    )
    return [
        [f"{i / (steps - 1):.2f}", " ".join(run.tokenizer.decode(ids.tolist()).split())] for i, ids in enumerate(texts)
    ]


@torch.no_grad()
def neighbours(run: LoadedRun, judge: Judge, count: int = 10) -> list[list[str]]:
    """The nearest other row of each of the first rows, by the centred cosine of mean concepts."""
    ids = torch.cat([batch.ids for batch in judge.fixed])
    vectors = ended(judge.whole()).mean(1).double().cpu()
    unit = F.normalize(vectors - vectors.mean(0), dim=1)
    cosines = unit[:count] @ unit.T
    cosines[torch.arange(count), torch.arange(count)] = -2
    values, nearest = cosines.max(1)
    texts = [" ".join(run.tokenizer.decode(row.tolist()).split()) for row in ids]
    return [
        [texts[i], texts[j], f"{v:.2f}"] for i, (v, j) in enumerate(zip(values.tolist(), nearest.tolist(), strict=True))
    ]


def page(run: LoadedRun, judge: Judge, both: dict, shapes: dict, use: dict, found: list[str], folder: Path) -> str:
    """The report as HTML; its pictures are written to `folder`, too."""
    parts = [report.paragraphs(found or ["healthy: nothing was found"])]

    def section(title: str, *content: str):
        parts.extend([report.heading(title), *content])

    def each(key: str) -> dict[str, list]:
        return {name: shape[key].tolist() for name, shape in shapes.items()}

    defined = [(name, both[name], text) for name, text in DEFINED.items() if name in both]
    numbers = [[name, shown(entry["trained"]), shown(entry["untrained"]), text] for name, entry, text in defined]
    parts.append(report.html_table(["number", "trained", "untrained", "what it says"], numbers))
    about = "each concept less its mean over texts; mean over texts"
    section(
        "Singular values of a text's concepts",
        report.picture(report.spectra(each("spectrum"), about, folder / "spectrum.png")),
    )
    section(
        "Singular values of the mean concepts",
        report.picture(report.spectra(each("pooled"), "over texts, centred", folder / "pooled.png")),
    )
    section(
        "Which concepts resemble each other",
        report.picture(report.heatmaps(each("similarity"), folder / "similarity.png")),
    )
    variance = shapes["trained"]["variance"]
    bars = {"variance over texts": (variance / variance.mean().clamp_min(1e-30)).tolist()}
    bars |= {"loss rise without it, nats": use["knock_out"]} if use else {}
    section("What each concept does", report.picture(report.bars(bars, "concept", folder / "concepts.png")))
    title = "What the concepts are worth, by position"
    if use:
        lines = {name: use[name] for name in ("delta_shuffle", "delta_zero", "delta_mean")}
        place = folder / "positions.png"
        section(title, report.picture(report.spectra(lines, "loss rise, nats", place, use["position"])))
    else:
        section(title, report.paragraphs(["No position is decoded, so nothing says what a concept is worth there."]))
    rows, sentence = samples(run, judge)
    section("Reconstructions", report.paragraphs([sentence]))
    if rows:
        parts.append(report.html_table(["text", "what the encoder read", "teacher-forced", "free-running"], rows))
    if rows := between(run, judge):
        section("Between two texts", report.html_table(["share", "decoded"], rows))
    header = ["row", "nearest other row", "centred cosine"]
    section("Nearest rows", report.html_table(header, neighbours(run, judge)))
    count, n = sum(len(batch.ids) for batch in judge.fixed), judge.fixed[0].ids.shape[1]
    about = f"ckpt_{run.step}, {count} rows of {n} tokens; untrained: the same model as it began"
    return report.page(run.config["run_id"], about, parts)


def main(argv) -> int:
    parsed = parse(argv, AnalyzeConfig, prog="analyze.py", doc=__doc__, root=ROOT, positional=False)
    config = parsed.make(AnalyzeConfig)
    run = config.load()
    judge = judge_of(run, *QUICK) if config.quick else judge_of(run, ROWS)
    finite = all(torch.isfinite(tensor).all() for tensor in run.model.state_dict().values())
    numbers = numbers_of(judge) if finite else None
    found = findings(run, numbers)
    print("\n".join(found) or "healthy")
    if config.quick or not finite:
        return 3 if found else 0
    folder = RunFolder(config.run).path / "analysis"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); make room for it in the run folder") from None
    twin = judge_of(run.twin(run.config.get("seed", 0)), ROWS)
    use, untrained, theirs = use_of_concepts(judge), numbers_of(twin), use_of_concepts(twin)
    both = {name: {"trained": value, "untrained": untrained[name]} for name, value in numbers.items()}
    both |= {name: {"trained": value, "untrained": theirs[name]} for name, value in use.items() if name not in both}
    both |= {
        f"{name}_by_position": {"trained": use[name], "untrained": theirs[name]} for name in use if name in numbers
    }
    shapes = {"trained": shape_of_concepts(judge), "untrained": shape_of_concepts(twin)}
    for key in ("variance", "spectrum"):
        both[key] = {name: shape[key].tolist() for name, shape in shapes.items()}
    text = page(run, judge, both, shapes, use, found, folder)
    write_atomic(folder / "metrics.json", json.dumps(both, indent=1) + "\n")
    write_atomic(folder / "report.html", text)
    say(f"{folder}: report.html, metrics.json")
    return 0


if __name__ == "__main__":
    command.command(main)

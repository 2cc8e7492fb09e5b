"""What is measured of a run, and of its untrained twin: numbers, spectra, what each concept is worth to the decoder."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import geometry
from lab import report
from lab.analysis.words import Words
from lab.configurator import UserError, fields_of
from lab.data.tokenizers import special_ids, word_ends, word_starts
from lab.distributed import World
from lab.evaluation.final_report import one_line
from lab.runs import LoadedRun
from lab.training.validation import Batch, Evaluator
from model import ConceptModel
from objectives import ObjectiveConfig, Objectives
from problem import Problem, Vocabulary

BUCKETS = 8  # of positions
COLLAPSED = 1e-4  # a dimension whose variance is below this share of the mean one's says nothing


def same_texts(runs: list[LoadedRun], count: int) -> list[Tensor]:
    """The first `count` rows of the first run, for each of the runs: in its own tokens, all cut to one length."""
    first, rows = runs[0], runs[0].rows[:count].tolist()
    same = [run.config["tokenizer_hash"] == first.config["tokenizer_hash"] for run in runs]
    texts = [] if all(same) else [first.tokenizer.decode(row) for row in rows]
    ids = [rows if own else run.encode_texts(texts) for run, own in zip(runs, same, strict=True)]
    shortest = [sorted(map(len, own))[len(own) // 4] for own in ids]  # texts differ in length: a quarter may be lost
    length = min(*shortest, *(run.max_length for run in runs))
    return [torch.tensor([row[:length] for row in own if len(row) >= length]) for own in ids]


def judge_of(run: LoadedRun, rows: Tensor, least: int = geometry.ROWS, size: int = 128) -> Evaluator:
    """The run's model and objective on these rows [n, N], at least so many, in batches; every token counts alike."""
    keys = {key: run.config[key] for key in fields_of(ObjectiveConfig) if key in run.config} | {"token_weight": "none"}
    if keys.get("mask_unit") == "pmi":
        keys["mask_unit"] = "word"  # a run does not keep the collocations
    objectives = Objectives(ObjectiveConfig(**keys))
    V, special = run.model.config.vocab_size, tuple(special_ids(run.tokenizer).values())
    starts, ends = (torch.from_numpy(f(run.tokenizer)).to(run.device) for f in (word_starts, word_ends))
    vocab = Vocabulary(V, run.model.mask_id, special, torch.ones(V, device=run.device), starts, ends=ends)
    if len(rows) < least:
        raise UserError(f"{len(rows)} rows of text are too few, {least} are needed; train on more text")
    ids, numbers = rows.long(), torch.arange(len(rows))
    parts = [Batch(rows, ids[rows], rows) for rows in numbers.split(size)]
    return Evaluator(run.model, objectives, vocab, World(0, 1, run.device, "float32"), parts)


@torch.no_grad()
def numbers_of(judge: Evaluator, whole: Tensor, **sizes) -> dict:
    """As in metrics.jsonl; and how many dimensions of the pooled vectors hardly change with the text. whole: what
    `judge.whole` returned; sizes: of Evaluator.geometry."""
    variance = judge.model.pool(whole).double().var(0)
    collapsed = int((variance < COLLAPSED * variance.mean()).sum())
    return judge.geometry(whole, **sizes) | {"collapsed_dimensions": collapsed}


@torch.no_grad()
def learned(run: LoadedRun, judge: Evaluator, numbers: dict, metrics: list[dict]) -> str:
    """geometry.learned: the loss as metrics.jsonl has it of this checkpoint, the twin on the rows of `judge`."""
    untrained = run.twin(run.config.get("seed", 0))
    twin = Evaluator(untrained.model, judge.objectives, judge.vocab, judge.world, judge.fixed).halves()
    logged = next((one for one in metrics if one["step"] == run.step and "val_floor" in one), None)
    if any(run.model.options):  # it was logged of the model as it is configured
        logged = None
    loss = (logged["val_loss"], logged["val_floor"], judge.objectives.unit) if logged else None
    return geometry.learned(numbers, twin, loss)


@torch.no_grad()
def use_of_concepts(judge: Evaluator) -> dict:
    """What the decoder makes of the concepts: {"knock_out": [C] loss rise when one of them becomes its mean over texts,
    "bits": that a concept carries on average (loss with all at their means less the loss, x scored tokens / (C ln 2)),
    "position": the first position of each bucket, "delta_...": [buckets] loss rise there}; empty without a decoder."""
    if (part := judge.decoded()) is None:
        return {}
    problems = [judge.problem(part, batch) for batch in judge.fixed]
    concepts = judge.concepts(problems)
    own, mean = judge.loss_from(problems, concepts), concepts.mean(0)
    C, rises = concepts.shape[1], []
    for c in range(C):
        other = concepts.clone()
        other[:, c] = mean[c]
        rises.append(judge.loss_from(problems, other) - own)
    ablated = geometry.ablations(concepts)
    scored = problems[0].at_scored(problems[0].targets).numel() / len(problems[0].targets)
    bits = (judge.loss_from(problems, ablated["mean"]) - own) * scored / (C * math.log(2))
    at, losses = losses_by_position(judge, problems, {"own": concepts} | ablated)
    deltas = {f"delta_{name}": (losses[name] - losses["own"]).tolist() for name in ablated}
    return {"knock_out": rises, "bits": bits, "position": at} | deltas


def losses_by_position(judge: Evaluator, problems: list[Problem], kinds: dict[str, Tensor]):
    """(first position of each bucket, {kind of concepts: mean loss [buckets]})."""
    model, T = judge.model, problems[0].query_pos.shape[-1]
    width = -(-T // min(BUCKETS, T))
    sums = {name: torch.zeros(-(-T // width), dtype=torch.float64) for name in kinds}
    seen = torch.zeros(-(-T // width), dtype=torch.float64)
    size = len(problems[0].source)
    for i, problem in enumerate(problems):
        columns = torch.arange(T, device=judge.world.device)[None].expand(len(problem.source), -1)
        targets, bucket = (problem.at_scored(x) for x in (problem.targets, columns // width))
        bucket = bucket.flatten().cpu()
        seen += torch.bincount(bucket, minlength=len(seen)).double()
        for name, concepts in kinds.items():
            hidden = model.decode(concepts[i * size : (i + 1) * size], problem).expand(len(targets), -1, -1)
            each = [
                F.cross_entropy(model.logits(h).float(), t, reduction="none")
                for h, t in zip(hidden.flatten(0, 1).split(T), targets.flatten().split(T), strict=True)
            ]
            sums[name] += torch.zeros_like(seen).index_add_(0, bucket, torch.cat(each).double().cpu())
    return list(range(0, T, width)), {name: total / seen.clamp_min(1) for name, total in sums.items()}


@torch.no_grad()
def shape_of_concepts(c: Tensor, pooled: Tensor) -> dict[str, Tensor]:
    """c [B, C, H], pooled [B, H] -> spectrum: mean singular values of a text's slot-centred concepts; pooled: those of
    the centred pooled ones; similarity [C, C]: mean cosine of two concepts of a text; variance [C]: how much each
    changes with the text."""
    c = c.cpu()
    centred, unit = geometry.centred(c), F.normalize(c.double(), dim=-1)
    return {
        "spectrum": geometry.singular_values(centred).mean(0).flip(0),
        "pooled": geometry.singular_values(geometry.centred(pooled.cpu())).flip(0),
        "similarity": (unit @ unit.mT).mean(0),
        "variance": geometry.variances(c),
    }


@dataclass
class Analysis:
    """A model and what was measured of it on rows [n, N]: `numbers_of`, `use_of_concepts`, `shape_of_concepts`."""

    run: LoadedRun
    judge: Evaluator
    numbers: dict
    use: dict
    shape: dict[str, Tensor]

    @property
    def record(self) -> dict:
        """All numbers and lists, by name, as metrics.json has them."""
        by_position = {f"{name}_by_position": self.use[name] for name in self.use if name in self.numbers}
        rest = {name: value for name, value in self.use.items() if name not in self.numbers}
        lists = {key: self.shape[key].tolist() for key in ("variance", "spectrum")}
        return self.numbers | rest | by_position | lists


def analyse(run: LoadedRun, judge: Evaluator, whole: Tensor) -> Analysis:
    """whole: what `judge.whole` returned."""
    return Analysis(
        run, judge, numbers_of(judge, whole), use_of_concepts(judge), shape_of_concepts(whole, judge.model.pool(whole))
    )


# ---------------------------------------------------------------------------------------------------------------------
# What it writes


def to_write(ids: Tensor) -> Problem:
    """All of ids [B, n] is to be written, from the concepts alone."""
    return Problem(ids, targets=ids, query_pos=torch.arange(ids.shape[1], device=ids.device)[None])


@torch.no_grad()
def written(model: ConceptModel, concepts: Tensor, ids: Tensor, temperature: float = 0.0) -> dict[str, Tensor]:
    """What the decoder makes of concepts [B, C, H], tokens [B, n] each: "teacher-forced", each position after the true
    tokens ids [B, n] before it, where the decoder sees them; "free-running", after its own (temperature: of these)."""
    hidden = model.decode(concepts, to_write(ids)).expand(len(ids), -1, -1)
    forced = torch.stack([model.logits(h).argmax(-1) for h in hidden])
    return {"teacher-forced": forced, "free-running": model.generate(concepts, ids.shape[1], temperature)}


@torch.no_grad()
def samples(run: LoadedRun, judge: Evaluator, count: int = 6) -> tuple[str, list[dict]]:
    """(a sentence with the shares of right tokens, rows of a table of reconstructions: wrong words are red); no rows
    without a decoder."""
    if (part := judge.decoded()) is None:
        return "There is no decoder, or what it predicts is another row, so there is no reconstruction.", []
    problem = judge.problem(part, judge.fixed[0])
    out = written(run.model, run.model.encode(problem.source, problem.source_pos), problem.targets)
    if torch.equal(*out.values()):  # a decoder that sees no tokens
        out = {"predicted": out["free-running"]}
    words, rows, texts = Words(run.tokenizer), [], {"text": problem.targets, "what the encoder read": problem.source}
    for i in range(count):
        rows.append({name: one_line(run.tokenizer, ids[i]) for name, ids in texts.items()})
        for name, ids in out.items():
            wrong = (ids[i] != problem.targets[i]).tolist()
            rows[-1][name] = report.marked(words.marked(ids[i].tolist(), wrong))
    right = [f"{name} {100 * (x == problem.targets).double().mean().item():.1f} %" for name, x in out.items()]
    return f"Right tokens of {len(problem.targets)} rows: {', '.join(right)}.", rows


def nearest(vectors: Tensor) -> list[tuple[int, float]]:
    """Centred vectors [n, H] -> for each the other one with the largest cosine, and that."""
    unit = F.normalize(vectors, dim=1)
    values, index = (unit @ unit.T).fill_diagonal_(-2).max(1)
    return list(zip(index.tolist(), values.tolist(), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# What C x H numbers could tell a decoder, and how much of it the encoder does
#
# Concepts of a text are optimised, each text's alone, against the frozen decoder until it writes the text as well as it
# can: so much, at least, an encoder could give this decoder. (As prefixes and memory tokens are optimised to hold a
# text: Kuratov et al. 2025, arXiv:2502.13063.)

STEPS, RATE = 300, 0.05  # of Adam; the rate x the root-mean-square of the encoder's concepts


@torch.no_grad()
def worth(run: LoadedRun, concepts: Tensor, ids: Tensor) -> dict[str, float]:
    """Of concepts [B, C, H] for ids [B, n]: the loss (nats a token), and the shares of right tokens."""
    loss = run.model.loss(concepts, to_write(ids)).item()
    right = {name: (x == ids).double().mean().item() for name, x in written(run.model, concepts, ids).items()}
    return {"loss": loss} | right


def capacity(run: LoadedRun, ids: Tensor, steps: int = STEPS) -> dict[str, dict[str, float]]:
    """ids [B, n] -> {"mean": `worth` of the mean concepts, "encoder": of the encoder's, "free": of those optimised from
    the encoder's on, "share": what of the way from mean to free the encoder goes, by each number}; with "bits", what a
    concept saves of the loss with the mean ones."""
    model = run.model
    with torch.no_grad():
        concepts = model.encode(ids)
        mean = concepts.mean(0, keepdim=True).expand_as(concepts)
    found = {"mean": worth(run, mean, ids), "encoder": worth(run, concepts, ids)}
    free = concepts.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=RATE * concepts.square().mean().sqrt().item(), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.requires_grad_(False)
        for _ in range(steps):
            optimizer.zero_grad()
            (len(ids) * model.loss(free, to_write(ids))).backward()  # each text's own step, whatever their number
            optimizer.step()
            schedule.step()
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    found["free"] = worth(run, free.detach(), ids)
    ways = {key: found["free"][key] - found["mean"][key] for key in found["free"]}
    found["share"] = {
        key: (found["encoder"][key] - found["mean"][key]) / way if abs(way) > 1e-6 else None
        for key, way in ways.items()
    }
    for kind in ("mean", "encoder", "free"):  # that a concept carries
        gain = found["mean"]["loss"] - found[kind]["loss"]
        found[kind]["bits"] = gain * ids.shape[1] / (concepts.shape[1] * math.log(2))
    return found

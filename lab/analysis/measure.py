"""Measurements of a run and of its untrained twin: numbers, spectra, what each concept is worth to the decoder."""

import math
from dataclasses import dataclass, replace

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
COLLAPSED = 1e-4  # a dimension with less than this share of the mean variance counts as collapsed


def same_texts(runs: list[LoadedRun], count: int) -> list[Tensor]:
    """The first `count` rows of the first run, in each run's own tokens, truncated to one length."""
    first, rows = runs[0], runs[0].rows[:count].tolist()
    same = [run.config["tokenizer_hash"] == first.config["tokenizer_hash"] for run in runs]
    texts = [] if all(same) else [first.tokenizer.decode(row) for row in rows]
    ids = [rows if own else run.encode_texts(texts) for run, own in zip(runs, same, strict=True)]
    shortest = [sorted(map(len, own))[len(own) // 4] for own in ids]  # texts differ in length: a quarter may be lost
    length = min(*shortest, *(run.max_length for run in runs))
    return [torch.tensor([row[:length] for row in own if len(row) >= length]) for own in ids]


def evaluator_of(run: LoadedRun, rows: Tensor, least: int = geometry.ROWS, size: int = 128) -> Evaluator:
    """An evaluator of the run's model and objective on rows [n, N], in batches of `size`, without token weights.
    UserError for fewer than `least` rows."""
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
def numbers_of(evaluator: Evaluator, whole: Tensor, **sizes) -> dict:
    """The numbers of metrics.jsonl, and how many dimensions of the pooled vectors are collapsed. whole: from
    `evaluator.whole`; sizes: arguments of Evaluator.geometry."""
    variance = evaluator.model.pool(whole).cpu().double().var(0)
    collapsed = int((variance < COLLAPSED * variance.mean()).sum())
    return evaluator.geometry(whole, **sizes) | {"collapsed_dimensions": collapsed}


@torch.no_grad()
def learned(run: LoadedRun, evaluator: Evaluator, numbers: dict, metrics: list[dict]) -> str:
    """geometry.learned, with this checkpoint's loss from metrics.jsonl and the untrained twin on the rows of
    `evaluator`."""
    untrained = run.twin(run.config.get("seed", 0))
    twin = Evaluator(untrained.model, evaluator.objectives, evaluator.vocab, evaluator.world, evaluator.fixed).halves()
    logged = next((one for one in metrics if one["step"] == run.step and "val_floor" in one), None)
    if any(run.model.options):  # it was logged of the model as it is configured
        logged = None
    loss = (logged["val_loss"], logged["val_floor"], evaluator.objectives.unit) if logged else None
    return geometry.learned(numbers, twin, loss)


@torch.no_grad()
def use_of_concepts(evaluator: Evaluator) -> dict:
    """How the decoder uses the concepts: {"knock_out": [C], the loss increase if one concept is replaced by its mean
    over texts; "bits" per concept: (loss with all replaced by their means - loss) x scored tokens / (C ln 2);
    "position": the first position of each bucket; "delta_...": [buckets], the loss increase there}. {} without a
    decoder."""
    if (part := evaluator.decoded()) is None:
        return {}
    problems = [evaluator.problem(part, batch) for batch in evaluator.fixed]
    concepts = evaluator.concepts(problems)
    own, mean = evaluator.loss_from(problems, concepts), concepts.mean(0)
    C, rises = concepts.shape[1], []
    for c in range(C):
        other = concepts.clone()
        other[:, c] = mean[c]
        rises.append(evaluator.loss_from(problems, other) - own)
    ablated = geometry.ablations(concepts)
    scored = problems[0].at_scored(problems[0].targets).numel() / len(problems[0].targets)
    bits = (evaluator.loss_from(problems, ablated["mean"]) - own) * scored / (C * math.log(2))
    at, losses = losses_by_position(evaluator, problems, {"own": concepts} | ablated)
    deltas = {f"delta_{name}": (losses[name] - losses["own"]).tolist() for name in ablated}
    return {"knock_out": rises, "bits": bits, "position": at} | deltas


def losses_by_position(evaluator: Evaluator, problems: list[Problem], kinds: dict[str, Tensor]):
    """(first position of each bucket, {kind of concepts: mean loss [buckets]})."""
    model, T = evaluator.model, problems[0].query_pos.shape[-1]
    width = -(-T // min(BUCKETS, T))
    sums = {name: torch.zeros(-(-T // width), dtype=torch.float64) for name in kinds}
    seen = torch.zeros(-(-T // width), dtype=torch.float64)
    size = len(problems[0].source)
    for i, problem in enumerate(problems):
        columns = torch.arange(T, device=evaluator.world.device)[None].expand(len(problem.source), -1)
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
    """c [B, C, H], pooled [B, H] -> spectrum: singular values of a text's slot-centred concepts, mean over texts;
    pooled: singular values of the centred pooled vectors; similarity [C, C]: mean cosine of two concepts of a text;
    variance [C]: of each concept over texts."""
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
    """A model and its measurements: `numbers_of`, `use_of_concepts`, `shape_of_concepts`."""

    run: LoadedRun
    evaluator: Evaluator
    numbers: dict
    use: dict
    shape: dict[str, Tensor]

    @property
    def record(self) -> dict:
        """All numbers and lists by their names in metrics.json."""
        by_position = {f"{name}_by_position": self.use[name] for name in self.use if name in self.numbers}
        rest = {name: value for name, value in self.use.items() if name not in self.numbers}
        lists = {key: self.shape[key].tolist() for key in ("variance", "spectrum")}
        return self.numbers | rest | by_position | lists


def analyse(run: LoadedRun, evaluator: Evaluator, whole: Tensor) -> Analysis:
    """Measures a model. whole: from `evaluator.whole`."""
    return Analysis(
        run,
        evaluator,
        numbers_of(evaluator, whole),
        use_of_concepts(evaluator),
        shape_of_concepts(whole, evaluator.model.pool(whole)),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Reconstructions


def to_write(ids: Tensor) -> Problem:
    """The problem of predicting all of ids [B, n] from the concepts."""
    return Problem(ids, targets=ids, query_pos=torch.arange(ids.shape[1], device=ids.device)[None])


@torch.no_grad()
def written(
    model: ConceptModel, concepts: Tensor, ids: Tensor, temperature: float = 0.0, continues: bool = False
) -> dict[str, Tensor]:
    """Tokens [B, n] that the decoder predicts from concepts [B, C, H]: "teacher-forced", given the true tokens ids [B,
    n] before each position (if the decoder sees tokens); "free-running", given its own, sampled at `temperature`.
    continues: ids follow the text that was read."""
    hidden = model.decode(concepts, replace(to_write(ids), continues=continues)).expand(len(ids), -1, -1)
    forced = torch.stack([model.logits(h).argmax(-1) for h in hidden])
    return {"teacher-forced": forced, "free-running": model.generate(concepts, ids.shape[1], temperature, continues)}


@torch.no_grad()
def samples(run: LoadedRun, evaluator: Evaluator, count: int = 6) -> tuple[str, list[dict]]:
    """(a sentence with token accuracies, rows of a table of reconstructions in which wrong words are red); no rows
    without a decoder."""
    if (part := evaluator.decoded()) is None:
        return "There is no decoder, or what it predicts is another row, so there is no reconstruction.", []
    problem = evaluator.problem(part, evaluator.fixed[0])
    concepts = run.model.encode(problem.source, problem.source_pos)
    out = written(run.model, concepts, problem.targets, continues=problem.continues)
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
    """Centred vectors [n, H] -> for each (index of its nearest neighbour by cosine, the cosine)."""
    unit = F.normalize(vectors, dim=1)
    values, index = (unit @ unit.T).fill_diagonal_(-2).max(1)
    return list(zip(index.tolist(), values.tolist(), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Capacity: how well could this decoder reconstruct from C x H numbers, and how close does the encoder come?
#
# The concepts of each text are optimised directly, against the frozen decoder: a lower bound of what an encoder could
# achieve. (Memory tokens optimised in the same way: Kuratov et al. 2025, arXiv:2502.13063.)

STEPS, RATE = 300, 0.05  # of Adam; the learning rate, as a multiple of the concepts' root mean square


@torch.no_grad()
def worth(run: LoadedRun, concepts: Tensor, ids: Tensor) -> dict[str, float]:
    """Loss (nats per token) and token accuracies of predicting ids [B, n] from concepts [B, C, H]."""
    loss = run.model.loss(concepts, to_write(ids)).item()
    right = {name: (x == ids).double().mean().item() for name, x in written(run.model, concepts, ids).items()}
    return {"loss": loss} | right


def capacity(run: LoadedRun, ids: Tensor, steps: int = STEPS) -> dict[str, dict[str, float]]:
    """ids [B, n] -> {"mean": `worth` of the mean concepts, "encoder": of the encoder's, "free": of optimised ones,
    which begin at the encoder's, "share": (encoder - mean) / (free - mean) of each number}, with "bits": loss reduction
    per concept relative to the mean concepts."""
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

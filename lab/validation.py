"""
The fixed validation rows, the numbers of one evaluation, and the table and samples that end a run.

Rows and noise come from a seed of their own, the same in every run, so that losses of different runs compare.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

import geometry
import losses
from lab import dataset
from lab.configurator import UserError, warn
from lab.distributed import World, exact_matmul
from model import ConceptModel
from objectives import (
    ROWS_OF_VIEWS,
    Noise,
    ObjectiveConfig,
    Problem,
    Vocabulary,
    make_problems,
    mlm,
    names,
    needs_pairs,
    weights,
)

SEED = 20250101


class Stopped(Exception):
    """A signal came in the middle of an evaluation."""


@dataclass
class Rows:
    """A batch of validation rows: their numbers, their text, and as many rows as contrastive views need them (pairs of
    adjacent spans, or rows that end with their document; without views the same text), with the documents of those."""

    rows: Tensor  # [B]
    ids: Tensor  # [B, n]
    pairs: Tensor  # [B, n]
    documents: Tensor  # [B]

    def to(self, device) -> "Rows":
        return Rows(*(x.to(device) for x in (self.rows, self.ids, self.pairs, self.documents)))


class Validation:
    """Validation rows of each length, and what the model makes of them."""

    def __init__(
        self,
        corpus: dataset.Corpus,
        lengths: tuple[int, ...],
        tokens: int,
        model: ConceptModel,
        objective: ObjectiveConfig,
        vocab: Vocabulary,
        world: World,
    ):
        """tokens: how many are read of each length."""
        self.model, self.objective, self.vocab, self.world = model, objective, vocab, world
        self.weights = weights(objective)
        self.stop: Callable[[], int] = lambda: 0
        self.batches: dict[int, list[Rows]] = {}
        self.samplers = [dataset.Sampler(corpus, lengths, seed=SEED)]
        if "contrastive" in names(objective):
            pairs = needs_pairs(objective)
            self.samplers.append(dataset.Sampler(corpus, lengths, seed=SEED, one_document=True, pairs=pairs))
        windows = {n: min(sampler.windows(n) for sampler in self.samplers) for n in lengths}
        enough = [n for n in windows if windows[n] >= dataset.MIN_WINDOWS]
        verdict = "left out" if enough else "rough"
        for n in sorted(set(windows) - set(enough)):
            warn(f"the validation text has only {windows[n]} rows of length {n}; its loss is {verdict}")
        for n in sorted(enough or [n for n in windows if windows[n]]):
            rows = max(8, tokens // n)
            size = self.whole(min(rows, 8192 // n))
            self.batches[n] = self.draw(n, rows - rows % size, size)
        if not self.batches:
            raise UserError(f"{corpus.path} has no row of any length; prepare with a larger --val_fraction")
        self.longest = max(self.batches)
        self.fixed = self.draw(self.longest, geometry.ROWS, self.whole(8192 // self.longest))

    def whole(self, rows: int) -> int:
        """The next smaller number of rows that contrastive views can be made of, whatever views."""
        return max(ROWS_OF_VIEWS["both"], rows - rows % ROWS_OF_VIEWS["both"])

    def draw(self, n: int, rows: int, size: int) -> list[Rows]:
        """The first `rows` rows of length n, in batches."""
        numbers = np.arange(rows, dtype=np.int64)
        drawn = [sampler.batch(0, n, numbers) for sampler in self.samplers]
        columns = [torch.from_numpy(x).split(size) for x in (numbers, drawn[0][0], *drawn[-1])]
        return [Rows(*batch) for batch in zip(*columns, strict=True)]

    def problems(self, batch: Rows) -> list[Problem]:
        """Each part of the objective. Whatever else it is made of, a part is judged on the same rows."""
        noise, parts = Noise(SEED, 0, batch.rows), names(self.objective)
        made = make_problems(batch.ids, noise, self.vocab, self.objective)
        if "contrastive" in parts:
            i = parts.index("contrastive")
            made[i] = make_problems(batch.pairs, noise, self.vocab, self.objective, batch.documents)[i]
        return made

    def mlm15(self, batch: Rows) -> list[Problem]:
        """Masked LM at 15 %, whatever the training rate: the number that compares with others'."""
        standard = ObjectiveConfig(objective="mlm", mask_rate=0.15, visible_only=self.objective.visible_only)
        return [mlm(batch.ids, Noise(SEED, 0, batch.rows), self.vocab, standard)]

    def losses(self, n: int, problems) -> list[float]:
        """
        Loss in nats of each of the problems over the rows of length n. Batches are shared out over ranks, and summed
        with zeros for the rest: the same bits on any number of ranks.
        """
        world, model, batches = self.world, self.model, self.batches[n]
        sums = torch.zeros(len(problems(batches[0])), len(batches), dtype=torch.float64, device=world.device)
        for i, batch in enumerate(batches):
            self.check()
            if i % world.size != world.rank:
                continue
            for part, problem in enumerate(problems(batch.to(world.device))):
                with world.autocast():
                    concepts = model.encode(problem.source, problem.source_pos)
                    loss = model.loss(concepts, problem)
                sums[part, i] = losses.complete(loss, concepts, problem, self.objective.temperature).double()
        return world.all_sum(sums).mean(1).tolist()

    def loss_from(self, problems: list[Problem], concepts: Tensor) -> float:
        """Mean loss of the problems' rows, said from these concepts [rows of all problems, C, H]."""
        total = 0.0
        with self.world.autocast():
            for c, problem in zip(concepts.split(len(problems[0].source)), problems, strict=True):
                self.check()
                total += len(c) * self.model.loss(c, problem).item()
        return total / len(concepts)

    def geometry(self) -> dict[str, float | str]:
        """
        The concepts of the fixed rows, read whole as `embed` reads them; what its own concepts are worth to the decoder
        in the first part of the objective that it says (for bow alone: to the bag); and the verdict. All ranks have the
        same rows: nothing is sent.
        """
        fixed = [batch.to(self.world.device) for batch in self.fixed]
        numbers = geometry.concept_geometry(self.concepts([Problem(source=batch.ids) for batch in fixed]))
        parts = list(zip(*map(self.problems, fixed), strict=True))  # of each part the problem of each batch
        by_position = [problems for problems in parts if problems[0].query_pos is not None]
        said = by_position or [problems for problems in parts if problems[0].targets is not None]
        if said:
            numbers |= geometry.concept_use(partial(self.loss_from, said[0]), self.concepts(said[0]))
        return numbers | {"verdict": geometry.verdict(numbers, self.model.config.concepts)}

    def concepts(self, problems: list[Problem]) -> Tensor:
        """Concepts [rows of all problems, C, H], without autocast: rounding must not look like content."""
        found = []
        with exact_matmul():
            for problem in problems:
                self.check()
                found.append(self.model.encode(problem.source, problem.source_pos))
        return torch.cat(found)

    def check(self):
        if self.stop():
            raise Stopped

    @torch.no_grad()
    def run(self, stop: Callable[[], int] = lambda: 0) -> dict[str, float | str] | None:
        """All numbers of one evaluation, by their names in metrics.jsonl; None as soon as `stop()`, which is asked
        before each batch by all ranks alike, is not 0."""
        self.stop = stop
        self.model.eval()
        try:
            return self.numbers()
        except Stopped:
            return None
        finally:
            self.model.train()

    def numbers(self) -> dict[str, float | str]:
        parts = {n: self.losses(n, self.problems) for n in self.batches}
        total = {n: sum(w * x for w, x in zip(self.weights, found, strict=True)) for n, found in parts.items()}
        numbers = {"val_loss": total[self.longest], **{f"val_loss_{n}": loss for n, loss in total.items()}}
        if len(self.weights) > 1:
            numbers |= {f"val_loss_{p}": x for p, x in zip(names(self.objective), parts[self.longest], strict=True)}
        if "mlm" in names(self.objective):
            (numbers["val_loss_mlm15"],) = self.losses(self.longest, self.mlm15)
        return numbers | self.geometry()


def part_floor(part: str, validation: Validation, n: int, train: dataset.Corpus, val: dataset.Corpus) -> float:
    """About the loss in nats, on rows of length n, of guessing that knows nothing of the text: by how common tokens are
    (idf weights pooled over rows), or for contrastive by chance."""
    if part == "contrastive":
        problems = dict(zip(names(validation.objective), validation.problems(validation.batches[n][0]), strict=True))
        return math.log(len(problems[part].source) / 2)
    by_idf = part == "bow" or validation.objective.token_weight == "idf"
    weights = train.idf() if by_idf else None
    return dataset.unigram_floor(train.meta["counts"], val.tokens, val.eod, weights)


def final_table(numbers: dict[str, float], validation: Validation, train: dataset.Corpus, val: dataset.Corpus) -> str:
    """The losses of an evaluation beside the floors of guessing without the text, in Markdown."""
    parts, longest = names(validation.objective), validation.longest
    floors = {n: [part_floor(part, validation, n, train, val) for part in parts] for n in validation.batches}
    rows = []
    for n, found in floors.items():
        total = sum(w * x for w, x in zip(validation.weights, found, strict=True))
        rows.append([f"validation loss, rows of {n}", numbers[f"val_loss_{n}"], total])
    for part, floor in zip(parts, floors[longest], strict=True):
        if len(parts) > 1:
            rows.append([f"of it {part}, longest rows", numbers[f"val_loss_{part}"], floor])
    if "val_loss_mlm15" in numbers:
        floor = dataset.unigram_floor(train.meta["counts"], val.tokens, val.eod)
        rows.append(["validation loss, MLM at 15 %, longest rows", numbers["val_loss_mlm15"], floor])
    if "delta_shuffle" in numbers:
        rows.append(["added by another row's concepts, longest rows", numbers["delta_shuffle"], 0.0])
    from lab import report  # late

    kinds = ["unigram floor"] * (parts != ["contrastive"]) + ["chance"] * ("contrastive" in parts)
    return report.table(["nats", "loss", ", ".join(kinds)], rows)


@torch.no_grad()
def reconstructions(validation: Validation, tokenizer, rows: int = 3) -> str:
    """Held-out rows of the shortest length: the text, what the encoder read of it, what the decoder said; nothing where
    the model says nothing position by position."""
    model, n = validation.model, min(validation.batches)
    if not model.config.decodes:
        return ""
    batch = validation.batches[n][0].to(validation.world.device)
    ids = batch.ids[:rows]
    problem = next(p for p in validation.problems(batch) if p.query_pos is not None)
    model.eval()
    said = model.generate(model.encode(problem.source, problem.source_pos)[:rows], n)  # [rows, n]
    model.train()
    lines = []
    for i in range(len(ids)):
        for name, row in (("text", ids[i]), ("read", problem.source[i]), ("said", said[i])):
            text = tokenizer.decode(row.tolist(), skip_special_tokens=False)
            lines.append(f"  {name}: {' '.join(text.split())}")
        lines.append("")
    return "\n".join(lines)

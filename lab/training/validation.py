"""
The fixed validation rows, the numbers of one evaluation, and the table and samples that end a run.

Rows and noise come from a seed of their own, the same in every run, so that losses of different runs compare.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

import geometry
from lab.configurator import UserError, warn
from lab.data.corpus import MIN_WINDOWS, Corpus, unigram_floor
from lab.data.sampler import Sampler
from lab.distributed import World, exact_matmul
from model import ConceptModel
from noise import Noise
from objectives import Objective, Objectives
from problem import Problem, Rows, Vocabulary

SEED = 20250101
DECODED = "positions", "pooled"  # kinds of prediction whose loss is in nats
GROUP = 4  # batches hold whole groups of views, whatever the objective


@dataclass
class Batch:
    """Validation rows of one length: their numbers [B], ids [B, n] and documents [B]."""

    rows: Tensor
    ids: Tensor
    documents: Tensor


class Stopped(Exception):
    """An evaluation was broken off."""


class Evaluator:
    """Fixed rows, and what a model makes of them. `stop` is asked before each batch, by all ranks alike: an evaluation
    ends as soon as it does not say 0."""

    def __init__(
        self, model: ConceptModel, objectives: Objectives, vocab: Vocabulary, world: World, fixed: list[Batch]
    ):
        self.model, self.objectives, self.vocab, self.world, self.fixed = model, objectives, vocab, world, fixed
        self.stop = lambda: 0

    def go_on(self):
        if self.stop():
            raise Stopped

    def problem(self, part: Objective, batch: Batch) -> Problem:
        rows, ids, documents = (x.to(self.world.device) for x in (batch.rows, batch.ids, batch.documents))
        shape_index = int(batch.rows[0]) // len(batch.rows)  # from batch to batch
        return part.whole_problem(Rows(ids, Noise(SEED, 0, rows, shape_index), self.vocab, documents))

    def primary_part(self) -> Objective | None:
        """The part of the objective that tells what concepts are worth: the first that is decoded, or the bag."""
        kinds = {kind: [part for part in self.objectives.parts if part.predicts == kind] for kind in DECODED}
        return next((part for kind in DECODED for part in kinds[kind] if self.rows_of(part)), None)

    def decoded(self) -> Objective | None:
        """The part of which a decoder predicts positions."""
        part = self.primary_part()
        return part if part is not None and part.predicts == "positions" else None

    def rows_of(self, part: Objective) -> list[Batch]:
        """The fixed rows as a part needs them; none where it needs adjacent ones, which these are not."""
        return [] if part.adjacent_rows else self.fixed

    @torch.no_grad()
    def concepts(self, problems: list[Problem]) -> Tensor:
        """Concepts [rows of all problems, C, H], without autocast: rounding must not look like content."""
        parts = []
        for problem in problems:
            self.go_on()
            with exact_matmul():
                parts.append(self.model.encode(problem.source, problem.source_pos, row_length=problem.row_length))
        return torch.cat(parts)

    def whole(self) -> Tensor:
        """Concepts of the fixed rows, read whole as `embed` reads them."""
        return self.concepts([Problem(source=batch.ids.to(self.world.device)) for batch in self.fixed])

    def halves(self) -> dict[str, float]:
        """geometry.nearer_halves of the fixed rows, each half embedded as a text of its own."""
        half = self.fixed[0].ids.shape[1] // 2
        sides = [torch.cat([batch.ids for batch in self.fixed])[:, i * half :][:, :half] for i in (0, 1)]
        parts = [self.concepts([Problem(x.to(self.world.device)) for x in ids.split(128)]) for ids in sides]
        return geometry.nearer_halves(*map(self.model.pool, parts))

    def loss_from(self, problems: list[Problem], concepts: Tensor) -> float:
        """Mean loss of the problems' rows, predicted from these concepts [rows of all problems, C, H]."""
        total = 0.0
        for c, problem in zip(concepts.split(len(problems[0].source)), problems, strict=True):
            self.go_on()
            with self.world.autocast():
                total += len(c) * self.model.loss(c, problem).item()
        return total / len(concepts)

    def geometry(self, whole: Tensor, least: int = 0, batches: int | None = None) -> dict[str, float | str]:
        """
        The numbers of what `whole` returned (of at least `least` rows; 0: as many as there are of this length); what
        its own concepts are worth to the first part of the objective that a decoder predicts (for bow alone: to the
        bag), on the first so many batches; and the verdict. All ranks have the same rows: nothing is sent.
        """
        least = least or geometry.rows_of(self.fixed[0].ids.shape[1])
        numbers = geometry.concept_geometry(whole, least, self.model.pool(whole)) | self.halves()
        if (part := self.primary_part()) is not None:
            problems = [self.problem(part, batch) for batch in self.rows_of(part)[:batches]]
            concepts = self.concepts(problems)
            own = self.loss_from(problems, concepts)
            for name, other in geometry.ablations(concepts).items():
                numbers[f"delta_{name}"] = self.loss_from(problems, other) - own
        return numbers | {"verdict": geometry.verdict(numbers, whole.shape[1])}


class Validation(Evaluator):
    """Validation rows of each length, and what the model makes of them."""

    def __init__(self, corpus: Corpus, lengths: tuple[int, ...], tokens: int, trainer):
        """tokens: how many are read of each length; trainer: has the model, objectives, vocab and world."""
        super().__init__(trainer.model, trainer.objectives, trainer.vocab, trainer.world, [])
        rules = {(False, False), *((part.one_document, part.adjacent_rows) for part in self.objectives.parts)}
        self.samplers = {
            rule: Sampler(corpus, lengths, seed=SEED, one_document=rule[0], pairs=rule[1]) for rule in rules
        }
        windows = {n: min(sampler.windows(n) for sampler in self.samplers.values()) for n in lengths}
        enough = [n for n in windows if windows[n] >= MIN_WINDOWS]
        for n in sorted(set(windows) - set(enough)):
            judged = "left out" if enough else "rough"
            warn(f"the validation text has only {windows[n]} rows of length {n}; its loss is {judged}")
        self.lengths = sorted(enough or [n for n in windows if windows[n]])
        if not self.lengths:
            raise UserError(f"{corpus.path} has no row of any length; prepare with a larger --val_fraction")
        self.longest = self.lengths[-1]
        self.batches, self.known_floors = {}, {}  # (rule, length) -> batches; of `floors`
        for n in self.lengths:
            rows = max(8, tokens // n)
            size = self.batch_size(n, rows)
            for rule in rules:
                self.batches[rule, n] = self.draw(rule, n, rows - rows % size, size)
        size = self.batch_size(self.longest)
        by_rule = {rule: self.draw(rule, self.longest, geometry.rows_of(self.longest), size) for rule in rules}
        self.fixed, self.fixed_of = by_rule[False, False], by_rule

    def rows_of(self, part):
        return self.fixed_of[part.one_document, part.adjacent_rows]

    def batch_size(self, n: int, rows: int = geometry.ROWS) -> int:
        """Rows of length n in a batch: at most 8,192 tokens, in whole groups."""
        size, group = min(rows, 8192 // n), math.lcm(GROUP, self.objectives.group)
        return max(group, size - size % group)

    def draw(self, rule: tuple[bool, bool], n: int, rows: int, size: int) -> list[Batch]:
        """The first `rows` rows of length n under a sampler's rule, in batches."""
        numbers = np.arange(rows, dtype=np.int64)
        columns = (torch.from_numpy(x).split(size) for x in (numbers, *self.samplers[rule].batch(0, n, numbers)))
        return [Batch(*columns) for columns in zip(*columns, strict=True)]

    def rows(self, count: int = 2048) -> Tensor:
        """[count, n] int32: the first rows of the shortest length, on which a run's `embed` may be fitted."""
        (batch,) = self.draw((False, False), self.lengths[0], count, count)
        return batch.ids.int()

    def batches_of(self, part: Objective, n: int) -> list[Batch]:
        """The rows a part is judged on: those of its own rule, whatever else the sum is made of."""
        return self.batches[(part.one_document, part.adjacent_rows), n]

    def loss(self, part: Objective, n: int) -> float:
        """Loss in nats of a part over the rows of length n. Batches are shared out over ranks, and summed with zeros
        for the rest: the same bits on any number of ranks."""
        world, model, batches = self.world, self.model, self.batches_of(part, n)
        exact = torch.float32 if world.device.type == "mps" else torch.float64
        sums = torch.zeros(len(batches), dtype=exact, device=world.device)
        for i, batch in enumerate(batches):
            self.go_on()
            if i % world.size == world.rank:
                problem = self.problem(part, batch)
                with world.autocast():
                    concepts = model.encode(problem.source, problem.source_pos)
                    predicted = model.loss(concepts, problem)
                sums[i] = part.loss(predicted, concepts, problem).to(exact)
        return world.all_sum(sums).mean().item()

    def evaluate(self) -> dict[str, float | str]:
        """All numbers of one evaluation, by their names in metrics.jsonl."""
        objectives, longest = self.objectives, self.longest
        losses = {n: [self.loss(part, n) for part in objectives.parts] for n in self.lengths}
        numbers = {"val_loss": objectives.total(losses[longest])}
        numbers |= {f"val_loss_{n}": objectives.total(parts) for n, parts in losses.items()}
        if len(objectives.parts) > 1:
            numbers |= {f"val_loss_{name}": x for name, x in zip(objectives.names, losses[longest], strict=True)}
        for part in objectives.parts:
            numbers |= {f"val_loss_{name}": self.loss(own, longest) for name, own in part.reported().items()}
        return numbers | self.geometry(self.whole())

    @torch.no_grad()
    def run(self, stop: Callable[[], int] = lambda: 0) -> dict[str, float | str] | None:
        """`evaluate`, without dropout; None where `stop` broke it off."""
        self.model.eval()
        self.stop = stop
        try:
            return self.evaluate()
        except Stopped:
            return None
        finally:
            self.model.train()

    def floors(self, train: Corpus, val: Corpus) -> dict[str, float]:
        """Loss of `evaluate` -> about that of guessing that knows nothing of the text: by how common tokens are (idf
        weights pooled over rows), or by chance. Computed at the first call."""

        @cache
        def unigram(needs_idf):
            weights = train.idf() if needs_idf else None
            return unigram_floor(train.counts(), val.tokens, val.eod, weights)

        if not self.known_floors:
            parts, known = self.objectives.parts, self.known_floors
            for n in self.lengths:
                each = [part.floor(self.problem(part, self.batches_of(part, n)[0]), unigram) for part in parts]
                known[f"val_loss_{n}"] = self.objectives.total(each)
            if len(parts) > 1:
                known |= {f"val_loss_{name}": x for name, x in zip(self.objectives.names, each, strict=True)}
            known |= {f"val_loss_{name}": unigram(False) for part in parts for name in part.reported()}
        return self.known_floors


def learned(trainer, numbers: dict) -> dict:
    """Of an evaluation the floor of its val_loss, and `learned`, in words: the loss beside the floor, and its vectors
    beside those of step 0, the untrained twin's (a warm start has none)."""
    validation, first = trainer.validation, next(iter(trainer.out.metrics()), {"step": 0} | numbers)
    floor = validation.floors(trainer.train_text, trainer.val_text)[f"val_loss_{validation.longest}"]
    twin = first if first["step"] == 0 and not trainer.config.init_from else {}
    loss = numbers["val_loss"], floor, trainer.objectives.unit
    return {"val_floor": floor, "learned": geometry.learned(numbers, twin, loss)}

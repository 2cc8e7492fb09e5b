"""
The fixed validation rows, the numbers of one evaluation, and the table and samples that end a run.

Rows and noise come from a seed of their own, the same in every run, so that losses of different runs compare.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

import dataset
import geometry
from configurator import UserError, warn
from model import ConceptModel
from objectives import Noise, ObjectiveConfig, Problem, Vocabulary, make_problems, mlm, parse_objective
from runtime import World, exact_matmul

SEED = 20250101


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
        self.batches: dict[int, list[tuple[Tensor, Tensor]]] = {}  # length -> [(row numbers [B], ids [B, n]), ...]
        sampler = dataset.Sampler(corpus, lengths, seed=SEED)
        windows = {n: sampler.windows(n) for n in lengths}
        enough = [n for n in windows if windows[n] >= dataset.MIN_WINDOWS]
        verdict = "left out" if enough else "rough"
        for n in sorted(set(windows) - set(enough)):
            warn(f"the validation text has only {windows[n]} rows of length {n}; its loss is {verdict}")
        for n in sorted(enough or [n for n in windows if windows[n]]):
            rows = np.arange(max(8, tokens // n), dtype=np.int64)
            ids, _ = sampler.batch(0, n, rows)
            size = max(1, min(len(rows), 8192 // n))
            cuts = range(0, len(rows) - len(rows) % size, size)
            whole = torch.from_numpy(rows), torch.from_numpy(ids)
            self.batches[n] = [tuple(x[i : i + size] for x in whole) for i in cuts]
        if not self.batches:
            raise UserError(f"{corpus.path} has no row of any length; prepare with a larger --val_fraction")
        self.longest = max(self.batches)
        rows = np.arange(geometry.ROWS, dtype=np.int64)
        ids, _ = sampler.batch(0, self.longest, rows)
        size = max(1, 8192 // self.longest)
        self.fixed = list(zip(torch.from_numpy(rows).split(size), torch.from_numpy(ids).split(size), strict=True))

    def problems(self, ids: Tensor, rows: Tensor) -> list[tuple[float, Problem]]:
        """(weight, problem) of each part of the objective."""
        weights = [weight for weight, _ in parse_objective(self.objective.objective)]
        return list(zip(weights, make_problems(ids, Noise(SEED, 0, rows), self.vocab, self.objective), strict=True))

    def mlm15(self, ids: Tensor, rows: Tensor) -> list[tuple[float, Problem]]:
        """Masked LM at 15 %, whatever the training rate: the number that compares with others'."""
        standard = ObjectiveConfig(objective="mlm", mask_rate=0.15, visible_only=self.objective.visible_only)
        return [(1.0, mlm(ids, Noise(SEED, 0, rows), self.vocab, standard))]

    def loss(self, n: int, problems) -> float:
        """
        Weighted loss in nats over the rows of length n. Batches are shared out over ranks, and summed with zeros for
        the rest: the same bits on any number of ranks.
        """
        world = self.world
        sums = torch.zeros(len(self.batches[n]), dtype=torch.float64, device=world.device)
        for i, (rows, ids) in enumerate(self.batches[n]):
            if i % world.size != world.rank:
                continue
            with world.autocast():
                for weight, problem in problems(ids.to(world.device), rows.to(world.device)):
                    concepts = self.model.encode(problem.source, problem.source_pos)
                    sums[i] += weight * self.model.loss(concepts, problem).double()
        return float(world.all_sum(sums).mean())

    def loss_from(self, problems: list[Problem], concepts: Tensor) -> float:
        """Mean loss of the problems' rows, said from these concepts [rows of all problems, C, H]."""
        total = 0.0
        with self.world.autocast():
            for c, problem in zip(concepts.split(len(problems[0].source)), problems, strict=True):
                total += len(c) * self.model.loss(c, problem).item()
        return total / len(concepts)

    def geometry(self) -> dict[str, float | str]:
        """
        The concepts of the fixed rows (in a sum of objectives those of its first part), what they are worth to the
        decoder (summed), and the verdict. All ranks have the same rows: nothing is sent.
        """
        device, numbers, use = self.world.device, {}, {}
        batches = [self.problems(ids.to(device), rows.to(device)) for rows, ids in self.fixed]
        for part in zip(*batches, strict=True):  # ((weight, problem of the first batch), (weight, of the second), ...)
            weight, problems = part[0][0], [problem for _, problem in part]
            with exact_matmul():  # and no autocast: rounding must not look like content
                concepts = torch.cat([self.model.encode(p.source, p.source_pos) for p in problems])
                numbers = numbers or geometry.concept_geometry(concepts)
            for name, nats in geometry.concept_use(partial(self.loss_from, problems), concepts).items():
                use[name] = use.get(name, 0.0) + weight * nats
        numbers |= use
        return numbers | {"verdict": geometry.verdict(numbers, self.model.config.concepts)}

    @torch.no_grad()
    def run(self) -> dict[str, float | str]:
        """All numbers of one evaluation, by their names in metrics.jsonl."""
        self.model.eval()
        losses = {f"val_loss_{n}": self.loss(n, self.problems) for n in self.batches}
        numbers = {"val_loss": losses[f"val_loss_{self.longest}"], **losses}
        if "mlm" in [name for _, name in parse_objective(self.objective.objective)]:
            numbers["val_loss_mlm15"] = self.loss(self.longest, self.mlm15)
        numbers |= self.geometry()
        self.model.train()
        return numbers


def final_table(numbers: dict[str, float], floor: float) -> str:
    """The losses of an evaluation beside the unigram floor, in Markdown."""
    rows = [["unigram floor (no model at all)", floor]]
    for name, value in numbers.items():
        if name == "val_loss_mlm15":
            rows.append(["validation loss, MLM at 15 %, longest rows", value])
        elif name.startswith("val_loss_"):
            rows.append([f"validation loss, rows of {name[9:]}", value])
    rows.append(["added by another row's concepts (longest rows)", numbers["delta_shuffle"]])
    import report  # late

    return report.table(["nats per scored token", "loss"], rows)


@torch.no_grad()
def reconstructions(validation: Validation, tokenizer, rows: int = 3) -> str:
    """Held-out rows of the shortest length: the text, what the encoder read of it, what the decoder said."""
    model, n = validation.model, min(validation.batches)
    numbers, ids = (x[:rows].to(validation.world.device) for x in validation.batches[n][0])
    _, problem = validation.problems(ids, numbers)[0]
    model.eval()
    said = model.generate(model.encode(problem.source, problem.source_pos), n)  # [rows, n]
    model.train()
    lines = []
    for i in range(len(ids)):
        for name, row in (("text", ids[i]), ("read", problem.source[i]), ("said", said[i])):
            text = tokenizer.decode(row.tolist(), skip_special_tokens=False)
            lines.append(f"  {name}: {' '.join(text.split())}")
        lines.append("")
    return "\n".join(lines)

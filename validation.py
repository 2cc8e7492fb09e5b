"""
The fixed validation rows, the numbers of one evaluation, and the table and samples that end a run.

Rows and noise come from a seed of their own, the same in every run, so that losses of different runs compare.
"""

import numpy as np
import torch
from torch import Tensor

import dataset
import report
from configurator import UserError, warn
from model import ConceptModel
from objectives import Noise, ObjectiveConfig, Problem, Vocabulary, make_problems, mlm, parse_objective
from runtime import World

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
            size = max(2, min(len(rows), 8192 // n))  # a single row has no other row's concepts to be given
            cuts = range(0, len(rows) - len(rows) % size, size)
            whole = torch.from_numpy(rows), torch.from_numpy(ids)
            self.batches[n] = [tuple(x[i : i + size] for x in whole) for i in cuts]
        if not self.batches:
            raise UserError(f"{corpus.path} has no row of any length; prepare with a larger --val_fraction")

    def problems(self, ids: Tensor, rows: Tensor) -> list[tuple[float, Problem]]:
        """(weight, problem) of each part of the objective."""
        weights = [weight for weight, _ in parse_objective(self.objective.objective)]
        return list(zip(weights, make_problems(ids, Noise(SEED, 0, rows), self.vocab, self.objective), strict=True))

    def mlm15(self, ids: Tensor, rows: Tensor) -> list[tuple[float, Problem]]:
        """Masked LM at 15 %, whatever the training rate: the number that compares with others'."""
        standard = ObjectiveConfig(objective="mlm", mask_rate=0.15, visible_only=self.objective.visible_only)
        return [(1.0, mlm(ids, Noise(SEED, 0, rows), self.vocab, standard))]

    def loss(self, n: int, problems, shuffle: bool = False) -> float:
        """
        Weighted loss in nats over the rows of length n; shuffle: every row is said from the next row's concepts.
        Batches are shared out over ranks, and summed with zeros for the rest: the same bits on any number of ranks.
        """
        world = self.world
        sums = torch.zeros(len(self.batches[n]), dtype=torch.float64, device=world.device)
        for i, (rows, ids) in enumerate(self.batches[n]):
            if i % world.size != world.rank:
                continue
            with world.autocast():
                for weight, problem in problems(ids.to(world.device), rows.to(world.device)):
                    concepts = self.model.encode(problem.source, problem.source_pos)
                    if shuffle:
                        concepts = concepts.roll(1, 0)
                    sums[i] += weight * self.model.loss(concepts, problem).double()
        return float(world.all_sum(sums).mean())

    @torch.no_grad()
    def run(self) -> dict[str, float]:
        """All numbers of one evaluation, by their names in metrics.jsonl."""
        self.model.eval()
        losses = {f"val_loss_{n}": self.loss(n, self.problems) for n in self.batches}
        longest = max(self.batches)
        numbers = {"val_loss": losses[f"val_loss_{longest}"], **losses}
        if "mlm" in [name for _, name in parse_objective(self.objective.objective)]:
            numbers["val_loss_mlm15"] = self.loss(longest, self.mlm15)
        numbers["delta_shuffle"] = self.loss(longest, self.problems, shuffle=True) - numbers["val_loss"]
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
    rows.append(["longest rows, said from another row's concepts", numbers["val_loss"] + numbers["delta_shuffle"]])
    return report.table(["nats per scored token", "loss"], rows)


@torch.no_grad()
def reconstructions(validation: Validation, tokenizer, rows: int = 3) -> str:
    """Held-out rows of the shortest length: the text, what the encoder read of it, what the decoder said."""
    model, n = validation.model, min(validation.batches)
    numbers, ids = (x[:rows].to(validation.world.device) for x in validation.batches[n][0])
    _, problem = validation.problems(ids, numbers)[0]
    model.eval()
    said = model.say(model.encode(problem.source, problem.source_pos), n)  # [rows, n]
    model.train()
    lines = []
    for i in range(len(ids)):
        for name, row in (("text", ids[i]), ("read", problem.source[i]), ("said", said[i])):
            text = tokenizer.decode(row.tolist(), skip_special_tokens=False)
            lines.append(f"  {name}: {' '.join(text.split())}")
        lines.append("")
    return "\n".join(lines)

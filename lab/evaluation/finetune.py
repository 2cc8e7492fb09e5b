"""
Fine-tuning: trains a head and the encoder on one task and caches the predictions of every seed.

    work = FineTuning(run, pairs, config, cache)        # config: of eval_glue.py
    answers, rate = work.all_seeds(config)              # {"dev": {"predictions": [seeds, n]}}, learning rate
"""

import copy
import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from heads import HEADS
from lab import command
from lab.command import NonFinite
from lab.configurator import UserError, warn
from lab.data.tokenizers import pad_batch
from lab.distributed import World, exact_matmul, pick_dtype
from lab.evaluation.floors import cache_key
from lab.evaluation.scores import best_threshold, load_arrays, save_arrays, stack, task_scores
from lab.evaluation.tasks import Pairs
from lab.files import reading, replacing
from lab.runs import LoadedRun
from lab.sources import sources, weights
from lab.training import optim
from model import PRETRAINED, ConceptModel

RATES = (1e-4, 3e-4, 1e-3)  # learning rates that --grid=lr tries
LONG = {"cola": 20, "mrpc": 20, "stsb": 20, "rte": 20, "wnli": 20, "sst2": 5, "sick_r": 10, "sick_e": 10, "paws": 5}
RECIPES = {  # warmup: number of steps, or share of all steps
    "ours": {"epochs": 3, "lr": 3e-4, "batch": 32, "warmup": 0.1},
    "original": {"epochs": 3, "lr": 1e-5, "batch": 96, "warmup": 100},  # epochs: of the tasks that LONG does not name
}
PRETRAINED_LR = 5e-5  # at most, of what was pretrained elsewhere: Hugging Face encoders and backbones
FIXED = tuple(f"model.{name}" for name in PRETRAINED)
HELD_OUT = 0.1, 2000  # training rows held out to choose the epoch: share, and at most


def shorten(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """Truncates two lists of ids to `room` ids in total, the longer list first."""
    return a[: max(room - len(b), (room + 1) // 2)], b[: max(room - len(a), room // 2)]


def token_rows(run: LoadedRun, pairs: Pairs, apart: bool, most: int) -> tuple[dict[str, list], float]:
    """(split -> one or two arrays of at most `most` ids per row, share of tokens that was truncated). apart: the two
    texts of a pair are encoded separately; else as one text: a, separator, b."""
    ids = run.encode_texts(pairs.sentences)
    rows, before, after = {}, 0, 0
    for split, index in pairs.index.items():
        rows[split] = []
        for numbers in index:
            texts = [ids[i] for i in numbers]
            before += sum(map(len, texts))
            if apart or len(texts) == 1:
                texts = [text[: most - run.added[0]] for text in texts]
                wrapped = [run.wrap(text) for text in texts]
            else:
                texts = shorten(*texts, most - run.added[1])
                wrapped = [run.wrap(*texts)]
            after += sum(map(len, texts))
            rows[split].append([np.array(text, np.int32) for text in wrapped])
    return rows, 1 - after / before


def batches(rows: list, size: int, chance: np.random.Generator | None = None) -> list[np.ndarray]:
    """Row numbers in batches of similar length, for little padding; with `chance` in random order."""
    lengths = np.array([sum(map(len, texts)) for texts in rows])
    if chance is None:
        return np.array_split(np.argsort(-lengths, kind="stable"), range(size, len(rows), size))
    order = chance.permutation(len(rows))
    parts = []
    for pool in np.array_split(order, range(32 * size, len(rows), 32 * size)):
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        parts += np.array_split(pool, range(size, len(pool), size))
    return [parts[i] for i in chance.permutation(len(parts))]


def loss_of(outputs, labels, kind: str, linear: bool):
    """Cross-entropy of classes; squared error of standardised scores, outputs [B, 1]; of cosines CoSENT (Su 2022):
    log(1 + sum exp 20 (cos_j - cos_i)) over all pairs of rows with label_i > label_j."""
    if not linear:
        cosines = 20 * outputs[:, 0]
        wrong = (cosines[None, :] - cosines[:, None])[labels[:, None] > labels[None, :]]
        return torch.cat([wrong.new_zeros(1), wrong]).logsumexp(0)
    return F.mse_loss(outputs[:, 0], labels.float()) if kind == "score" else F.cross_entropy(outputs, labels)


def check(run: LoadedRun, pairs: Pairs, config):
    """UserError if this run and head cannot be trained on this task; fast."""
    head, model = HEADS[config.head], run.model
    pair = len(pairs.index[pairs.trained_on][0]) == 2
    if not head.linear and (not pair or pairs.task.kind == "classification"):
        raise UserError(f"{pairs.name} is no question of similarity for --head={config.head}; take --head=pair")
    if head.keeps_decoder and model.decoder is None:
        raise UserError(f"the run has no decoder for --head={config.head}; take --head=pair")
    if head.keeps_decoder and model.decoder.reads_ahead:
        raise UserError(f"positions of the run's decoder see their neighbours, padding too; not for {config.head}")
    if head.keeps_decoder and model.config.decoder == "backbone":
        raise UserError(f"a pretrained decoder has another width than concepts; not for {config.head}")
    if config.max_length > run.max_length:
        raise UserError(f"max_length = {config.max_length}, but the run read {run.max_length} tokens; leave it out")
    if len(pairs.labels[pairs.trained_on]) < 2:
        raise UserError(f"{pairs.name} has a single row to train on; put the original files there")


class FineTuning:
    """Trains models on one task with one protocol and caches their outputs."""

    def __init__(self, run: LoadedRun, pairs: Pairs, config, cache: Path):
        recipe, own = RECIPES[config.recipe], isinstance(run.model, ConceptModel)
        self.run, self.pairs, self.cache, self.kind = run, pairs, cache, pairs.task.kind
        self.head = HEADS[config.head]
        epochs = LONG.get(pairs.name, recipe["epochs"]) if config.recipe == "original" else recipe["epochs"]
        self.protocol = {
            "head": config.head,
            "epochs": config.epochs or epochs,
            "lr": config.lr or (recipe["lr"] if own else min(recipe["lr"], PRETRAINED_LR)),
            "batch": config.batch or recipe["batch"],
            "warmup": recipe["warmup"],
            "max_length": config.max_length or run.max_length,
            "dtype": pick_dtype("auto", run.device),
        }
        if run.model.backbone is not None:
            self.protocol["backbone_freeze"] = 1.0 if self.head.frozen else config.backbone_freeze
        self.rows, self.cut = token_rows(run, pairs, self.head.apart, self.protocol["max_length"])
        self.texts = len(self.rows[pairs.trained_on][0])
        chance = np.random.default_rng(20250101)
        order = chance.permutation(len(self.rows[pairs.trained_on]))
        held = max(1, min(int(HELD_OUT[0] * len(order)), HELD_OUT[1]))
        self.held, self.train = order[:held], order[held:]
        self.key = [sources("lab/evaluation/finetune.py", self.new_head(run.model, 0)), cache_key(run, pairs)]
        self.weights = weights(run.model)

    def about(self) -> str:
        """What is trained, in words."""
        model, new = self.run.model, self.new_head(self.run.model, 0).state_dict()
        left = 0 if self.head.keeps_decoder or model.decoder is None else len(model.decoder.state_dict())
        tensors = f"{len(model.state_dict()) - left} tensors are the checkpoint's, {left} of its decoder are not read"
        rows = f"{len(self.train):,} rows to train on, {len(self.held):,} held out"
        return f"{tensors}, new are {', '.join(new) or 'none'}; {rows}; {100 * self.cut:.1f} % of the tokens are cut"

    def new_head(self, model: ConceptModel, seed: int) -> nn.Module:
        outputs = 1 if self.kind == "score" or not self.head.linear else len(self.pairs.task.labels)
        return self.head(model.config, outputs, self.texts, seed=seed).to(self.run.device)

    def predictions(self, seed: int, rate: float, twin: bool = False) -> dict[str, np.ndarray]:
        """Split (and "held_out") -> outputs [n, K] at the best epoch of one training."""
        begun = "untrained" if twin else self.weights
        settings = [*self.key, begun, seed, self.protocol | {"lr": rate}]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        path = self.cache / f"fine_tune_{self.pairs.name}_{digest}.npz"
        if kept := load_arrays(path):
            return kept
        self.cache.mkdir(exist_ok=True)
        what = f"{self.pairs.name}, {'untrained twin' if twin else 'run'}, lr {rate:g}, seed {seed}"
        model = self.run.twin(seed).model if twin else self.run.model
        result = self.fit(model, seed, rate, what, path.with_suffix(".pt"))
        save_arrays(path, result)
        path.with_suffix(".pt").unlink(missing_ok=True)
        return result

    def fit(self, begun: ConceptModel, seed: int, rate: float, what: str, saved: Path) -> dict[str, np.ndarray]:
        """One training; its state after each epoch is saved to `saved`."""
        fixed = self.protocol.get("backbone_freeze", 0.0)  # share of the steps in which a backbone stays as it is
        shared = [begun.backbone, begun.tokens] if begun.backbone is not None and fixed == 1 else []
        model = copy.deepcopy(begun, {id(part): part for part in shared})
        head = self.new_head(model, seed)
        module = nn.ModuleDict({"model": model.requires_grad_(not self.head.frozen), "head": head})
        slow = []
        if model.backbone is not None:
            model.train_backbone(False)
            slow = [] if shared else model.pretrained_parameters()
            model.tower.kept = model.tower.kept if shared else None
        share = min(1.0, PRETRAINED_LR / rate)
        optimizer = optim.adamw(module, rate, 0.01, (0.9, 0.999), (), slow, share)
        labels = torch.from_numpy(self.pairs.labels[self.pairs.trained_on]).to(self.run.device)
        if self.kind == "score" and self.head.linear:
            labels = (labels - labels[self.train].mean()) / labels[self.train].std(unbiased=False).clamp_min(1e-6)
        texts = [self.rows[self.pairs.trained_on][i] for i in self.train]
        size, epochs = self.protocol["batch"], self.protocol["epochs"]
        horizon = epochs * math.ceil(len(texts) / size)
        warmup = self.protocol["warmup"]
        warmup = max(1, int(warmup * horizon)) if isinstance(warmup, float) else warmup
        world = World(0, 1, self.run.device, self.protocol["dtype"])
        try:
            start, best, kept = self.restore(saved, module, optimizer)
        except UserError as error:
            warn(error)
            saved.unlink(missing_ok=True)
            return self.fit(begun, seed, rate, what, saved)
        began, step = time.monotonic(), start * math.ceil(len(texts) / size)
        first = step
        for epoch in range(start, epochs):
            torch.manual_seed(seed * 1000 + epoch)  # of dropout; an epoch is the same after a kill
            module.train()
            bad = torch.zeros((), dtype=torch.bool, device=self.run.device)
            if self.head.frozen:
                model.eval()
            for numbers in batches(texts, size, np.random.default_rng((seed, epoch))):
                if slow and step >= fixed * horizon and not model.trains_backbone:
                    model.train_backbone(True)
                with world.autocast():
                    predicted = head(model, *self.padded(texts, numbers))
                loss = loss_of(predicted.float(), labels[self.train[numbers]], self.kind, self.head.linear)
                loss.backward()
                now = optim.learning_rate("linear", rate, step, horizon, warmup, 0.0)
                bad = bad | optim.clipped_step(module, optimizer, now, 1.0, loss)[1]
                step += 1
                if step % 50 == 0:
                    left = (time.monotonic() - began) / (step - first) * (horizon - step)
                    command.status(f"{what}: step {step}/{horizon}  loss {loss.item():.3f}  ETA {left:.0f} s", False)
            if bad:
                raise NonFinite(f"{what}: loss or gradient is not finite; take a smaller --lr")
            held = self.outputs(model, head, [self.rows[self.pairs.trained_on][i] for i in self.held])
            self.check_finite(held, self.pairs.index[self.pairs.trained_on][self.held])
            score = self.held_out_score(held)
            if best is None or score > best:
                others = {split: self.outputs(model, head, self.rows[split]) for split in self.pairs.scored}
                for split, made in others.items():
                    self.check_finite(made, self.pairs.index[split])
                best, kept = score, others | {"held_out": held}
            if epoch + 1 < epochs:
                state = {
                    "module": {k: v for k, v in module.state_dict().items() if not (shared and k.startswith(FIXED))},
                    "optimizer": optimizer.state_dict(),
                    "epoch": epoch + 1,
                    "best": best,
                }
                with replacing(saved) as temporary:
                    torch.save(state | {"kept": {k: torch.from_numpy(v) for k, v in kept.items()}}, temporary)
        command.status(f"{what}: {time.monotonic() - began:.0f} s, held-out {best:.3f}")
        return kept

    def restore(self, saved: Path, module: nn.Module, optimizer) -> tuple[int, float | None, dict]:
        """(epoch to go on with, best held-out score, outputs of it)."""
        if not saved.is_file():
            return 0, None, {}
        with reading(saved, "this seed begins anew"):
            state = torch.load(saved, map_location=self.run.device, weights_only=True)
            module.load_state_dict(state["module"], strict=False)
            optimizer.load_state_dict(state["optimizer"])
            return state["epoch"], state["best"], {k: v.cpu().numpy() for k, v in state["kept"].items()}

    def padded(self, rows: list, numbers) -> list[tuple]:
        """The one or two texts of these rows, each as (ids [B, S], mask [B, S])."""
        both = ([rows[i][k] for i in numbers] for k in range(self.texts))
        pad, device = self.run.config["pad_id"], self.run.device
        return [tuple(torch.from_numpy(x).to(device) for x in pad_batch(texts, pad)) for texts in both]

    @torch.no_grad()
    def outputs(self, model: ConceptModel, head: nn.Module, rows: list, size: int = 64) -> np.ndarray:
        """Outputs [n, K] of rows, float32."""
        model.eval(), head.eval()
        parts = batches(rows, size)
        with exact_matmul():
            made = torch.cat([head(model, *self.padded(rows, numbers)).float() for numbers in parts]).cpu().numpy()
        ordered = np.empty_like(made)
        ordered[np.concatenate(parts)] = made
        return ordered

    def check_finite(self, outputs: np.ndarray, index: np.ndarray):
        texts = [" / ".join(self.pairs.sentences[i] for i in row) for row in index]
        command.check_finite(outputs, texts, "answer", "take a smaller --lr")

    def predict(self, outputs: np.ndarray, held: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs [n, K] -> answers [1, n] of one seed. Cosines become yes/no by the threshold that is best on the
        held-out rows."""
        if self.kind == "score":
            return {"cosines": outputs.T.astype(np.float64)}
        if self.head.linear:
            return {"predictions": outputs.argmax(1)[None]}
        threshold = best_threshold(held[:, 0], self.pairs.labels[self.pairs.trained_on][self.held])
        return {"predictions": (outputs[:, 0].astype(np.float64) >= threshold).astype(np.int64)[None]}

    def held_out_score(self, outputs: np.ndarray) -> float:
        labels = self.pairs.labels[self.pairs.trained_on][self.held]
        return float(task_scores(self.pairs.task, self.predict(outputs, outputs), labels)[self.pairs.task.primary][0])

    def rate(self, wanted: str, twin: bool) -> float:
        """The protocol's learning rate or, with --grid=lr, the one of RATES that is best on the held-out rows."""
        if not wanted:
            return self.protocol["lr"]
        return max(RATES, key=lambda rate: self.held_out_score(self.predictions(0, rate, twin)["held_out"]))

    def all_seeds(self, config, twin: bool = False) -> tuple[dict[str, dict], float]:
        """(split -> answers of every seed [seeds, n], the learning rate)."""
        rate = self.rate(config.grid, twin)
        made = [self.predictions(seed, rate, twin) for seed in range(config.seeds)]
        each = [{split: self.predict(m[split], m["held_out"]) for split in self.pairs.scored} for m in made]
        return stack(each), rate

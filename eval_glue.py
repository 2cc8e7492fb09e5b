"""
Evaluates a run on sentence tasks, beside the floors (baselines) that it must beat.

    python eval_glue.py --run=out/quickstart --tasks=concept
    python eval_glue.py --run=out/quickstart --tasks=stsb,mrpc,rte --mode=fine_tune

zero_shot: nothing is trained. A sentence's vector is the mean of its concepts; similarity is the cosine: raw; centred,
after subtracting the mean over 4,000 of the task's train sentences, drawn at random; adapted, after also removing their
first k principal directions and scaling the others by sigma^-p (fitted for every method separately; k and p are in the
record). Paraphrase tasks are predicted by a threshold fitted on the train split, and by a linear probe
(accuracy_probe). Score tasks also report MaxSim over all concepts, and the correlation within each genre or subset.
f1: of the positive class of two; macro-F1 of three classes (MNLI, SICK-E).

`order`: which of two texts with the same words is the original held-out sentence? The other has two content words
exchanged (three or more places apart), its halves exchanged, a negation or number moved to another content word, or
words shuffled within windows of three. A linear probe of the frozen vectors decides; for any mean of token vectors its
accuracy is 50 %. `order` is the mean over these rules of 2 x accuracy - 1, 0 ... 100; order_concepts: with all concepts
as features instead of their mean. Its floors: token_ngrams (counts of token bigrams and trigrams) and token_idf.
Floors of similarity: TF-IDF of words and of characters, random word vectors, means of the run's own token vectors
weighted by idf (token_idf) and by corpus frequency (token_sif, Arora et al. 2017), of a backbone's states by idf
(state_idf), the untrained model.

fine_tune: a head and the encoder are trained on the train split without a held-out tenth, which chooses the epoch (and
with --grid=lr the learning rate); dev and test are only predicted. The untrained twin is trained in the same way with
the same seeds. Finished seeds are cached in `.floors/`, and a killed seed resumes at its last epoch.

`concept`: stsb, sick_r, mrpc and paws; `seeds`: mrpc, qqp, stsb and mnli; `sts`: those of STS12 ... STS16 that are in
the folder; `all`: all that are; `stsb_v2`: stsb without pairs that occur more than once, in either order, within or
across splits (MTEB's STSBenchmark.v2). Prints four rows a task, and with --full every metric and floor: the score (of
similarity the adapted one), the best floor, the untrained twin, and the score beyond word overlap. Writes
RUN/eval/MODE_TASK.json, and beside it as .npz the predictions for each row: SPLIT/cosines, SPLIT/centred, SPLIT/adapted
or SPLIT/predictions [seeds, rows], SPLIT/labels.

Word overlap explains most of a similarity score. Beyond it: partial_lexical is the partial rank correlation of centred
cosines and labels given overlap of words and characters and lengths (0 for a monotone function of one of them),
partial_lexical_adapted that of adapted cosines; partial_char_tfidf and partial_token_idf are given only that floor
(token_idf centred); spearman_low_overlap, _mid_ and _high_ are Spearman correlations within thirds of the rows by the
share of words that both sentences have.

Floors do not depend on training, so their predictions are cached in `.floors/` beside the run folder, under a hash of
the architecture, the tokenizer, the task's rows and the code: runs that share all of these compute them once.
"""

from lab import command  # isort: skip  (first: it tells an older Python)
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch.nn.functional as F

import losses
from encoders import Options
from heads import HEADS
from lab.command import log
from lab.configurator import PathStr, UserError, parse, warn
from lab.data import text_files
from lab.data.corpus import Corpus, check_name
from lab.evaluation import mteb, scores, tasks
from lab.evaluation.contamination import contamination
from lab.evaluation.finetune import RATES, RECIPES, FineTuning, check
from lab.evaluation.floors import embed, fine_tune_floors, predictions, task_floors, version, word_controls
from lab.evaluation.huggingface import is_reference, load_reference
from lab.evaluation.order import Order
from lab.evaluation.scores import (
    PARTIALS,
    answer_kind,
    beyond_intervals,
    metric_values,
    paired,
    read_answers,
    save_arrays,
)
from lab.evaluation.short import short_table
from lab.evaluation.states import KeptStates
from lab.evaluation.tasks import FETCH, TASKS, Pairs, check_names, load_task, task_names
from lab.files import locked, write_atomic
from lab.report import dict_table, drop_empty_columns, interval, over_seeds, score_rows, sweep_figure, verdicts
from lab.runs import ADAPTED, LoadedRun, check_options, load_run
from lab.training.plan import encoding_flops
from objectives import Bounds, check_bounds, described

ROOT = Path(__file__).resolve().parent


@dataclass
class EvalConfig:
    run: Annotated[PathStr, "run folder that train.py wrote; or a local folder with a Hugging Face encoder"] = ""
    contamination: Annotated[
        str, "no run: count and list the tasks' sentences that stand in this prepared corpus, such as pydocs"
    ] = ""
    data_dir: Annotated[
        PathStr, "where the prepared data are; empty: where the run had them; contamination: data/ beside this script"
    ] = ""
    tasks: Annotated[
        tuple[str, ...],
        "concept: stsb, sick_r, mrpc, paws; order; seeds: mrpc, qqp, stsb, mnli; sts: STS12 to 16; all that is there",
    ] = ("concept",)
    mode: Annotated[Literal["zero_shot", "fine_tune"], "evaluate vectors as they are, or train a head"] = "zero_shot"
    head: Annotated[Literal[tuple(HEADS)], f"fine_tune: how concepts become an answer. {described(HEADS)}"] = "pair"
    recipe: Annotated[
        Literal[tuple(RECIPES)],
        "fine_tune: epochs, lr, batch and warm-up; original: 1e-5, 96 rows, 20 epochs of the small tasks",
    ] = "ours"
    epochs: Annotated[int, "fine_tune: passes over the training rows; 0: the recipe's", Bounds(0)] = 0
    lr: Annotated[float, "fine_tune: peak learning rate, linear to 0; 0: the recipe's", Bounds(0)] = 0.0
    batch: Annotated[int, "fine_tune: rows per step; 0: the recipe's", Bounds(0)] = 0
    grid: Annotated[
        Literal["", "lr"], f"fine_tune: lr: the one of {RATES} that is best on the held-out rows, at seed 0"
    ] = ""
    backbone_freeze: Annotated[
        float, "fine_tune: share of the steps in which a run's backbone stays as it is; then at most 5e-5", Bounds(0, 1)
    ] = 1.0
    max_length: Annotated[
        int, "fine_tune: tokens read of a row, the longer sentence is truncated first; 0: the run's", Bounds(0)
    ] = 0
    train_on: Annotated[Literal["train", "dev"], "fine_tune: the split to train on; dev where none is"] = "train"
    seeds: Annotated[int, "fine_tune: seeds 0 to N-1", Bounds(1)] = 3
    against: Annotated[
        PathStr, "another run folder, evaluated in the same mode before: prints the paired difference to it"
    ] = ""
    data: Annotated[PathStr, "folder of the task files, as published or of data/glue/prepare.py"] = "data/glue"
    text: Annotated[PathStr, "order: a file with a sentence per line, instead of the run's validation text"] = ""
    concepts: Annotated[
        tuple[int, ...],
        "the first so many of a run with nested=True; several: a sweep, quality against FLOPs",
        Bounds(1),
    ] = ()
    iterations: Annotated[
        tuple[int, ...], "of a recursive encoder; several: a sweep, quality against FLOPs", Bounds(1)
    ] = ()
    ckpt: Annotated[str, "latest, best or a step"] = "latest"
    device: Annotated[str, "auto, cpu, cuda or mps"] = "auto"
    mteb: Annotated[
        tuple[str, ...], "in place of tasks: tasks of MTEB by its own library, such as STSBenchmark,SICK-R"
    ] = ()
    full: Annotated[bool, "print every metric beside every floor, in place of four rows a task"] = False

    def __post_init__(self):
        check_bounds(self)
        if bool(self.run) == bool(self.contamination):
            raise ValueError("give a run, --run=out/quickstart, or --contamination=DATASET")
        if not self.tasks:
            raise ValueError("no task is given; write --tasks=concept")
        check_names(self.tasks, self.mode == "zero_shot" and not self.contamination)
        if self.grid and self.lr:
            raise ValueError("grid = 'lr' chooses the learning rate; leave --lr out")
        if len(self.options) > 1 and (self.mode != "zero_shot" or self.against):
            raise ValueError("a sweep over concepts or iterations is zero-shot and of one run; give one of each")

    @property
    def options(self) -> list[Options]:
        """The options that the model is evaluated with, one after another."""
        return [Options(m, k) for m in self.concepts or (0,) for k in self.iterations or (0,)]

    def record(self, run: str, task: str) -> Path:
        """Path of a run's record of a task with our mode and options."""
        return Path(run) / "eval" / f"{record_name(self.mode, task, self.options[0])}.json"


def compare_with_floors(
    ours: dict[str, dict], theirs: dict[str, dict], pairs: Pairs
) -> tuple[dict[str, dict], dict[str, dict]]:
    """ours: split -> answers; theirs: floor -> split -> answers. Returns (split -> {metrics, floors, untrained_range,
    lift, verdict}, of score tasks also {beyond, lift_centred, ...}; split -> metrics [seeds])."""
    result, each = {}, {}
    for split in pairs.scored:
        answers = {floor: splits[split] for floor, splits in theirs.items()}
        known = word_controls(pairs, split, answers) if pairs.task.kind == "score" else None
        each[split] = metric_values(pairs, split, ours[split], known)
        metrics = {metric: float(np.median(v)) for metric, v in each[split].items()}
        seeds = {floor: metric_values(pairs, split, answer, known) for floor, answer in answers.items()}
        means = {floor: {metric: float(v.mean()) for metric, v in values.items()} for floor, values in seeds.items()}
        for metric, controls in PARTIALS.items() if known else ():
            for floor in means.keys() & set(controls):  # undefined given itself
                means[floor][metric] = None
        spread = {metric: [float(v.min()), float(v.max())] for metric, v in seeds["untrained"].items()}
        result[split] = {"metrics": metrics, "floors": means, "untrained_range": spread}
        if known:
            result[split]["beyond"] = beyond_intervals(ours[split], pairs.labels[split], known)
        for metric, name in pairs.task.lifts.items():
            if metric not in metrics:
                continue
            having = [floor for floor in means if means[floor].get(metric) is not None]
            best = max(having, key=lambda floor: means[floor][metric])  # noqa: B023
            named = [floor for floor in ("token_idf", "untrained") if floor in answers]
            others = {floor: answers[floor][answer_kind(metric, answers[floor])] for floor in (best, *named)}
            kind = answer_kind(metric, ours[split])
            lifts = scores.lifts(metric, ours[split][kind], others, pairs.labels[split], known)
            result[split][name] = {"best_floor": {"floor": best, **lifts[best]}}
            result[split][name] |= {floor: lifts[floor] for floor in named}
    sentences = verdicts(score_rows(pairs.name, [result], pairs.task.lifts))
    for evaluated, sentence in zip(result.values(), sentences.values(), strict=True):
        evaluated["verdict"] = sentence
    return result, each


def maxsim(run: LoadedRun, pairs: Pairs, split: str) -> np.ndarray:
    """`losses.maxsim` of all concepts of the two sentences, float64 [1, n]."""
    parts, index = [], pairs.index[split]
    for rows in np.array_split(index, range(256, len(index), 256)):
        a, b = (F.normalize(run.concepts([pairs.sentences[i] for i in column]), dim=-1) for column in rows.T)
        parts.append(losses.maxsim(a @ b.mT))  # [rows, C, C]
    return np.concatenate(parts).astype(np.float64)[None]


def zero_shot(run: LoadedRun, pairs: Pairs, folder: Path, cache: Path) -> dict:
    """Evaluates one task and writes its record to `folder` -> the record."""
    if pairs.name == "order":
        theirs = task_floors(run, pairs, cache, pairs.floors)
        ours = pairs.answers(run)
        log(f"order: {len(pairs.sides[0]):,} pairs of {pairs.source}, half of them for the test")
        protocol = {"text": pairs.source, "pairs": dict(Counter(pairs.sets["dev"].tolist())), "dtype": "float32"}
        protocol |= {"head": "ridge on the difference of two texts", "selection": "leave-one-out error"}
        splits, each = compare_with_floors(ours, theirs, pairs)
        splits["dev"]["intervals"] = pairs.intervals(ours["dev"])
        return write_record(run, pairs, "zero_shot", splits, each, protocol, ours, folder)
    theirs = task_floors(run, pairs, cache)
    log(f"{pairs.name}: {len(pairs.sentences):,} sentences")
    vectors = embed(run, pairs)
    ours = predictions(vectors, pairs, ADAPTED["model"], probe=True)
    if pairs.task.kind == "score":
        for split in pairs.scored:
            ours[split]["maxsim"] = maxsim(run, pairs, split)
    evaluated = compare_with_floors(ours, theirs, pairs)
    fitted = pairs.task.kind == "paraphrase"
    protocol = {
        "head": "threshold on the cosine" if fitted else "cosine",
        "pooling": "mean of concepts",
        "adapted": ADAPTED,  # directions removed and power of sigma, of models and of static vectors
        **run.model.options._asdict(),
        "lr": None,
        "epochs": None,
        "batch": None,
        "max_length": run.max_length,
        "selection": "best accuracy on the fitting split" if fitted else "none",
        "pairs": "encoded apart",
        "train_rows": {split: len(pairs.labels[other]) for split, other in pairs.fitted_on.items()},
        "eval_rows": {split: len(pairs.labels[split]) for split in pairs.scored},
        "fitted_on": pairs.fitted_on,  # idf, centring and threshold
        "fitting": f"{pairs.name} {pairs.fitting}",
        "dtype": "float32",
    }
    return write_record(run, pairs, "zero_shot", *evaluated, protocol, ours, folder)


def write_record(run, pairs: Pairs, mode: str, splits: dict, each: dict, protocol: dict, ours: dict, folder) -> dict:
    """Writes MODE_TASK.json and .npz -> the record. ours: split -> answers of all seeds; each: their metrics."""
    seeds = range(len(next(iter(next(iter(each.values())).values()))))
    record = {
        "task": pairs.name,
        "mode": mode,
        "run_id": run.config["run_id"],
        "checkpoint": f"ckpt_{run.step}",
        "version": version(pairs),
        "splits": splits,
        "protocol": protocol,
        "seeds": list(seeds),
        "per_seed": [{s: {m: float(v[i]) for m, v in metrics.items()} for s, metrics in each.items()} for i in seeds],
    }
    arrays = {f"{split}/labels": pairs.labels[split] for split in ours}
    if pairs.name == "order":
        arrays |= {f"{split}/texts": np.array(pairs.digest()) for split in ours}
    for split, answer in ours.items():
        arrays |= {f"{split}/{'predictions' if mode == 'fine_tune' else kind}": rows for kind, rows in answer.items()}
    name = record_name(mode, pairs.name, run.model.options)
    save_arrays(folder / f"{name}.npz", arrays)
    write_atomic(folder / f"{name}.json", json.dumps(record, indent=1) + "\n")
    return record


def record_name(mode: str, task: str, options: Options) -> str:
    """MODE_TASK, followed by options that differ from the configuration."""
    return "_".join([mode, task, *(f"{key}{value}" for key, value in options._asdict().items() if value)])


# ---------------------------------------------------------------------------------------------------------------------
# Fine-tuning


def fine_tune(run: LoadedRun, pairs: Pairs, config: EvalConfig, folder: Path, cache: Path) -> dict:
    """Fine-tunes on one task and writes its record to `folder` -> the record."""
    work = FineTuning(run, pairs, config, cache)
    log(f"{pairs.name}: {work.about()}")
    ours, rate = work.all_seeds(config)
    theirs = fine_tune_floors(run, pairs, cache)
    theirs["untrained"], twins_rate = work.all_seeds(config, twin=True)
    evaluated = compare_with_floors(ours, theirs, pairs)
    protocol = work.protocol | {
        **run.model.options._asdict(),
        "lr": rate,
        "untrained_lr": twins_rate,
        "recipe": config.recipe,
        "pooling": config.head,
        "selection": f"{pairs.task.primary} of the held-out rows: the epoch" + (", and lr" if config.grid else ""),
        "pairs": "encoded apart" if work.head.apart else "encoded together",
        "trained_on": pairs.trained_on,
        "train_rows": len(work.train),
        "held_out_rows": len(work.held),
        "eval_rows": {split: len(pairs.labels[split]) for split in pairs.scored},
        "cut_share": work.cut,
    }
    return write_record(run, pairs, "fine_tune", *evaluated, protocol, ours, folder)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def difference(record: dict, path: Path, other: dict, theirs: dict) -> list[str]:
    """A sentence per split: the difference between this run and the other, medians over seeds on the same rows. path:
    of our record; other, theirs: the other's record and answers."""
    task, lines, (_, ours) = TASKS[record["task"]], [], read_answers(path)
    differs = [
        key
        for key in ("head", "epochs", "batch", "recipe")
        if record["protocol"].get(key) != other["protocol"].get(key)
    ]
    differs += ["code or rows"] if record["version"] != other.get("version") else []
    warning = f" (another {', '.join(differs)})" if differs else ""
    for split in record["splits"]:
        metric = task.primary + ("_adapted" if f"{split}/adapted" in ours.keys() & theirs.keys() else "")
        name = f"{other['run_id']} in {record['task']}"
        lift = paired(metric, split, [ours], {name: [theirs]}, np.median)[name]
        lines.append(f"{record['task']} {split}: {metric} {interval(lift)} over {other['run_id']}, paired{warning}")
    return lines


def sweep(run: LoadedRun, loaded: list[Pairs], options: list[Options], folder: Path, cache: Path) -> str:
    """Zero-shot evaluation with each of `options`: a table of primary dev scores beside the untrained twin's, and
    folder/sweep.png."""
    rows, lines = [], {}
    for chosen in options:
        run.model.options = chosen
        flops = encoding_flops(run.model.config, run.max_length, chosen) / 1e6
        row = {key: value for key, value in chosen._asdict().items() if value} | {"MFLOP/token": flops}
        for pairs in loaded:
            record = zero_shot(run, pairs, folder, cache)
            split = "dev" if "dev" in record["splits"] else pairs.scored[0]
            evaluated = record["splits"][split]
            metric = pairs.task.primary + ("_adapted" if pairs.task.kind == "score" else "")
            score, twins = 100 * evaluated["metrics"][metric], 100 * evaluated["floors"]["untrained"][metric]
            row |= {f"{pairs.name} {split} {metric}": score, f"its twin, {pairs.name}": twins}
            if tasks.HEADLINE in evaluated["metrics"]:
                row[f"{pairs.name} beyond words"] = 100 * evaluated["metrics"][tasks.HEADLINE]
            lines.setdefault(pairs.name, []).append((flops, score))
            lines.setdefault(f"{pairs.name}, untrained", []).append((flops, twins))
        rows.append(row)
    sweep_figure(lines, folder / "sweep.png")
    return dict_table(rows)


def open_run(parsed, config: EvalConfig) -> LoadedRun:
    """Loads the run to evaluate; before the tasks, so that its errors are reported first."""
    if is_reference(config.run):
        run = load_reference(config.run, config.device)
        parsed.unused(["ckpt", "concepts", "iterations"], "for a Hugging Face encoder")
        config.concepts = config.iterations = ()
    else:
        run = load_run(config.run, config.ckpt, config.device, config.options[0])
        if run.model.fixed_backbone:
            run.model.tower.kept = KeptStates(config.run)
        for options in config.options[1:]:
            check_options(run.model.config, options)
        if config.data_dir:
            run.config["data_dir"] = config.data_dir
    return run


def main(argv) -> int:
    everyday = ("run", "tasks", "data", "mode", "seeds", "against")
    parsed = parse(argv, EvalConfig, prog="eval_glue.py", doc=__doc__, root=ROOT, positional=False, everyday=everyday)
    config = parsed.make(EvalConfig)
    zero = config.mode == "zero_shot"
    if zero or config.contamination:
        keys = "head recipe epochs lr batch grid backbone_freeze max_length train_on seeds".split()
        parsed.unused(keys, "by mode = 'zero_shot', in which nothing is trained")
    mteb_tasks = mteb.find_tasks(config.mteb) if config.mteb else []
    run = open_run(parsed, config) if config.run else None
    if mteb_tasks:
        return judge_by_mteb(config, run, mteb_tasks)
    data = Path(config.data) if "data" in parsed.given else ROOT / "data" / "glue"
    names = task_names(config.tasks, data, zero_shot=zero and not config.contamination)
    if not names:
        raise UserError(f"no task that can be evaluated lies below {data}; give another --data=DIR, or {FETCH}")
    if config.contamination:
        if "order" in names:
            raise UserError("order has no files of sentences; name other --tasks")
        folder = Path(config.data_dir or ROOT / "data") / check_name(config.contamination)
        corpus = Corpus(folder, "train")
        print(contamination(corpus, {name: load_task(name, data) for name in names}))
        return 0
    loaded, trained_on = [], "" if zero else config.train_on
    for name in names:  # all mistakes in files first
        try:
            if name == "order":  # of the lines of a file, or of the run's own validation text
                loaded.append(Order(run, text_files.read_lines(config.text) if config.text else None))
            else:
                loaded.append(Pairs(name, load_task(name, data), trained_on))
        except UserError as error:
            if config.tasks != ("all",) or zero:
                raise
            warn(f"{error}; it is left out")
    others = {}
    if config.against:
        others = {name: read_answers(config.record(config.against, name)) for name in names}
    if not zero:
        for pairs in loaded:
            if pairs.name == "order":
                raise UserError("order is evaluated on frozen vectors; leave --mode out")
            check(run, pairs, config)
    with locked(Path(config.run) / "eval", "evaluate a copy of the run folder"):
        return evaluate(config, run, loaded, others)


def judge_by_mteb(config: EvalConfig, run: LoadedRun, found: list) -> int:
    """Prints the main score of each task and split, and writes RUN/eval/mteb_TASK.json."""
    rows, folder = [], Path(config.run) / "eval"
    with locked(folder, "judge a copy of the run folder"):
        for name, record in mteb.scores(run, found).items():
            write_atomic(folder / f"mteb_{name}.json", json.dumps(record, indent=1) + "\n")
            for split, values in record["scores"].items():
                for one in values:
                    rows.append({"MTEB": name, "split": split, "main score x100": f"{100 * one['main_score']:.1f}"})
    print(f"{run.config['run_id']}, ckpt_{run.step}\n\n{dict_table(rows)}\n\nno floor is beside them; --tasks has some")
    return 0


def evaluate(config: EvalConfig, run: LoadedRun, loaded: list[Pairs], others: dict) -> int:
    """Evaluates a run on these tasks and prints the results -> exit code. others: task -> see `difference`."""
    zero = config.mode == "zero_shot"
    folder, cache = Path(config.run) / "eval", Path(config.run).resolve().parent / ".floors"
    if len(config.options) > 1:
        print(f"{run.config['run_id']}, ckpt_{run.step}, zero-shot on dev, x100; encoding {run.max_length} tokens\n")
        print(sweep(run, loaded, config.options, folder, cache))
        log(f"{folder}: sweep.png")
        return 0
    rows, records = [], []
    for pairs in loaded:
        record = zero_shot(run, pairs, folder, cache) if zero else fine_tune(run, pairs, config, folder, cache)
        for row in score_rows(pairs.name, [record["splits"]], pairs.task.lifts):
            if not isinstance(row["score"], dict):
                row["score"] = over_seeds([seed[row["split"]][row["metric"]] for seed in record["per_seed"]])
            rows.append(row)
        records.append(record)
    how = "zero-shot" if zero else f"fine-tuned, head {config.head}, median (least..most) of {config.seeds} seeds"
    print(f"{run.config['run_id']}, ckpt_{run.step}, {how}, x100; [95 % intervals]\n")
    if zero and config.full:
        for what, (remove, power) in ADAPTED.items():
            print(f"adapted, {what}: first directions removed: {remove}; the others by sigma^-{power:g}")
        print()
    if config.full:
        print(dict_table(drop_empty_columns(rows)))
        print("\n" + "\n".join(f"{name}: {sentence}" for name, sentence in verdicts(rows).items()))
    else:
        print(short_table(rows) + ("\n\nscores of similarity are adapted; see --help" if zero else ""))
        print(f"\nevery metric, every floor, the protocol: {folder}/{config.mode}_TASK.json; --full=True prints them")
    if others:
        print()
    for record in records:
        if record["task"] in others:
            print("\n".join(difference(record, config.record(config.run, record["task"]), *others[record["task"]])))
    if not zero and config.full:
        print("\n" + "\n".join(f"{record['task']} protocol: {json.dumps(record['protocol'])}" for record in records))
    for pairs in loaded:
        if zero and set(pairs.fitted_on.values()) - {"train"}:
            print(f"\n{pairs.name} {pairs.fitting}")
    return 0


if __name__ == "__main__":
    command.command(main)

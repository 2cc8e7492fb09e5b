"""
Judges a run on sentence tasks, next to the floors it must beat.

    python eval_glue.py --run=out/quickstart --tasks=concept

zero_shot: nothing is trained. A sentence's vector is the mean of its concepts; likeness is the cosine, raw and centred
(less the mean over the task's first 2,000 train sentences); yes/no questions are answered by a threshold fitted on the
train split. `concept` is stsb, sick_r, mrpc and paws; `sts` those of STS12 ... STS16 that lie in the folder. Prints one
table and writes RUN/eval/zero_shot_TASK.json; beside it .npz has the answers to each row: SPLIT/cosines, SPLIT/centred
or SPLIT/predictions [seeds, rows], SPLIT/labels.

Most of a similarity score is overlap of words. What it knows beyond them: partial_lexical is the rank correlation of
centred cosines and labels that is left, given what overlap of words and characters and the lengths know of both (0 for
their monotone copies); partial_char_tfidf and partial_token_idf are given that floor alone (token_idf centred);
spearman_low_overlap, _mid_ and _high_ are inside thirds of the rows by the share of words that both sentences have.

Floors do not depend on the training, so their answers are kept in `.floors/` beside the run folder, under a hash of
the architecture, the tokenizer and the task's rows: runs that share those compute it once.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from lab import command, floors, tasks
from lab.command import say
from lab.configurator import UserError, parse
from lab.files import write_atomic
from lab.report import score_rows, score_table, verdicts
from lab.runs import LoadedRun, load_run
from lab.tasks import Pairs

ROOT = Path(__file__).resolve().parent
POSTPROCESSING = "remove_directions", "whitening"


@dataclass
class EvalConfig:
    run: Annotated[str, "run folder that train.py wrote"] = ""
    tasks: Annotated[
        tuple[str, ...], "tasks; concept: stsb, sick_r, mrpc, paws; sts: STS12 ... STS16; all: what is there"
    ] = ("concept",)
    mode: Annotated[Literal["zero_shot", "fine_tune"], "judge the vectors as they are, or train a head"] = "zero_shot"
    seeds: Annotated[int, "fine_tune: seeds 0 ... N-1"] = 3
    data: Annotated[str, "folder of the task files, in their original layout"] = "data/glue"
    remove_directions: Annotated[Literal[-1, 0, 1], "as for train.py; -1: what the run says"] = -1
    whitening: Annotated[float, "as for train.py; -1: what the run says"] = -1.0
    ckpt: Annotated[str, "latest, best or a step"] = "latest"
    device: Annotated[str, "auto, cpu or cuda"] = "auto"

    def __post_init__(self):
        if not self.run:
            raise ValueError("no run is given; write --run=out/quickstart")
        if not self.tasks:
            raise ValueError("no task is given; write --tasks=concept")
        if self.whitening != -1 and not 0 <= self.whitening <= 1:
            raise ValueError(f"whitening = {self.whitening} is no power to scale by; write --whitening=0.25 or so")
        if self.seeds < 1:
            raise ValueError(f"seeds = {self.seeds} is below 1; write --seeds=3")
        if self.mode == "fine_tune":
            raise ValueError("mode = 'fine_tune' is not there yet; write --mode=zero_shot")


def judge(ours: dict[str, dict], theirs: dict[str, dict], pairs: Pairs) -> dict[str, dict]:
    """ours: split -> answers; theirs: floor -> split -> answers. Returns split -> {metrics, floors, untrained_range,
    lift, verdict}; for scores also {beyond, lift_centred, lift_beyond}."""
    result = {}
    for split in pairs.scored:
        answers = {floor: splits[split] for floor, splits in theirs.items()}
        known = floors.word_controls(pairs, split, answers) if pairs.task.kind == "score" else None
        metrics = {metric: float(np.median(v)) for metric, v in floors.scores(pairs, split, ours[split], known).items()}
        seeds = {floor: floors.scores(pairs, split, answer, known) for floor, answer in answers.items()}
        means = {floor: {metric: float(v.mean()) for metric, v in values.items()} for floor, values in seeds.items()}
        for metric, controls in floors.PARTIALS.items() if known else ():
            for floor in means.keys() & set(controls):  # given itself, nothing is left
                means[floor][metric] = None
        spread = {metric: [float(v.min()), float(v.max())] for metric, v in seeds["untrained"].items()}
        result[split] = {"metrics": metrics, "floors": means, "untrained_range": spread}
        if known:
            result[split]["beyond"] = floors.beyond_intervals(ours[split]["centred"], pairs.labels[split], known)
        for metric, name in pairs.task.lifts.items():
            kind = "centred" if metric in floors.BEYOND else tasks.METRICS[metric][1]
            having = [floor for floor in means if means[floor][metric] is not None]
            best = max(having, key=lambda floor: means[floor][metric])  # noqa: B023
            others = {floor: answers[floor][kind] for floor in (best, "token_idf", "untrained")}
            lifts = floors.lifts(metric, ours[split][kind], others, pairs.labels[split], known)
            result[split][name] = {"best_floor": {"floor": best, **lifts[best]}}
            result[split][name] |= {floor: lifts[floor] for floor in ("token_idf", "untrained")}
    sentences = verdicts(score_rows(pairs.name, [result], pairs.task.lifts))
    for judged, sentence in zip(result.values(), sentences.values(), strict=True):
        judged["verdict"] = sentence
    return result


def zero_shot(run: LoadedRun, pairs: Pairs, folder: Path, cache: Path) -> dict:
    """The record of a task, as it is written to `folder`."""
    theirs = floors.task_floors(run, pairs, cache)
    say(f"{pairs.name}: {len(pairs.sentences):,} sentences")
    ours = floors.answers(floors.embed(run, pairs), pairs)
    splits = judge(ours, theirs, pairs)
    fitted = pairs.task.kind == "likeness"
    record = {
        "task": pairs.name,
        "mode": "zero_shot",
        "run_id": run.config["run_id"],
        "checkpoint": f"ckpt_{run.step}",
        "version": floors.VERSION,
        "splits": splits,
        "protocol": {
            "head": "threshold on the cosine" if fitted else "cosine",
            "pooling": "mean of concepts",
            **{key: run.config[key] for key in POSTPROCESSING},
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
        },
        "seeds": [0],
        "per_seed": [{split: judged["metrics"] for split, judged in splits.items()}],
    }
    rows = {split: answers | {"labels": pairs.labels[split]} for split, answers in ours.items()}
    arrays = {f"{split}/{kind}": array for split, answers in rows.items() for kind, array in answers.items()}
    floors.save_arrays(folder / f"zero_shot_{pairs.name}.npz", arrays)
    write_atomic(folder / f"zero_shot_{pairs.name}.json", json.dumps(record, indent=1) + "\n")
    return record


def main(argv) -> int:
    parsed = parse(argv, EvalConfig, prog="eval_glue.py", doc=__doc__, root=ROOT, positional=False)
    config = parsed.make(EvalConfig)
    parsed.unused(["seeds"], "by mode = 'zero_shot', in which nothing is drawn")
    data = Path(config.data) if "data" in parsed.given else ROOT / "data" / "glue"
    names = tasks.task_names(config.tasks, data, zero_shot=True)
    if not names:
        raise UserError(f"no task with a zero-shot score lies below {data}; give --data=DIR with the task files")
    loaded = [Pairs(name, tasks.load_task(name, data)) for name in names]  # all mistakes in files first
    run = load_run(config.run, config.ckpt, config.device)
    run.config |= {key: value for key in POSTPROCESSING if (value := getattr(config, key)) != -1}
    folder = Path(config.run) / "eval"
    folder.mkdir(exist_ok=True)
    rows = []
    for pairs in loaded:
        record = zero_shot(run, pairs, folder, Path(config.run).resolve().parent / ".floors")
        rows += score_rows(pairs.name, [record["splits"]], pairs.task.lifts)
    print(f"{run.config['run_id']}, ckpt_{run.step}, zero-shot, x100; [95 % intervals]\n")
    print(score_table(rows))
    print("\n" + "\n".join(f"{name}: {sentence}" for name, sentence in verdicts(rows).items()))
    for pairs in loaded:
        if set(pairs.fitted_on.values()) - {"train"}:
            print(f"\n{pairs.name} {pairs.fitting}")
    return 0


if __name__ == "__main__":
    command.command(main)

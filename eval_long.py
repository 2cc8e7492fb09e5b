"""
Evaluates a run on long documents, zero-shot, beside floors.

    python eval_long.py --run=out/concepts_cpu --tasks=halves,passkey,contains --lengths=512,2048
    python eval_long.py --run=out/concepts_cpu --tasks=imdb,race,qmsum --data=DIR

DIR holds imdb_train.tsv and imdb_test.tsv (id, rating, label, text), race_test.jsonl and qmsum.jsonl as published, of
SCROLLS contract_nli/, quality/ and qasper/ with train.jsonl and validation.jsonl, of LongBench trec.jsonl and
passage_retrieval_en.jsonl; each plain, packed, or a .parquet of the same name, of which each column is a key. `all`:
the tasks whose files are there, and those that need none.

Documents end at each of --lengths tokens; the share that this cuts is printed. A document that is longer than the run's
longest row is read in parts: their vectors are averaged (--merge=mean), or all concepts of all parts are compared
(--merge=maxsim). A run of encoder=chunked with merge=perceiver merges the chunks of a row itself (--merge=perceiver
says so, and refuses others).

imdb: is a review positive? race: which of four answers is right? qmsum: which window of a meeting belongs to a query?
contract_nli: does a contract entail a statement? quality: which of four answers about a story is right?
qasper: which of ten answers belongs to a question about a paper? trec: of what kind is the answer to a question?
passage_retrieval_en: which paragraph does an abstract summarise?
halves: which second half belongs to a first half? duplicates: which document had half of its sentences replaced?
Controls are made of the run's held-out sentences: passkey (which digit was named?), needle (is a sentence there?),
order (which of two sentences is first?), count (how often, 0 to 4 times, does a word occur?), contains (which of ten
documents contains a sentence?), third (which of a document's sentences is the third?). Searches are by cosine of
adapted vectors, or MaxSim; questions of class by a linear probe of all concepts.
reconstruction: how many bits of a token the concepts keep, by the run's decoder, at each length and, of a nested run,
each number of concepts; beside the untrained twin.

Floors: chance, TF-IDF of words, the idf-weighted mean of the run's token embeddings, the untrained twin, and of real
tasks the run itself on the first of --lengths. Writes RUN/eval/long_TASK.json and, of the controls, a picture of
accuracy by depth, long_depth.png.
"""

from lab import command  # isort: skip  (first: it tells an older Python)
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lab.analysis.rate import rate
from lab.command import log
from lab.configurator import PathStr, UserError, nearest, parse
from lab.evaluation.huggingface import is_reference
from lab.evaluation.long import CONTROLS, REAL, TASKS, Context, there
from lab.evaluation.long_scores import evaluated
from lab.files import locked, read_json, write_atomic
from lab.grids.summary import long_path, rate_rows
from lab.report import dict_table, heatmaps, interval, optional_picture
from lab.runs import LoadedRun, OneRun
from lab.training.run_folder import RunFolder
from objectives import Bounds

ROOT = Path(__file__).resolve().parent
RECONSTRUCTION = "reconstruction"


@dataclass
class LongConfig(OneRun):
    tasks: Annotated[tuple[str, ...], f"{', '.join((*TASKS, RECONSTRUCTION))}; or all, or controls"] = ("controls",)
    lengths: Annotated[tuple[int, ...], "tokens at which documents end", Bounds(32)] = (512, 2048)
    merge: Annotated[
        Literal["mean", "maxsim", "perceiver"],
        "what is made of the parts of a long document; perceiver: parts as in training, of a run that merges so",
    ] = "mean"
    data: Annotated[PathStr, "folder of the tasks' files, packed or not"] = "data/long"
    most: Annotated[int, "documents or queries of a task, at most", Bounds(30)] = 2000

    def __post_init__(self):
        super().__post_init__()
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError("lengths are numbers of tokens that grow; write --lengths=512,2048")
        for name in self.tasks:
            if name not in (known := (*TASKS, RECONSTRUCTION, "all", "controls")):
                near = nearest(name, known)
                raise ValueError(f"--tasks={name} is no task; {f'did you mean {near}?' if near else ', '.join(TASKS)}")
        if not self.tasks:
            raise ValueError("no task is given; write --tasks=controls")

    def is_done(self, folder: RunFolder, name: str) -> bool:
        """Whether a run has a record of this task, of its latest checkpoint, as we would write it."""
        with suppress(UserError, LookupError, TypeError):
            record = read_json(long_path(folder.path, name), "an evaluation")
            asked = record["protocol"]["lengths"], record["protocol"]["merge"], record["protocol"]["most"]
            about = record["run_id"], record["checkpoint"], *asked
            now = folder.config()["run_id"], f"ckpt_{folder.pointer('latest')}"
            return about == (*now, list(self.lengths), self.merge, self.most)
        return False

    @property
    def names(self) -> list[str]:
        groups = {"all": there(Path(self.data)), "controls": [*CONTROLS]}
        return list(dict.fromkeys(one for name in self.tasks for one in groups.get(name, [name])))


def evaluate_task(run: LoadedRun, config: LongConfig, name: str) -> dict:
    """A task at each length -> its record."""
    splits, shares, known = {}, {}, {}
    for length in config.lengths:
        context = Context(run, Path(config.data), config.most)
        task = TASKS[name](context, length)
        shares[str(length)] = context.cut / max(context.tokens, 1)
        log(f"{name}, {length} tokens: {len(task.documents):,} texts, {100 * shares[str(length)]:.1f} % cut")
        same = {floor: hits for floor, hits in known.items() if hits["n"] == len(task.documents)}
        found = evaluated(run, task, config.merge, {floor: hits["hits"] for floor, hits in same.items()})
        hits = found.pop("hits")
        if name in REAL and not known:
            known[f"first_{length}"] = {"n": len(task.documents), "hits": hits}
        splits[str(length)] = found
        if name in REAL and not context.cut:  # longer ones would be the same
            break
    head = "cosine or MaxSim" if "recall_1" in next(iter(splits.values()))["metrics"] else "ridge classifier"
    return record_of(run, config, name, splits, {"cut": shares, "head": head})


def record_of(run: LoadedRun, config: LongConfig, name: str, splits: dict, protocol: dict) -> dict:
    protocol |= {"merge": config.merge, "lengths": list(config.lengths), "row": run.max_length, "most": config.most}
    return {
        "task": name,
        "mode": "long",
        "run_id": run.config["run_id"],
        "checkpoint": f"ckpt_{run.step}",
        "splits": splits,
        "protocol": protocol | run.model.options._asdict(),
    }


def reconstruct(run: LoadedRun, config: LongConfig) -> dict:
    """The record of `reconstruction`."""
    splits = {}
    for length in config.lengths:
        splits[str(length)] = rate(run, length, config.most)
        log(f"reconstruction, {length} tokens")
    return record_of(run, config, RECONSTRUCTION, splits, {})


def rows_of(record: dict) -> list[dict]:
    """A row of the printed table for each length."""
    rows = []
    for length, split in record["splits"].items():
        main, *others = split["metrics"]
        best = split["lift"]["best_floor"]
        row = {"task": record["task"], "tokens": length, "cut %": f"{100 * record['protocol']['cut'][length]:.1f}"}
        row |= {"n": split["n"], "x100": main, "score": f"{100 * split['metrics'][main]:.1f}"}
        row |= {metric: f"{100 * split['metrics'][metric]:.1f}" for metric in others}
        for floor in ("chance", "word_tfidf", "token_idf", "untrained"):
            row[floor] = f"{100 * split['floors'][floor][main]:.1f}" if floor in split["floors"] else ""
        rows.append(row | {"over best floor": f"{interval(best)} {best['floor']}"})
    return rows


@optional_picture
def draw_depth(records: list[dict], path: Path) -> Path | None:
    """Accuracy by length (rows) and depth (columns) of each control."""
    maps = {}
    for record in records:
        splits = record["splits"].values()
        if record["task"] in CONTROLS and all(None not in split.get("by_depth", [None]) for split in splits):
            maps[record["task"]] = [split["by_depth"] for split in splits]
    labels = {"xlabel": "depth", "ylabel": "length"}
    return heatmaps(maps, path, (0, 1), "viridis", "accuracy", **labels) if maps else None


def main(argv) -> int:
    config = parse(argv, LongConfig, prog="eval_long.py", doc=__doc__, root=ROOT, positional=False).make(LongConfig)
    if is_reference(config.run):
        raise UserError(f"{config.run} is a Hugging Face encoder; give a run folder of train.py, or of export.py")
    run, records, folder = config.load(), [], Path(config.run) / "eval"
    shape = run.model.config
    if config.merge == "perceiver" and (shape.encoder, shape.merge) != ("chunked", "perceiver"):
        raise UserError(
            f"{config.run} has no perceiver that merges chunks; train.py --encoder=chunked --merge=perceiver"
        )
    with locked(folder, "evaluate a copy of the run folder"):
        for name in config.names:
            made = reconstruct(run, config) if name == RECONSTRUCTION else evaluate_task(run, config, name)
            records.append(made)
            write_atomic(long_path(config.run, name), json.dumps(made, indent=1) + "\n")
        draw_depth(records, folder / "long_depth.png")
    print(f"{run.config['run_id']}, ckpt_{run.step}, merge={config.merge}\n")
    tables = [row for record in records if record["task"] != RECONSTRUCTION for row in rows_of(record)]
    kept = [row for record in records if record["task"] == RECONSTRUCTION for row in rate_rows(record["splits"])]
    print("\n\n".join(dict_table(rows) for rows in (tables, kept) if rows))
    return 0


if __name__ == "__main__":
    command.command(main)

"""
Compares arms at several seeds: trains and judges each run of a grid, then prints one table of medians and spread.

    python compare.py config/grids/smoke.py
    python compare.py config/grids/first.py --data=DIR     # DIR holds the files of the tasks
    python compare.py --registry                           # every run folder below out/, in two tables

A grid is a config file: `base` (what is trained), `arms = {"name": {"key": value}}`, `seeds`, `tasks` (of eval_glue.py,
zero-shot; "" for none), and any key of training, for all arms. Its runs are out/compare/GRID/ARM_sSEED, one after
another as processes of train.py and eval_glue.py. What is done is skipped: the same command continues a killed grid.
"""

import ast
import fcntl
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from lab import command, dataset, files, tasks
from lab.command import say
from lab.configurator import UserError, evaluate_safely, nearest, parse, read_layers, show
from lab.files import write_atomic
from lab.registry import HORIZONS, primaries, registry
from lab.report import table
from lab.runs import RunFolder
from objectives import ObjectiveConfig

ROOT = Path(__file__).resolve().parent


@dataclass
class CompareConfig:
    out: Annotated[str, "folder of the runs: a grid's are in OUT/compare/GRID"] = "out"
    data: Annotated[str, "folder of the task files, in their original layout"] = "data/glue"
    data_dir: Annotated[str, "where the prepared data are; empty: data/ beside this script, or what the grid says"] = ""
    registry: Annotated[bool, "no grid: list every run and evaluation below OUT, also as OUT/registry_*.csv"] = False


# ---------------------------------------------------------------------------------------------------------------------
# The grid file


GRID_KEYS = ("arms", "seeds", "tasks")
OURS = {  # keys of training that a grid cannot set
    "seed": "write seeds = (0, 1)",
    "out_dir": "the runs are OUT/compare/GRID/ARM_sSEED",
    "resume": "what is there goes on",
    "print_config": "use train.py for that",
}


@dataclass
class Grid:
    name: str
    base: Path  # the config that train.py is given; all else are flags
    arms: dict[str, dict]  # name -> key -> value, those for all arms included
    places: dict[str, dict]  # name -> key -> "file:line"
    where: str  # "file:line" of the arms
    seeds: tuple[int, ...]
    tasks: list[str]
    tasks_where: str

    def runs(self) -> list[tuple[str, str, int]]:
        """(run, arm, seed); all arms at the first seed come first, so that a grid half done is a comparison too."""
        return [(f"{arm}_s{seed}", arm, seed) for seed in self.seeds for arm in self.arms]


def merge(*layers: dict) -> dict:
    """Later layers win; of the horizons only the latest is left."""
    merged = {}
    for layer in layers:
        if layer.keys() & set(HORIZONS):
            merged = {key: value for key, value in merged.items() if key not in HORIZONS}
        merged |= layer
    return merged


def assigned(path: Path, name: str) -> ast.expr | None:
    """What a config file, which has been read without a mistake, assigns to `name` in the end."""
    assignments = [statement for statement in ast.parse(path.read_bytes()).body if isinstance(statement, ast.Assign)]
    return next((a.value for a in reversed(assignments) if a.targets[0].id == name), None)


def base_of(path: Path) -> Path | None:
    base = assigned(path, "base")
    return base and ROOT / evaluate_safely(base, {})


def arm_places(where: str) -> dict[tuple[str, str], str]:
    """(arm, key) -> "file:line", as far as `arms`, which stands at `where`, is written out."""
    path = where.rpartition(":")[0]
    value, found = assigned(Path(path), "arms"), {}
    for name, arm in zip(value.keys, value.values, strict=True) if isinstance(value, ast.Dict) else ():
        for key in arm.keys if isinstance(arm, ast.Dict) else ():
            found[getattr(name, "value", None), getattr(key, "value", None)] = f"{path}:{key.lineno}"
    return found


def read_grid(path: Path) -> Grid:
    """A grid file -> Grid. Keys of training are looked at later, by train.py."""
    layers = read_layers(path, ROOT)
    first = next((i for i, layer in enumerate(layers) if layer.keys() & set(GRID_KEYS)), len(layers) - 1)
    given = {name: entry for name, entry in merge(*layers[first:]).items() if not name.startswith("_")}
    base = path
    for _ in layers[first:]:  # a grid may stand on another
        base = base and base_of(base)
    if base is None:
        raise UserError(f'{show(path)} has no base; write base = "config/quickstart.py" or so into its first line')
    if "arms" not in given:
        raise UserError(f'{show(path)} has no arms; write arms = {{"name": {{"key": value}}, ...}}')

    arms, where = given.pop("arms")
    written = arm_places(where)
    if not isinstance(arms, dict) or not arms or not all(isinstance(arm, dict) for arm in arms.values()):
        raise UserError(f'{where}: arms is not a dict of dicts; write arms = {{"name": {{"key": value}}, ...}}')
    for name in arms:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(f"{where}: arm {name!r} cannot name a folder; use letters, digits, _ . + and -")

    seeds, place = given.pop("seeds", ((0,), where))
    seeds = tuple(seeds) if isinstance(seeds, tuple | list) else (seeds,)
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{place}: seeds = {seeds} are not different whole numbers; write seeds = (0, 1)")

    wanted, tasks_where = given.pop("tasks", ("", where))
    wanted = wanted.split(",") if isinstance(wanted, str) else wanted
    if not isinstance(wanted, tuple | list) or not all(isinstance(name, str) for name in wanted):
        raise UserError(f'{tasks_where}: tasks is no text; write tasks = "stsb,sick_r"')
    wanted = [name.strip() for name in wanted if name.strip()]

    common = {key: value for key, (value, _) in given.items()}
    places = {key: place for key, (_, place) in given.items()}
    return Grid(
        path.stem,
        base,
        {name: merge(common, arm) for name, arm in arms.items()},
        {name: places | {key: written.get((name, key), where) for key in arm} for name, arm in arms.items()},
        where,
        seeds,
        wanted,
        tasks_where,
    )


def flag(key: str, value) -> str:
    text = ",".join(str(item) for item in value) if isinstance(value, tuple | list) else str(value)
    return f"--{key}={text}"


def train_arguments(grid: Grid, arm: str, config: CompareConfig) -> list[str]:
    flags = [flag(key, value) for key, value in grid.arms[arm].items()]
    return [str(grid.base), *flags] + ([f"--data_dir={config.data_dir}"] if config.data_dir else [])


# ---------------------------------------------------------------------------------------------------------------------
# Processes


class Children:
    """Runs one process at a time. Ctrl-C and SIGTERM are passed on to it: it saves and ends, and then so do we."""

    def __init__(self):
        self.received, self.child = 0, None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number, frame):
        self.received = self.received or number
        if self.child:
            self.child.send_signal(number)

    def run(self, words: list[str], **options) -> tuple[int, str]:
        """Python with these words -> (exit code, standard output if it was asked for)."""
        text = ""
        if not self.received:
            with subprocess.Popen([sys.executable, *words], text=True, **options) as self.child:
                if self.received:  # it came while the process was being made
                    self.child.send_signal(self.received)
                text, _ = self.child.communicate()
            code, self.child = self.child.returncode, None
        return (128 + self.received if self.received else code), text


# train.py as a process of its own that looks at all arms: torch is imported once, not once an arm.
CHECK = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
import configurator, train
keys = [k for g in (train.TrainConfig, train.ObjectiveConfig, train.ModelConfig) for k in configurator.fields_of(g)]
answers = {}
for arm, words in json.loads(sys.argv[2]).items():
    try:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            train.main([*words, "--print_config"])
        answers[arm] = {"config": json.loads(text.getvalue())}
    except configurator.UserError as error:
        answers[arm] = {"error": str(error)}
print(json.dumps([keys, answers]))
"""


def check_arms(grid: Grid, config: CompareConfig, children: Children) -> dict[str, dict] | None:
    """
    All that can be said of the arms before the first one starts: arm -> every key of training, as train.py resolves
    it; None after a signal. Raises UserError, with the place in the grid, for unknown keys and impossible values.
    """
    for arm, keys in grid.arms.items():
        for key in keys.keys() & OURS.keys():
            raise UserError(f"{grid.places[arm][key]}: {key} is set by compare.py; {OURS[key]}")
    words = {arm: train_arguments(grid, arm, config) for arm in grid.arms}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}  # its warnings come again when an arm is trained
    code, text = children.run(["-c", CHECK, str(ROOT), json.dumps(words)], **pipes)
    if children.received:
        return None
    if code:
        raise RuntimeError("train.py fails when asked about the arms; look at python train.py --help")
    keys, answers = json.loads(text)
    keys = set(keys)
    for arm in grid.arms:
        for key in grid.arms[arm]:
            if key not in keys:
                near = nearest(str(key), [*sorted(keys - OURS.keys()), *GRID_KEYS])
                hint = f"did you mean {near}? " if near else ""
                raise UserError(
                    f"{grid.places[arm][key]}: unknown key {key}; {hint}python train.py --help lists the keys of arms"
                )
    for arm, answer in answers.items():
        if "error" in answer:
            raise UserError(placed(answer["error"], grid, arm))
    return {arm: answer["config"] for arm, answer in answers.items()}


def placed(sentence: str, grid: Grid, arm: str) -> str:
    """What train.py said of a flag, as it is said of the place where the grid has it."""
    for key, place in grid.places[arm].items():
        written = f"{flag(key, grid.arms[arm][key])}: "
        if sentence.startswith(written):
            return f"{place}: arm {arm}: {sentence.removeprefix(written)}"
    return f"{grid.where}: arm {arm}: {sentence}"


def check_data(grid: Grid, resolved: dict[str, dict]):
    """Each arm has its data; those of pydocs are made by train.py where they are missing."""
    for arm, values in resolved.items():
        folder = Path(values["data_dir"] or ROOT / "data") / values["dataset"]
        if values["dataset"] == "pydocs" and not (folder / "meta.json").is_file():
            continue
        size = dataset.load_meta(folder)["vocab_size"]
        if values["vocab_size"] != size:
            raise UserError(
                f"{grid.where}: arm {arm} has vocab_size = {values['vocab_size']}, but {show(folder)} has {size}; "
                "write vocab_size = 0 to take its own"
            )


def check_tasks(grid: Grid, data: Path) -> list[str]:
    """Names of the grid's tasks, whose files have all been read once."""
    try:
        names = tasks.task_names(grid.tasks, data)
        for name in names:
            if not tasks.TASKS[name].zero_shot and name in grid.tasks:
                able = ", ".join(n for n, task in tasks.TASKS.items() if task.zero_shot)
                raise UserError(f"{name} has no zero-shot score; take of {able}")
        names = [name for name in names if tasks.TASKS[name].zero_shot]
        for name in names:
            tasks.load_task(name, data)
    except UserError as error:
        raise UserError(f"{grid.tasks_where}: {error}") from None
    return names


# ---------------------------------------------------------------------------------------------------------------------
# The runs of a grid


DERIVED = {"parameters", "train_flops_per_token", "tokens_per_step", "shapes", "vocab_size", "out_dir", "seed"}


class Comparison:
    """The folder of a grid: its runs, and results.json, which also remembers what is done."""

    def __init__(self, grid: Grid, config: CompareConfig, data: Path, children: Children):
        self.grid, self.config, self.data, self.children = grid, config, data, children
        self.folder = Path(config.out) / "compare" / grid.name
        self.names = check_tasks(grid, data)
        self.resolved = check_arms(grid, config, children)
        if self.resolved is None:
            return
        check_data(grid, self.resolved)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.folder / ".lock", "w")  # closed with us and with the last of our processes
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror}); give another --out") from None
        try:
            self.trained = dict(json.loads((self.folder / "results.json").read_text(encoding="utf-8"))["trained"])
        except (OSError, ValueError, KeyError, TypeError):  # nothing there, or damaged: train.py finds out what is done
            self.trained = {}
        self.runs, self.failed = {}, {}

    def wait_for_lock(self) -> bool:
        """
        A compare.py that was killed outright may have left a process that still trains; two would spoil the run. False
        after a signal.
        """
        waited = False
        while not self.children.received:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if not waited:
                    say(f"{self.folder} is in use, perhaps by a run of a killed compare.py; waiting for its end")
                waited = True
                time.sleep(0.2)
        return False

    def start(self, *words) -> int:
        """A command of ours; what it prints is progress here, and goes to standard error."""
        code, _ = self.children.run([str(word) for word in words], stdout=2, pass_fds=[self.lock.fileno()])
        return code

    def do(self, run: str, arm: str, seed: int) -> int:
        """Trains and judges one run as far as that is not done; returns the exit code of what failed, or 0."""
        out = RunFolder(self.folder / run)
        wanted = {key: value for key, value in self.resolved[arm].items() if key not in DERIVED}
        if not out.exists() or self.trained.get(run) != [wanted, out.pointer("latest")]:
            say(f"{run}: training")
            words = [*train_arguments(self.grid, arm, self.config), f"--seed={seed}", f"--out_dir={out.path}"]
            if code := self.start(ROOT / "train.py", *words, "--resume=auto"):
                return code
            self.trained[run] = [wanted, out.pointer("latest")]
            self.write()
        missing = [name for name in self.names if not judged(out, name)]
        if missing:
            say(f"{run}: {', '.join(missing)}")
            words = [f"--run={out.path}", f"--tasks={','.join(missing)}", f"--data={self.data}"]
            if code := self.start(ROOT / "eval_glue.py", *words, f"--device={wanted['device']}"):
                return code
        self.runs[run] = {"arm": arm, "seed": seed} | collect(out, self.names)
        self.write()
        return 0

    def write(self) -> str:
        """results.json and report.md of what is done so far; returns the table."""
        arms = {}
        for arm, keys in self.grid.arms.items():
            arms[arm] = {"keys": keys} | summary([run for run in self.runs.values() if run["arm"] == arm])
        results = {"grid": self.grid.name, "base": show(self.grid.base), "seeds": self.grid.seeds, "tasks": self.names}
        results |= {"arms": arms, "runs": self.runs, "failed": self.failed, "trained": self.trained}
        text = f"{arm_table(results)}\n\n{notes(results, self.resolved)}"
        scores = f"\n## Scores beside their floors\n\n{score_table(results)}\n" if self.names else ""
        try:
            write_atomic(self.folder / "results.json", json.dumps(results, indent=1) + "\n")
            write_atomic(self.folder / "report.md", f"# {self.grid.name}\n\n{text}\n{scores}")
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror}); free it and start again") from None
        return text


def judged(out: RunFolder, name: str) -> bool:
    """The latest checkpoint has its scores in eval/, with all that the tables show."""
    try:
        record = files.read_json(out.path / "eval" / f"zero_shot_{name}.json", "an evaluation")
        if not all("token_idf" in split["lift"] for split in record["splits"].values()):
            return False
        return [record["run_id"], record["checkpoint"]] == [out.config()["run_id"], f"ckpt_{out.pointer('latest')}"]
    except (UserError, KeyError, TypeError):
        return False


def collect(out: RunFolder, names: list[str]) -> dict:
    """What a finished run says of itself; all that is a number stands flat in `numbers`."""
    config, metrics = out.config(), out.metrics()
    state = files.read_json(out.checkpoint("latest", ("state.json",)) / "state.json", "the state of training")
    evaluations = [record for record in metrics if "val_loss" in record]
    if not evaluations:
        raise UserError(f"{out.path}/metrics.jsonl has no evaluation; delete the folder to train the run anew")
    first, last = evaluations[0], evaluations[-1]
    numbers = {key: value for key, value in last.items() if isinstance(value, int | float) and key != "step"}
    if first["step"] == 0:
        numbers |= {f"{key}@0": first[key] for key in ("rank_slot_centred", "input_share")}
    numbers |= {"tokens": state["tokens"], "parameters": config["parameters"]}
    numbers["tokens_per_s"] = statistics.median(r["tokens_per_s"] for r in metrics if "tokens_per_s" in r)
    judged = {}
    for name in names:
        record = files.read_json(out.path / "eval" / f"zero_shot_{name}.json", "an evaluation")
        judged[name] = record["splits"]
        for split, found in record["splits"].items():
            numbers |= {f"{name}_{split}_{metric}": value for metric, value in found["metrics"].items()}
            untrained = found["floors"]["untrained"].items()
            numbers |= {f"{name}_{split}_untrained_{metric}": value for metric, value in untrained}
    return {
        "folder": str(out.path),
        "run_id": config["run_id"],
        "commit": config["commit"],
        "step": state["step"],
        "verdict": last.get("verdict"),
        "numbers": numbers,
        "tasks": judged,
    }


def summary(runs: list[dict]) -> dict[str, dict]:
    """Median, min and max over runs of each number that any of them has."""
    values = {}
    for run in runs:
        for key, value in run["numbers"].items():
            values.setdefault(key, []).append(value)
    return {
        "runs": len(runs),
        "median": {key: statistics.median(found) for key, found in values.items()},
        "min": {key: min(found) for key, found in values.items()},
        "max": {key: max(found) for key, found in values.items()},
    }


# ---------------------------------------------------------------------------------------------------------------------
# Its tables


COLUMNS = (  # title, key of `numbers`, format, scale
    ("Mtokens", "tokens", ".2f", 1e-6),
    ("val loss", "val_loss", ".3f", 1),
    ("slot rank", "rank_slot_centred", ".2f", 1),
    ("raw rank", "rank_raw", ".2f", 1),
    ("pooled rank", "rank_pooled", ".2f", 1),
    ("input share", "input_share", ".3f", 1),
    ("dead slots", "dead_slots", "g", 1),
    ("Δshuffle", "delta_shuffle", ".2f", 1),
    ("slot rank@0", "rank_slot_centred@0", ".2f", 1),
    ("share@0", "input_share@0", ".3f", 1),
)


def spread(arm: dict, key: str, form: str, scale: float) -> str:
    """An arm's median, and its range where the seeds differ."""
    if key not in arm["median"]:
        return "-"
    middle, low, high = (format(arm[which][key] * scale, form) for which in ("median", "min", "max"))
    return middle if low == high else f"{middle} ({low}..{high})"


def arm_table(results: dict) -> str:
    """One row an arm: losses, geometry, and what each task says."""
    known = {key for arm in results["arms"].values() for key in arm["median"]}
    lengths = sorted((key for key in known if re.fullmatch(r"val_loss_\d+", key)), key=lambda key: int(key[9:]))
    losses = [(f"loss, {key[9:]}", key, ".3f", 1) for key in lengths if len(lengths) > 1]
    losses += [("loss, mlm 15 %", "val_loss_mlm15", ".3f", 1)] if "val_loss_mlm15" in known else []
    rows = []
    for name, arm in results["arms"].items():
        row = {"arm": name, "seeds": str(arm["runs"])}
        row |= {title: spread(arm, *column) for title, *column in (*COLUMNS[:2], *losses, *COLUMNS[2:])}
        for task in results["tasks"]:
            row |= task_cells(results, name, task)
        rows.append(row)
    return table(list(rows[0]), [list(row.values()) for row in rows])


def task_cells(results: dict, arm: str, task: str) -> dict[str, str]:
    """Title -> cell: raw and centred score, best floor and lift of the last of them; on dev where dev has labels."""
    splits = [run["tasks"][task] for run in results["runs"].values() if run["arm"] == arm]
    split = "dev" if not splits or "dev" in splits[0] else next(iter(splits[0]))
    metrics = primaries(task)
    scores = [score_cells(results["arms"][arm], [found[split] for found in splits], task, split, m) for m in metrics]
    return {
        **{task + m.removeprefix(metrics[0]).replace("_", " "): s[0] for m, s in zip(metrics, scores, strict=True)},
        f"{task} best floor": scores[-1][1],
        f"{task} over it": scores[-1][2],
        f"{task} untrained": " / ".join(score[3] for score in scores),
        f"{task} lift": scores[-1][4],
        f"{task} over token_idf": scores[-1][5],
    }


def score_cells(arm: dict, runs: list[dict], task: str, split: str, metric: str) -> list[str]:
    """Score, best floor, how far over it, untrained twin, how far over that and over token_idf; x100. runs: this split,
    of each seed."""
    if not runs:
        return ["-"] * 6
    lifts = [run["lift_centred" if metric.endswith("_centred") else "lift"] for run in runs]
    floor = lifts[0]["best_floor"]["floor"]
    return [
        spread(arm, f"{task}_{split}_{metric}", ".1f", 100),
        f"{100 * runs[0]['floors'][floor][metric]:.1f} {floor}",
        widest([lift["best_floor"] for lift in lifts]),
        spread(arm, f"{task}_{split}_untrained_{metric}", ".1f", 100),
        widest([lift["untrained"] for lift in lifts]),
        widest([lift["token_idf"] for lift in lifts]),
    ]


def widest(lifts: list[dict]) -> str:
    """Median over seeds and the widest of their intervals: an arm is above what all of its seeds are above."""
    value = statistics.median(lift["value"] for lift in lifts)
    low, high = min(lift["low"] for lift in lifts), max(lift["high"] for lift in lifts)
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def score_table(results: dict) -> str:
    """One row an arm, task, split and metric."""
    rows = []
    for arm, found in results["arms"].items():
        for task in results["tasks"]:
            runs = [run["tasks"][task] for run in results["runs"].values() if run["arm"] == arm]
            for split in runs[0] if runs else ():
                for metric in primaries(task):
                    cells = score_cells(found, [run[split] for run in runs], task, split, metric)
                    rows.append([arm, task, split, metric.replace("_", " "), *cells])
    header = "arm,task,split,metric,score,best floor,over it,untrained,over untrained,over token_idf"
    return table(header.split(","), rows)


def notes(results: dict, resolved: dict[str, dict]) -> str:
    """What a reader of the table must know."""
    lines = ["Medians over seeds (min..max); @0: before training; Δshuffle: nats lost with another row's concepts."]
    if results["tasks"]:
        lines += ["Scores x100 on dev; untrained: the same architecture and init, raw / centred; lift: over untrained,"]
        lines += ["centred where there is a centred score, with the widest 95 % interval of the seeds."]
    keys = [field.name for field in fields(ObjectiveConfig)] + ["lengths", "dataset"]
    if len({json.dumps([values[key] for key in keys]) for values in resolved.values()}) > 1:
        lines.append("The arms differ in objective, noise or rows: their losses do not compare, their scores do.")
    commits = sorted({str(run["commit"]) for run in results["runs"].values()})
    if len(commits) > 1:
        lines.append(f"Trained at different commits ({', '.join(commits)}): compare with care.")
    if results["failed"]:
        lines.append(f"Failed: {', '.join(f'{run} (exit {code})' for run, code in results['failed'].items())}.")
    return "\n".join(lines)


def compare(path: Path, config: CompareConfig, data: Path) -> int:
    """Runs a grid; returns the exit code."""
    children = Children()
    comparison = Comparison(read_grid(path), config, data, children)
    if children.received:
        return 128 + children.received
    with comparison.lock:
        return run_all(comparison)


def run_all(comparison: Comparison) -> int:
    if not comparison.wait_for_lock():
        return 128 + comparison.children.received
    runs = comparison.grid.runs()
    for number, (run, arm, seed) in enumerate(runs, 1):
        say(f"[{number}/{len(runs)}] {comparison.folder / run}")
        code = comparison.do(run, arm, seed)
        if code in (2, 130, 143):  # a mistake that needs its user, or a stop
            say(f"compare.py ends with {run}; what is done is kept, the same command goes on")
            return code
        if code:
            say(f"{run} failed with exit code {code}; the others go on")
            comparison.failed[run] = code
    print(comparison.write())
    say(f"{comparison.folder}: results.json, report.md")
    return 1 if comparison.failed else 0


def main(argv) -> int:
    parsed = parse(argv, CompareConfig, prog="compare.py", doc=__doc__, root=ROOT, positional="many")
    config = parsed.make(CompareConfig)
    if config.registry:
        if parsed.configs:
            raise UserError(f"--registry takes no grid; leave out {parsed.configs[0]}")
        return registry(Path(config.out))
    if len(parsed.configs) != 1:
        raise UserError("give one grid, or --registry; try: python compare.py config/grids/smoke.py")
    data = Path(config.data) if "data" in parsed.given else ROOT / "data" / "glue"
    return compare(parsed.configs[0], config, data)


if __name__ == "__main__":
    command.command(main)

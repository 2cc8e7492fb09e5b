"""
Compares arms over several seeds: trains and evaluates each run of a grid, then writes tables and a page.

    python compare.py config/grids/smoke.py
    python compare.py config/grids/first.py --data=DIR     # DIR holds the files of the tasks
    python compare.py --registry                           # every run folder below out/: two tables, OUT/registry.html

A grid is a config file: `base` (what is trained), `arms = {"name": {"key": value}}`, `seeds`, `tasks` (of eval_glue.py,
zero-shot; "" for none), `long = {"tasks": "halves,controls"}` (flags of eval_long.py; {} for none), and any key of
training, for all arms. Its runs are out/compare/GRID/ARM_sSEED, trained and evaluated one after another by train.py,
eval_glue.py and eval_long.py; with several GPUs one run per GPU at a time. Finished runs are skipped: the same command
continues a killed grid.

After each run its folder is updated: report.html (one file, the result first), its pictures *.png (differences, then
scores, geometry and losses against FLOPs and seconds), report.md (the tables that are printed at the end) and
results.json. They show medians over seeds with their range, scores beside their floors, and for each arm the paired
difference to the first arm on dev: "better", "worse" or "undecided" by a bootstrap over the rows.
"""

from lab import command  # isort: skip  (first: it tells an older Python)
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from lab.command import CODES, STOPS, log, on_stop, optional
from lab.configurator import PathStr, UserError, parse, read_layers, show
from lab.data.corpus import load_meta
from lab.evaluation import floors
from lab.evaluation.order import Order
from lab.evaluation.scores import load_arrays
from lab.evaluation.tasks import Pairs, load_task, task_names
from lab.files import locked, read_json
from lab.grids import summary as grids
from lab.grids.registry import registry, run_numbers
from lab.training.plan import HORIZONS
from lab.training.run_folder import RunFolder, completed

ROOT = Path(__file__).resolve().parent


@dataclass
class CompareConfig:
    out: Annotated[PathStr, "folder of the runs: a grid's are in OUT/compare/GRID"] = "out"
    data: Annotated[PathStr, "folder of the task files, as published or of data/glue/prepare.py"] = "data/glue"
    data_dir: Annotated[
        PathStr, "where the prepared data are; empty: data/ beside this script, or what the grid says"
    ] = ""
    registry: Annotated[bool, "no grid: list every run and evaluation below OUT, also as OUT/registry*"] = False


# ---------------------------------------------------------------------------------------------------------------------
# The grid file

GRID_KEYS = ("arms", "seeds", "tasks", "long")
OURS = ("seed", "out_dir", "resume", "print_config")  # keys of training that a grid cannot set


@dataclass
class Grid:
    name: str
    base: str  # the config for train.py; everything else is passed as flags
    arms: dict[str, dict]  # name -> key -> value, including those for all arms
    where: str  # "file:line" of the arms
    seeds: tuple[int, ...]
    tasks: list[str]
    tasks_where: str
    long: list[str]  # flags of eval_long.py
    long_where: str

    def runs(self) -> list[tuple[str, str, int]]:
        """(run, arm, seed), all arms of the first seed first, so that an unfinished grid is a comparison already."""
        return [(f"{arm}_s{seed}", arm, seed) for seed in self.seeds for arm in self.arms]

    def arguments(self, arm: str, data_dir: str) -> list[str]:
        """The command line of train.py for an arm."""
        return [self.base, *flags(self.arms[arm] | ({"data_dir": data_dir} if data_dir else {}))]


def flags(values: dict) -> list[str]:
    texts = {k: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for k, v in values.items()}
    return [f"--{key}={text}" for key, text in texts.items()]


def merge(*layers: dict) -> dict:
    """Merges layers, later ones win; a later horizon replaces an earlier one."""
    merged = {}
    for layer in layers:
        if layer.keys() & set(HORIZONS):
            merged = {key: value for key, value in merged.items() if key not in HORIZONS}
        merged |= layer
    return merged


def read_grid(path: Path) -> Grid:
    """A grid file -> Grid. Its base may be another grid. Keys of training are checked later."""
    layers = [layer for layer in read_layers(path, ROOT) if layer]
    first = next((i for i, layer in enumerate(layers) if layer.keys() & set(GRID_KEYS)), len(layers))
    given = {name: entry for name, entry in merge(*layers[first:]).items() if not name.startswith("_")}
    if first == 0:
        raise UserError(f'{show(path)} has no base; write base = "config/quickstart.py" or so into its first line')
    _, place = next(iter(layers[first - 1].values()))
    base = place.rpartition(":")[0]

    arms, where = given.pop("arms", ({}, show(path)))
    if not isinstance(arms, dict) or not arms or not all(isinstance(arm, dict) for arm in arms.values()):
        raise UserError(f'{where}: arms is not a dict of dicts; write arms = {{"name": {{"key": value}}, ...}}')
    for name in arms:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(f"{where}: arm {name!r} cannot name a folder; use letters, digits, _ . + and -")

    seeds, place = given.pop("seeds", ((0,), where))
    seeds = seeds if isinstance(seeds, tuple) else (seeds,)
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{place}: seeds = {seeds} are not different whole numbers; write seeds = (0, 1)")

    names, place = given.pop("tasks", ("", where))
    if not isinstance(names, str):
        raise UserError(f'{place}: tasks = {names} is no text; write tasks = "stsb,sick_r"')
    names = [name.strip() for name in names.split(",") if name.strip()]
    long, long_where = given.pop("long", ({}, where))
    if not isinstance(long, dict) or not all(isinstance(key, str) for key in long) or {"run", "data"} & long.keys():
        raise UserError(
            f'{long_where}: long = {long} has no flags of eval_long.py; write long = {{"tasks": "controls"}}'
        )
    common = {key: value for key, (value, _) in given.items()}
    arms = {name: merge(common, arm) for name, arm in arms.items()}
    return Grid(path.stem, base, arms, where, seeds, names, place, flags(long), long_where)


# ---------------------------------------------------------------------------------------------------------------------
# Checks before the first run starts


def check_arms(grid: Grid, data_dir: str) -> dict[str, dict]:
    """Arm -> every key of training as train.py resolves it; UserError for an arm that train.py would refuse."""
    from train import read_settings  # late: `--help` and the registry do without

    resolved = {}
    for arm, keys in grid.arms.items():
        try:
            if ours := [key for key in OURS if key in keys]:
                raise UserError(f"{ours[0]} is set by compare.py; write seeds = (0, 1), and leave {ours[0]} out")
            with redirect_stderr(io.StringIO()):  # its warnings come again when the arm is trained
                settings = read_settings(grid.arguments(arm, data_dir))
                resolved[arm] = settings.resolved()
            if settings.train.dataset != "pydocs" or (settings.data / "meta.json").is_file():  # train.py makes pydocs
                size = load_meta(settings.data)["vocab_size"]
                if settings.model.vocab_size != size:
                    raise UserError(
                        f"vocab_size = {settings.model.vocab_size}, but {show(settings.data)} has {size}; "
                        "write vocab_size = 0 to take its own"
                    )
        except UserError as error:
            raise UserError(f"{grid.where}: arm {arm}: {error}") from None
    return resolved


def check_tasks(grid: Grid, data: Path) -> dict[str, str]:
    """Task -> current version of its records; reads the files of all tasks, UserError if one is wrong."""
    try:
        names = task_names(grid.tasks, data, zero_shot=True)
        rows = {name: Order if name == "order" else Pairs(name, load_task(name, data)) for name in names}
        return {name: floors.version(pairs) for name, pairs in rows.items()}
    except UserError as error:
        raise UserError(f"{grid.tasks_where}: {error}") from None


def check_long(grid: Grid, data: str):
    """What eval_long.py will do for each run, as its LongConfig; None without `long`. UserError where it would refuse
    the flags."""
    if not grid.long:
        return None
    from eval_long import LongConfig  # late, as above

    words = [f"--run={grid.name}", *grid.long, *([f"--data={data}"] if data else [])]
    try:
        return parse(words, LongConfig, prog="eval_long.py", doc="", root=ROOT, positional=False).make(LongConfig)
    except UserError as error:
        raise UserError(f"{grid.long_where}: long: {error}") from None


# ---------------------------------------------------------------------------------------------------------------------
# The runs of a grid


def devices(resolved: dict[str, dict]) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each run that may run at the same time; [""]: one run at a time, on any device."""
    count = torch.cuda.device_count()
    if count < 2 or any(keys["device"] == "cpu" for keys in resolved.values()):
        return [""]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")  # counted already
    return given.split(",")[:count] if given else [str(i) for i in range(count)]


class Children:
    """Runs child processes. SIGINT, SIGTERM and the like are passed on to all of them: they save and exit, then we
    do."""

    def __init__(self):
        self.received, self.alive = 0, []
        on_stop(self.handle)

    def handle(self, number, frame):
        self.received = self.received or number
        for child in list(self.alive):
            child.send_signal(number)

    def run(self, words, **options) -> int:
        """Runs Python with these arguments -> exit code. Thread-safe."""
        if not self.received:
            with subprocess.Popen([sys.executable, *words], **options) as child:
                self.alive.append(child)
                if self.received:  # a signal came while the process was started
                    child.send_signal(self.received)
                code = child.wait()
            self.alive.remove(child)
        return 128 + self.received if self.received else code


DERIVED = {"parameters", "train_flops_per_token", "tokens_per_step", "shapes", "vocab_size", "out_dir", "seed"}


class Comparison:
    """The folder of a grid: its runs, and results.json, which also records what is finished."""

    def __init__(self, grid: Grid, config: CompareConfig, data: Path, data_given: bool):
        self.grid, self.config, self.data = grid, config, data
        self.folder = Path(config.out) / "compare" / grid.name
        self.resolved = check_arms(grid, config.data_dir)
        self.names, self.long = check_tasks(grid, data), check_long(grid, config.data if data_given else "")
        self.runs, self.failed, self.trained = {}, {}, {}
        self.children, self.results_lock = Children(), threading.Lock()
        self.ended = 0  # exit code; if not 0, no further run is started
        self.text = ""  # the report, "" if it is outdated

    def start(self, device: str, *words) -> dict | None:
        """Runs one of our commands with its output on standard error -> None, or {"code", "reason"} of a failure."""
        with tempfile.TemporaryDirectory() as folder:
            said = Path(folder) / "reason"
            environ = os.environ | ({"CUDA_VISIBLE_DEVICES": device} if device else {})
            environ["NANOCONCEPT_REASON"] = str(said)
            code = self.children.run(words, stdout=2, env=environ)
            reason = said.read_text(encoding="utf-8") if said.is_file() else ""
        if code < 0 and not reason:
            name = signal.Signals(-code).name
            reason = f"killed by {name}{', as where memory is short' if name == 'SIGKILL' else ''}"
        return {"code": code, "reason": reason} if code else None

    def do(self, run: str, arm: str, seed: int, device: str) -> dict | None:
        """Trains and evaluates one run as far as that is not done yet; returns what `start` does."""
        out, new = RunFolder(self.folder / run), False
        wanted = {key: value for key, value in self.resolved[arm].items() if key not in DERIVED}
        if self.trained.get(run) != [wanted, out.pointer("latest")]:
            log(f"{run}: training")
            words = [*self.grid.arguments(arm, self.config.data_dir), f"--seed={seed}", f"--out_dir={out.path}"]
            if failure := self.start(device, ROOT / "train.py", *words, "--resume=auto"):
                return failure
            with self.results_lock:
                self.trained[run], new = [wanted, out.pointer("latest")], True
                grids.save(self.folder, self.results())
        missing = [name for name, version in self.names.items() if not is_evaluated(out, name, version)]
        if missing:
            log(f"{run}: {', '.join(missing)}")
            words = [f"--run={out.path}", f"--tasks={','.join(missing)}", f"--data={self.data}"]
            if failure := self.start(device, ROOT / "eval_glue.py", *words, f"--device={wanted['device']}"):
                return failure
        if left := [name for name in self.long.names if not self.long.is_done(out, name)] if self.long else []:
            log(f"{run}: {', '.join(left)}")
            words = [f"--run={out.path}", *self.grid.long, f"--tasks={','.join(left)}", f"--data={self.long.data}"]
            if failure := self.start(device, ROOT / "eval_long.py", *words, f"--device={wanted['device']}"):
                return failure
        with self.results_lock:  # and matplotlib draws in one thread at a time
            self.runs[run], self.text = (
                {"arm": arm, "seed": seed} | collect(out, self.names, self.long.names if self.long else ()),
                "",
            )
            if missing:
                out.draw_geometry()  # with what is known beyond words
            if new or missing:
                with optional("the report so far"):
                    self.text = self.write()
        return None

    def results(self) -> dict:
        """The content of results.json."""
        runs = {run: self.runs[run] for run, *_ in self.grid.runs() if run in self.runs}
        arms = {}
        for arm, keys in self.grid.arms.items():
            arms[arm] = {"keys": keys} | grids.summary([run for run in runs.values() if run["arm"] == arm])
        about = {"grid": self.grid.name, "base": show(self.grid.base), "seeds": self.grid.seeds, "tasks": [*self.names]}
        return about | {"arms": arms, "runs": runs, "failed": self.failed, "trained": self.trained}

    def write(self) -> str:
        """Writes all files for the runs so far; returns the report."""
        return grids.write(self.folder, self.results(), self.resolved, self.data)

    def work(self, device: str):
        """Takes runs from the queue and does them one after another."""
        for number, (run, arm, seed) in self.queue:
            if self.ended:
                return
            log(f"[{number}/{len(self.grid.runs())}] {self.folder / run}{device and f' on GPU {device}'}")
            try:
                self.note(run, self.do(run, arm, seed, device))
            except UserError as error:  # its folder is damaged
                self.note(run, {"code": 2, "reason": str(error)})
            except BaseException:
                self.ended = 1
                raise

    def note(self, run: str, failure: dict | None):
        """Records a failure: a stop by signal ends the grid; after any other the remaining runs go on."""
        if not failure:
            return
        code = failure["code"]
        if code in CODES or -code in STOPS:
            log(f"compare.py ends with {run}; what is done is kept, the same command goes on")
            self.ended = self.ended or (code if code > 0 else 128 - code)
            return
        log(f"{run} failed with exit code {code}; the others go on")
        with self.results_lock:
            self.failed[run], self.text = failure, ""
            grids.save(self.folder, self.results())

    def run_all(self) -> int:
        """Does all runs -> exit code. The caller holds the lock of the grid's folder; each run locks its own."""
        with suppress(LookupError, TypeError, ValueError):  # not there, or damaged: train.py sees what is done
            self.trained = dict(read_json(self.folder / "results.json", "the results")["trained"])
        self.queue, free = enumerate(self.grid.runs(), 1), devices(self.resolved)
        data = {keys["data_dir"] or ROOT / "data" for keys in self.resolved.values() if keys["dataset"] == "pydocs"}
        for folder in data if len(free) > 1 else ():  # once, before each of the first runs would make them
            if not (Path(folder) / "pydocs" / "meta.json").is_file():
                if failure := self.start("", ROOT / "data/pydocs/prepare.py", f"--data_dir={folder}"):
                    return failure["code"]
        with ThreadPoolExecutor(len(free)) as pool:  # signals come to this thread, which only waits
            list(pool.map(self.work, free))
        if self.ended:
            return self.ended
        print(self.text or self.write(), end="")
        log(f"{self.folder}: results.json, report.md, report.html and its pictures")
        return 1 if self.failed else 0


def evaluation(out: RunFolder, name: str) -> dict:
    return read_json(grids.record_path(out.path, name), "an evaluation")


def is_evaluated(out: RunFolder, name: str, version: str) -> bool:
    """Whether eval/ has scores and answers of the latest checkpoint, of this version."""
    with suppress(UserError, KeyError):
        record, config = evaluation(out, name), completed(out.config(), out.path)
        present = [config["run_id"], f"ckpt_{out.pointer('latest')}", version]
        found = [record[key] for key in ("run_id", "checkpoint", "version")]
        return found == present and bool(load_arrays(grids.record_path(out.path, name).with_suffix(".npz")))
    return False


def collect(out: RunFolder, names, long) -> dict:
    """The entry of a finished run in results.json; all numbers are in `numbers`, without nesting."""
    config, known = out.config(), run_numbers(out)
    if "val_loss" not in known:
        raise UserError(f"{out.path}/metrics.jsonl has no evaluation; delete the folder to train the run anew")
    numbers = {key: value for key, value in known.items() if isinstance(value, int | float)}
    numbers |= {key: config[key] for key in ("parameters", "spectral_seconds") if config.get(key)}
    splits = {name: evaluation(out, name)["splits"] for name in names}
    for name in names:
        for split, evaluated in splits[name].items():
            numbers |= {f"{name}_{split}_{metric}": value for metric, value in evaluated["metrics"].items()}
            untrained = evaluated["floors"]["untrained"].items()
            numbers |= {f"{name}_{split}_untrained_{metric}": value for metric, value in untrained}
    about = {"folder": str(out.path), "run_id": config["run_id"], "commit": config["commit"]}
    about |= {key: known.get(key) for key in ("step", "verdict", "learned")}
    long = {name: read_json(grids.long_path(out.path, name), "an evaluation")["splits"] for name in long}
    return about | {"numbers": numbers, "tasks": splits, "long": long}


def main(argv) -> int:
    parsed = parse(
        argv, CompareConfig, prog="compare.py", doc=__doc__, root=ROOT, positional="many", configs="config/grids"
    )
    config = parsed.make(CompareConfig)
    if len(parsed.configs) != (0 if config.registry else 1):
        raise UserError("give one grid, or --registry alone; try: python compare.py config/grids/smoke.py")
    if config.registry:
        return registry(Path(config.out))
    given = "data" in parsed.given
    data = Path(config.data) if given else ROOT / "data" / "glue"
    comparison = Comparison(read_grid(parsed.configs[0]), config, data, given)
    with locked(comparison.folder, "give another --out"):
        return comparison.run_all()


if __name__ == "__main__":
    command.command(main)

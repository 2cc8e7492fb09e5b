"""The run folder: config, metrics, checkpoints, and weights taken from other runs."""

import json
import math
import re
import shutil
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import geometry
from decoders import DECODERS
from encoders import ENCODERS
from lab import report
from lab.command import AT_EXIT, Failure, optional
from lab.configurator import REMOVED, RENAMED, UserError, fields_of, show, warn
from lab.files import locked, read_json, reading, replacing, sync, write_atomic
from model import AFTER_CONCEPTS, ConceptModel, ModelConfig
from objectives import ObjectiveConfig, recorded

ROOT = Path(__file__).resolve().parents[2]

# ---------------------------------------------------------------------------------------------------------------------
# the run folder


FILES = ("model.safetensors", "optim.pt", "state.json")
TOKEN_VECTORS, ROWS = "token_vectors.safetensors", "embed_rows.safetensors"

# Keys of training that may differ when a run goes on, besides its horizon; and those of them that end bit-exactness.
FREE = {"eval_interval", "ckpt_interval", "log_interval", "device", "resume", "out_dir", "data_dir", "tag"}
FREE |= {"keep", "ckpt_steps", "final_report", "wandb", "remove_directions", "whitening"}
INEXACT = {"micro_batch", "compile", "dtype", "machine", "ranks"}

# What commands read of a run besides its model, as it is where older code had no such key
OLDER = {"remove_directions": 0, "whitening": 0.0, "dataset": "pydocs", "data_dir": "", "tag": "", "frozen_decoder": ""}
OLDER |= {key: field.default for group in (ModelConfig, ObjectiveConfig) for key, field in fields_of(group).items()}


def completed(config: dict, path, defaults: dict = OLDER) -> dict:
    """The config of the run in `path`, with the defaults of the keys that it lacks: they reproduce what older code did,
    which had none of them. A warning names them."""
    absent = {key: value for key, value in defaults.items() if key not in config}
    if absent:
        what = ", ".join(f"{key} = {value!r}" for key, value in absent.items())
        warn(f"{show(path)}/config.json is of older code; what it lacks is taken to be {what}")
    return config | absent


def check_removed(config: dict, path):
    """UserError where a run's config has a key that is gone, at a value that makes a difference to its model."""
    for key in REMOVED.keys() & config.keys():
        what = f"{show(path)} is a run with {key}={config[key]!r}, which was removed ({REMOVED[key]})"
        raise UserError(f"{what}; take another run, or code of the run's own commit")


class RunFolder:
    """out/NAME: config.json, tokenizer.json, metrics.jsonl, ckpt_<step>/, `latest` and `best` naming one of them."""

    def __init__(self, path):
        self.path = Path(path)
        self.lock = ExitStack()  # what `look` locked; leave it to let that go
        self.run_id = None  # of the config that this process wrote
        self.saved = None  # the step whose folder this process wrote
        self.mirror = None

    def exists(self) -> bool:
        return any((self.path / name).exists() for name in ("config.json", "latest", "best"))

    def create(self, config: dict, tokenizer: Path, rows: Tensor, token_vectors: Tensor | None):
        """rows [n, N]: validation rows that `embed` may be fitted on; token_vectors [V, T]: what spectral token
        embeddings began as, for untrained twins."""
        with replacing(self.path / "tokenizer.json") as copy:
            shutil.copyfile(tokenizer, copy)
        for name, tensor in ((ROWS, rows), (TOKEN_VECTORS, token_vectors)):
            if tensor is not None:
                with replacing(self.path / name) as temporary:
                    save_file({"data": tensor}, temporary)
        self.write_config(config)

    def load_tensor(self, name: str) -> Tensor | None:
        """ROWS or TOKEN_VECTORS, as `create` kept them."""
        path = self.path / name
        return load_tensors(path).get("data") if path.is_file() else None

    def check_there(self):
        """Failure where this is no longer the folder of the run that this process trains."""
        try:
            found = json.loads((self.path / "config.json").read_text(encoding="utf-8")).get("run_id")
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except (OSError, ValueError, AttributeError):  # being edited; a disk that does not answer at the moment
            return
        if self.run_id and found != self.run_id:
            what = "was deleted or moved" if found is None else f"has become that of another run ({found})"
            raise Failure(f"{self.path} {what} while {self.run_id} went on; start that again with another --out_dir")

    def inspect(self, resume: str, init_from: str, defaults: dict) -> dict:
        """Locks the folder; what is there for a training run: {"config": its config.json, with `defaults` for what that
        lacks, or None, "fresh": no checkpoint to go on from}.
        resume: "auto", "must" or "never"; init_from: a run to take weights from, or ""."""
        there = self.exists()
        if resume == "must" and not there:
            raise UserError(f"resume='must', but {self.path} holds no run; leave it out to start one")
        if resume == "never" and there:
            raise UserError(f"resume='never', but {self.path} holds a run; give another --out_dir")
        self.lock.enter_context(locked(self.path, "give another --out_dir"))
        fresh = self.pointer("latest") is None
        if fresh and init_from:
            warm_start_file(init_from)
        config = completed(self.config(), self.path, defaults) if there else None
        check_removed(config or {}, self.path)
        if there and "run_id" not in config:
            raise UserError(f"{self.path}/config.json lacks run_id; put the run's own file back")
        return {"config": config, "fresh": fresh}

    def check_same(self, old: dict, new: dict, horizons: tuple[str, ...]):
        """UserError where the run that is there differs in more than may change; a warning where bits are lost."""
        differs = sorted(key for key in new if key in old and old[key] != new[key])
        if fatal := [key for key in differs if key not in FREE | INEXACT | {*horizons}]:
            what = ", ".join(f"{key} ({old[key]} there, {new[key]} now)" for key in fatal)
            raise UserError(f"{self.path} holds a run that differs in {what}; give another --out_dir=")
        if inexact := [key for key in differs if key in INEXACT]:
            warn(f"{', '.join(inexact)} changed: the run goes on, but no longer bit for bit")

    def config(self) -> dict:
        if not self.path.is_dir():
            raise UserError(
                f"no run folder at {self.path}; give the folder that train.py wrote, such as out/quickstart"
            )
        config = read_json(self.path / "config.json", "the run's configuration")
        config = config.get("nanoconcept", config)  # in a folder that export.py wrote
        config = {RENAMED.get(key, key): value for key, value in config.items()}
        for key in REMOVED.keys() & config.keys():
            if key not in ("pooling", "gru") or config[key] in ("mean", False):  # others: see check_removed
                del config[key]
        if f"decoder={config.get('decoder')}" in REMOVED:
            config["decoder"] = ModelConfig.decoder
        if config.get("views") in ("disjoint", "unshared"):  # which change nothing in its model
            config["views"] = ObjectiveConfig.views
        return config

    def write_config(self, config: dict):
        self.run_id = config["run_id"]
        write_atomic(self.path / "config.json", json.dumps(config, indent=1) + "\n")

    def steps(self) -> list[int]:
        """Steps with a checkpoint folder, ascending."""
        return sorted(int(p.name[5:]) for p in self.path.glob("ckpt_*") if p.name[5:].isdigit())

    def pointer(self, name: str) -> int | None:
        """The step that `latest` or `best` names; without `latest`, the newest (a folder with that name is whole)."""
        path = self.path / name
        if not path.is_file():
            return max(self.steps(), default=None) if name == "latest" else None
        name = re.fullmatch(r"ckpt_([0-9]{1,18})", path.read_text(errors="replace").strip())
        if not name:
            raise UserError(f"{path} names no checkpoint; write the name of a ckpt_ folder into it")
        return int(name[1])

    def checkpoint(self, which: str = "latest", needs=FILES) -> Path:
        """The folder of checkpoint 'latest', 'best' or a step, complete, or a UserError."""
        if (self.path / "modeling_nanoconcept.py").is_file():  # export.py wrote it: it has one
            return self.path
        if which in ("latest", "best"):
            step = self.pointer(which)
            if step is None:
                raise UserError(f"{self.path} has no {which} checkpoint; train it first")
        elif str(which).isdigit():
            step = int(which)
        else:
            raise UserError(f"ckpt={which!r} is no checkpoint; write latest, best or a step")
        folder = self.path / f"ckpt_{step}"
        there = ", ".join(map(str, self.steps())) or "none"
        if not folder.is_dir():
            raise UserError(f"{self.path} has no checkpoint of step {step}; name one that there is: {there}")
        for name in needs:
            if not (folder / name).is_file():
                raise UserError(
                    f"checkpoint {folder} lacks {name}; name another in {self.path}/latest (steps there: {there}), "
                    "or start anew with another --out_dir"
                )
        return folder

    def read(self, which: str = "latest") -> dict:
        """A whole checkpoint: {"folder", "weights", "optimizer", "state"}."""
        folder = self.checkpoint(which)
        with reading(folder / "optim.pt", "take another checkpoint"):
            optimizer = torch.load(folder / "optim.pt", map_location="cpu", weights_only=True)
        weights = load_tensors(folder / "model.safetensors")
        state = read_json(folder / "state.json", "the state of training")
        return {"folder": folder, "weights": weights, "optimizer": optimizer, "state": state}

    def save(self, step: int, model: ConceptModel, optimizer, state: dict, keep: int, keep_steps=(), best=False):
        """Writes ckpt_<step> as a whole or not at all: a temporary name, everything on disk, then the rename."""
        self.check_there()
        folder, temporary = self.path / f"ckpt_{step}", self.path / f".ckpt_{step}"
        for rest in self.path.glob(".ckpt_*"):  # of a process that was killed: the folder is locked
            shutil.rmtree(rest)
        if step != self.saved:
            temporary.mkdir()
            try:
                with replacing(temporary / "model.safetensors") as path:
                    save_file(model.saved_tensors(), path)
                with replacing(temporary / "optim.pt") as path:
                    torch.save(optimizer.state_dict(), path)
            except (SafetensorError, RuntimeError) as error:  # what they make of a full disk
                reason = str(error).splitlines()[0]
                raise UserError(f"{temporary} cannot be written ({reason}); make room, then go on") from None
            write_atomic(temporary / "state.json", json.dumps(state, indent=1) + "\n")
            sync(temporary)
            if folder.exists():  # left there by a process that was killed, or damaged
                folder.rename(self.path / f".ckpt_{step}_old")
            temporary.rename(folder)
            shutil.rmtree(self.path / f".ckpt_{step}_old", ignore_errors=True)
            sync(self.path)
            self.saved = step
        else:  # saved before its evaluation, which a signal broke off
            write_atomic(folder / "state.json", json.dumps(state, indent=1) + "\n")
        if best:
            write_atomic(self.path / "best", folder.name + "\n")
        write_atomic(self.path / "latest", folder.name + "\n")
        wanted = {*self.steps()[-keep:], *keep_steps, self.pointer("best"), step}
        for old in self.steps():
            if old not in wanted:
                shutil.rmtree(self.path / f"ckpt_{old}")

    def mirror_to_wandb(self):
        """From here on `log` also writes to the Weights & Biases run whose id and link config.json keeps."""
        config = self.config()
        try:
            import wandb
        except ImportError:
            raise UserError("wandb is not installed; pip install wandb, or leave --wandb out") from None
        with optional("Weights & Biases"):  # no key, no network, a service that is gone
            self.mirror = wandb.init(
                project="nanoconcept",
                name=config["run_id"],
                id=config.get("wandb_id"),
                resume="allow" if "wandb_id" in config else None,
                dir=str(self.path),
                config=config,
            )
            config |= {"wandb_id": self.mirror.id, "wandb_url": self.mirror.url}
        self.write_config(config)
        AT_EXIT.append(lambda code: self.mirror and self.mirror.finish(exit_code=code))

    def log(self, **numbers):
        self.check_there()
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps({k: rounded(v) for k, v in numbers.items()}) + "\n")
        mirror, self.mirror = self.mirror, None  # one that has failed is left alone
        if mirror:
            with optional("Weights & Biases"):
                mirror.log(numbers, step=numbers["step"])
                self.mirror = mirror

    def metrics(self) -> list[dict]:
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        records = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:  # the last line of a process that was killed
                break
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                break
            records.append(record)
        return records

    def beyond_words(self) -> dict[str, tuple[int, float]]:
        """Task -> (step, what its dev score knows beyond words) of each zero-shot evaluation that is there."""
        found = {}
        for path in sorted((self.path / "eval").glob("zero_shot_*.json")):
            with suppress(UserError, LookupError, TypeError, ValueError):  # damaged, of older code or another kind
                record = read_json(path, "an evaluation")
                if (path.stem[10:], self.config()["run_id"]) == (record["task"], record["run_id"]):
                    metrics = record["splits"]["dev"]["metrics"]
                    value = metrics.get(report.HEADLINE_ADAPTED, metrics[report.HEADLINE])
                    found[record["task"]] = int(record["checkpoint"][5:]), value
        return found

    @report.optional_picture
    def draw_geometry(self):
        config = self.config()
        most = {"rank_slot_centred": config["concepts"], "input_share": 1}
        most["rank_pooled"] = min(geometry.ROWS - 1, config["hidden"])
        report.geometry_curves(self.metrics(), most, self.beyond_words(), self.path / "geometry.png")

    def truncate(self, step: int, best: int | None):
        """Forgets what came after `step`, and will come again: metrics, checkpoints. best: the best until then."""
        named = self.pointer("best")
        if named is not None and named > step:
            write_atomic(self.path / "best", f"ckpt_{best}\n") if best else (self.path / "best").unlink()
        for later in self.steps():
            if later > step:
                shutil.rmtree(self.path / f"ckpt_{later}")
        kept = [record for record in self.metrics() if record["step"] <= step]
        write_atomic(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))


def rounded(value):
    """Seven digits say all that a float32 knows."""
    return float(f"{value:.7g}") if isinstance(value, float) and math.isfinite(value) else value


def load_tensors(path: Path, device="cpu") -> dict[str, Tensor]:
    with reading(path, "take another checkpoint"):
        return load_file(path, device=str(device))


def load_weights(model: ConceptModel, tensors: dict[str, Tensor], path: Path, whole: bool = False):
    """Strictly: every tensor there, none left over, every shape right. path: where they come from; whole: those of a
    frozen backbone, too."""
    own = model.state_dict() if whole else model.saved_tensors()
    wrong = sorted(k for k in own.keys() | tensors.keys() if k not in own or k not in tensors)
    wrong += sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape)
    if wrong:
        raise UserError(
            f"{path} is of another model, or of older code ({wrong[0]} differs, {len(wrong)} in all); "
            "take the checkpoint of this config"
        )
    model.load_state_dict(tensors, strict=False)


def warm_start_file(run: str) -> Path:
    """The tensors of another run's latest checkpoint."""
    folder = RunFolder(run)
    folder.config()
    return folder.checkpoint("latest", needs=("model.safetensors",)) / "model.safetensors"


def stretched(table: Tensor, length: int) -> Tensor:
    """Learned positions [n, W] for `length` > n positions, by linear interpolation (ViT, arXiv:2010.11929)."""
    return F.interpolate(table.T[None], size=length, mode="linear", align_corners=True)[0].T.contiguous()


def load_part(model: ConceptModel, theirs: dict[str, Tensor], part: str, run: str) -> dict[str, list[str]]:
    """
    Warm start: takes tensors of another run by name and shape; learned positions of shorter rows are stretched.
    part: 'encoder' or 'all'. Returns the names taken, new (kept as initialised) and left over.
    """
    ours, encoder = model.saved_tensors(), ("tokens.", "positions.", "backbone.", "tower.", "token_layers.", "encoder.")
    wanted = {k: v for k, v in theirs.items() if part == "all" or k.startswith(encoder)}
    for name in wanted.keys() & ours.keys() & {"positions.weight", "decoder.positions.weight"}:
        if len(wanted[name]) < len(ours[name]):
            wanted[name] = stretched(wanted[name], len(ours[name]))
    taken = {k: v for k, v in wanted.items() if k in ours and ours[k].shape == v.shape}
    if not taken:
        raise UserError(f"init_from={run}: no tensor fits this model; take a run of the same shape")
    model.load_state_dict(taken, strict=False)
    return {
        "taken": sorted(taken),
        "new": sorted(ours.keys() - taken.keys()),
        "left over": sorted(theirs.keys() - taken.keys()),
    }


def check_frozen(run: str, model: ModelConfig) -> dict:
    """The config of a run; UserError where its decoder is not of this configuration, whatever the text."""
    theirs = completed(RunFolder(run).config(), run)
    copy, read = recorded(replace(model, vocab_size=1))
    with torch.device("meta"):
        DECODERS[model.decoder](copy)
    same = {"decoder", "hidden", "token_dim", "max_length", "tied", "init", "original_structure"}
    free = {"vocab_size", "dropout", "word_dropout", "concept_position", "concepts"}
    for key in sorted(same | (read & fields_of(ModelConfig).keys()) - free):
        if theirs.get(key) != getattr(model, key):
            what = f"{key}={theirs.get(key)}, this run {getattr(model, key)}"
            raise UserError(f"frozen_decoder={run} has {what}; write --{key}={theirs.get(key)}, or take another run")
    return theirs


def frozen_weights(run: str, model: ModelConfig, tokenizer_hash: str, out: RunFolder) -> dict[str, Tensor] | None:
    """Tensors of a run's latest checkpoint, for ConceptModel.freeze_decoder; None where no run is named, or `out` has a
    checkpoint of its own. UserError where they do not fit."""
    if not run or out.pointer("latest") is not None:
        return None
    theirs = check_frozen(run, model)
    if theirs.get("tokenizer_hash") != tokenizer_hash:
        raise UserError(f"frozen_decoder={run} has another tokenizer; write --dataset={theirs.get('dataset')}")
    weights = load_tensors(warm_start_file(run))
    with FakeTensorMode():
        ours = ConceptModel(model).state_dict()
    kept = {k for k in ours.keys() | weights.keys() if k.startswith(AFTER_CONCEPTS)}
    if wrong := sorted(k for k in kept if k not in ours or k not in weights or ours[k].shape != weights[k].shape):
        raise UserError(f"frozen_decoder={run}: its {wrong[0]} does not fit this model; take a run of the same decoder")
    return {k: weights[k] for k in kept}


def run_id(preset: str, model: ModelConfig) -> str:
    depth = model.iterations if "iterations" in ENCODERS[model.encoder].options else model.layers
    shape = f"H{model.hidden}L{depth}C{model.concepts}"
    return f"{preset}_{shape}_{datetime.now():%Y%m%d_%H%M%S}"


def commit() -> str | None:
    """The commit this code stands at, marked when files differ from it; None outside a repository."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None

"""What the command line and the config of a training run say, as far as it can be checked without data."""

import ast
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

from lab.configurator import Arguments, UserError, fields_of, parse, show, warn
from lab.data.corpus import Corpus, load_meta
from lab.training import run_folder
from lab.training.plan import HORIZONS, cost, make_plan
from lab.training.run_folder import RunFolder
from lab.training.vocabulary import check_tokenizer
from losses import ConceptLossConfig
from model import ModelConfig
from objectives import ObjectiveConfig, Objectives

ROOT = Path(__file__).resolve().parents[2]
EVERYDAY = ("dataset", "out_dir", "objective", "encoder", "layers", "hidden", "concepts", "lengths", "batch_size", "lr")
EVERYDAY += ("max_steps", "max_minutes")  # keys that `--help` shows
STARTS = ("quickstart", "concepts_cpu", "embed_cpu", "tsdae_cpu", "perceiver_mlm_l6", "tsdae_l6")
MATHEMATICS = (ObjectiveConfig, ModelConfig, ConceptLossConfig)  # whose keys train.py has besides its own


def presets() -> str:
    """A line for each preset of STARTS: how its docstring begins."""
    texts = {name: ast.get_docstring(ast.parse((ROOT / "config" / f"{name}.py").read_text())) for name in STARTS}
    lines = (f"  {name:<18}{textwrap.shorten(text, 96, placeholder=' ...')}\n" for name, text in texts.items())
    return f"presets to start from:\n{''.join(lines)}\n"


@dataclass
class Settings:
    """What the command line and its config say, checked as far as it can be without data."""

    parsed: Arguments
    train: object  # the keys of train.py
    objective: ObjectiveConfig
    model: ModelConfig
    regulariser: ConceptLossConfig

    @classmethod
    def read(cls, argv: list[str], training: type, doc: str) -> "Settings":
        """training: the dataclass of train.py's own keys; doc: its docstring. Raises UserError; warns of keys that are
        given and not used, and builds no decoder where none is trained."""
        groups = (training, *MATHEMATICS)
        shown = {"everyday": EVERYDAY, "more": presets}
        parsed = parse(argv, *groups, prog="train.py", doc=doc, root=ROOT, exclusive=(HORIZONS,), **shown)
        if parsed.config is None:
            raise UserError("no config is given; try: python train.py config/quickstart.py")
        settings = cls(parsed, *(parsed.make(group) for group in groups))
        config, shape, objectives = settings.train, settings.model, settings.objectives
        shape.predicts = objectives.predicts
        if config.frozen_decoder:
            if "positions" not in shape.predicts:
                what = f"objective={objectives.text!r} trains through no decoder, so none is frozen"
                raise UserError(f"{what}; add 'tsdae'")
            if shape.backbone:
                raise UserError(
                    "a backbone has its own token table, and so has a frozen_decoder; leave one of them out"
                )
            shape.token_init = "random"  # the table is the other run's
        if shape.backbone:
            shape.token_init = "random"  # the table is the backbone's
        for text in settings.regulariser.warnings(shape.concepts, shape.hidden):
            warn(text)
        try:
            settings.warn_unused()
        except ValueError as error:
            raise UserError(str(error)) from None
        if "contrastive" in objectives.names and settings.objective.views == "dropout" and not shape.dropout:
            raise UserError("views='dropout' are one without dropout; write --dropout=0.1")
        if (longest := max(config.lengths)) > shape.max_length:
            raise UserError(f"lengths={config.lengths} reach past max_length={shape.max_length}; write {longest}")
        if not shape.vocab_size and (settings.data / "meta.json").is_file():
            shape.vocab_size = load_meta(settings.data)["vocab_size"]
        plan = make_plan(config, objectives, 1)
        if config.max_minutes and max(len(objectives.plateaus()), len(plan.mixes)) > 1:
            raise UserError("a schedule needs the number of steps, which max_minutes leaves open; write --max_steps")
        if config.max_minutes and shape.backbone and 0 < shape.backbone_freeze < 1:
            raise UserError("backbone_freeze is a share of the steps, which max_minutes leaves open; write --max_steps")
        return settings

    @property
    def objectives(self) -> Objectives:
        return Objectives(self.objective)

    @property
    def preset(self) -> str:
        return self.parsed.config.stem

    @property
    def data(self) -> Path:
        return Path(self.train.data_dir or ROOT / "data") / self.train.dataset

    def values(self) -> dict:
        """Every key but print_config."""
        groups = (self.train, self.objective, self.model, self.regulariser)
        values = {key: getattr(group, key) for group in groups for key in fields_of(type(group))}
        del values["print_config"]
        return values

    def defaults(self) -> dict:
        """Of every key whose value is not found out when a run begins: what a run of older code had without the key."""
        groups = {
            key: field.default for group in (type(self.train), *MATHEMATICS) for key, field in fields_of(group).items()
        }
        found_out = {"print_config", "dtype", "compile", "vocab_size"}
        return json.loads(json.dumps({key: value for key, value in groups.items() if key not in found_out}))

    def resolved(self) -> dict:
        """What --print_config prints: JSON values, and what follows from them; null where the vocabulary is unknown."""
        plan = make_plan(self.train, self.objectives, 1)
        known, frozen = self.model.vocab_size > 0, bool(self.train.frozen_decoder)
        parameters, flops = cost(plan, self.model, self.objectives, frozen, self.regulariser) if known else (None, None)
        derived = {"parameters": parameters, "train_flops_per_token": flops}
        derived |= {"tokens_per_step": plan.tokens, "shapes": plan.shapes()}
        return json.loads(json.dumps(self.values() | derived))

    def check_text(self, text: Corpus):
        """UserError where the training text is not what this configuration is for."""
        if self.model.vocab_size not in (0, text.vocab_size):
            raise UserError(
                f"vocab_size={self.model.vocab_size}, but {show(self.data)} has {text.vocab_size}; "
                "write --vocab_size=0 to take its own"
            )
        if self.objectives.in_batch_negatives and len(text.documents) < 3:  # starts, and the end
            what = f"{self.objectives.text} tells documents apart, but {show(text.path)} has one"
            raise UserError(f"{what}; take bow")

        if self.model.backbone:
            check_tokenizer(self.model.backbone, text)

    def record(self, out: RunFolder, old: dict | None, found: dict) -> dict:
        """What config.json says of a run: every key as it is in force, and what was `found` when it began (machine,
        number format ...). old: its config.json so far, which must agree (UserError), or None."""
        values = json.loads(json.dumps(self.values() | found))  # tuples become lists, as in the file
        if old is not None:
            out.check_same(old, values, HORIZONS)
            if "tag" not in self.parsed.given:
                values["tag"] = old.get("tag", "")
            values = old | values
        run_id = values.get("run_id") or run_folder.run_id(self.preset, self.model)
        return values | {"run_id": run_id, "preset": self.preset, "commit": run_folder.commit()}

    def warn_unused(self):
        reasons = {key: f"(objective = {self.objective.objective!r})" for key in fields_of(ObjectiveConfig)}
        unused = reasons.keys() - self.objectives.uses
        decodes = "positions" in self.model.predicts
        other = f"decoder = {self.model.decoder!r}" if decodes else f"objective = {self.objective.objective!r}"
        parts = f"(encoder = {self.model.encoder!r}, {other})"
        reasons |= dict.fromkeys(self.model.unused(), parts) | {"init_part": "(there is no init_from)"}
        owner = "backbone" if self.model.backbone else "frozen decoder"
        reasons |= {"token_init": f"(the token table is the {owner}'s)"}
        unused |= {"token_init"} if self.train.frozen_decoder or self.model.backbone else set()
        unused |= self.model.unused() | (set() if self.train.init_from else {"init_part"}) | self.regulariser.unused()
        balance = f"(concept_loss = {self.regulariser.concept_loss!r}, "
        balance += f"concept_balance = {self.regulariser.concept_balance!r})"
        reasons |= dict.fromkeys(self.regulariser.unused(), balance)
        own = ("--", show(self.parsed.config))  # what a base says may serve its other heirs
        for key, where in self.parsed.given.items():
            if key in unused and where.startswith(own):
                self.parsed.unused([key], reasons[key])

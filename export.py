"""
Writes a run as a folder that other libraries load, and that stays a run.

    python export.py --run=out/quickstart --to=out/exported
    python export.py --run=out/quickstart --to=out/exported --format=all --quantize=int8
    python export.py --run=out/quickstart --to=out/exported --push=ORG/NAME
    python export.py --from_original=DIR --to=out/imported

sentence_transformers: SentenceTransformer(DIR, trust_remote_code=True) of versions 5 and 6, MultiVectorEncoder of
version 6 with all concepts; and what `transformers` loads. transformers: AutoModel.from_pretrained(DIR,
trust_remote_code=True), its last_hidden_state the concepts, its pooler_output what `embed` gives. onnx: model.onnx
beside these, and example.py, which needs onnxruntime and tokenizers alone. The remote code, modeling_nanoconcept.py, is
made of the files of this repository. README.md is the model card: training, health, scores beside their floors as far
as eval_glue.py has written them, use. The folder may stand wherever --run=RUN does.

--from_original writes a run folder from a checkpoint of the original project: config.json, model.safetensors or
pytorch_model.bin, and tokenizer.json. Which model it is follows from the names of its tensors.
"""

from lab import command  # isort: skip  (first: it tells an older Python)
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, Literal

import numpy as np

from lab.command import log
from lab.configurator import PathStr, UserError, parse, show, warn
from lab.evaluation.huggingface import is_reference
from lab.export import card, folder, onnx
from lab.export.original import import_original
from lab.files import sync
from lab.runs import LoadedRun, OneRun
from objectives import check_bounds

ROOT = Path(__file__).resolve().parent
FORMATS = "sentence_transformers", "transformers", "onnx"
CLOSE = 1e-3  # a larger difference of a value to `embed` is a mistake of ours
TEXTS = ["One text.", "Another text, which is longer. It has two sentences!", "of many words " * 100]


@dataclass
class ExportConfig(OneRun):
    to: Annotated[PathStr, "folder to be written; it must not be there yet"] = ""
    format: Annotated[Literal["all", *FORMATS], "what the folder is loaded by"] = "sentence_transformers"
    quantize: Annotated[Literal["", "int8"], "onnx: write model_int8.onnx, too, and say what that costs"] = ""
    data: Annotated[PathStr, "quantize: folder of the task files, for STS-B"] = str(ROOT / "data" / "glue")
    licence: Annotated[str, "of the training text, for the card"] = ""
    from_original: Annotated[PathStr, "instead of --run: folder of the original project, or hub:ORG/NAME"] = ""
    push: Annotated[str, "upload it as this model of the Hugging Face Hub, ORG/NAME"] = ""

    def __post_init__(self):
        check_bounds(self)
        if not self.to:
            raise ValueError("no folder is given; write --to=out/exported")
        if self.from_original:
            return
        super().__post_init__()
        if self.quantize and "onnx" not in self.formats:
            raise ValueError("only ONNX is quantized; write --format=all")

    @property
    def formats(self) -> list[str]:
        """What is written; the files of transformers always are: with them the folder stays a run."""
        return [*FORMATS] if self.format == "all" else list(dict.fromkeys([self.format, "transformers"]))


def write(run: LoadedRun, config: ExportConfig, place: Path):
    """Fills the folder, and checks that what is in it gives the run's vectors."""
    said, alone = [], folder.write_model(run, place, "sentence_transformers" in config.formats)
    if "onnx" in config.formats:
        said += write_onnx(run, config, place)
    for path in [Path(config.run) / "metrics.jsonl", *Path(config.run).glob("eval/*.json")]:
        if path.is_file():  # the card of an export of this export needs them
            (place / path.relative_to(config.run)).parent.mkdir(exist_ok=True)
            shutil.copy(path, place / path.relative_to(config.run))
    name = config.push or config.to
    text = card.card(run, config.run, name, config.licence, config.formats, alone, " ".join(said))
    (place / "README.md").write_text(text, encoding="utf-8")
    if not importlib.util.find_spec("transformers"):
        return warn("transformers is not installed, so the folder was not loaded once; pip install transformers")
    check("transformers", folder.difference(run, place, alone))


def check(what: str, difference: float):
    if not difference < CLOSE:
        raise UserError(f"{what} differs from embed by {difference:.1e}, so nothing was written; keep the run folder")
    log(f"{what}: differs from embed by {difference:.1e} at most")


def write_onnx(run: LoadedRun, config: ExportConfig, place: Path) -> list[str]:
    """model.onnx, example.py and model_int8.onnx, where that is asked for -> what int8 costs, in a sentence."""
    onnx.write_onnx(run, *folder.isotropic(run), place / "model.onnx")
    graphs = {"float32": onnx.session(place / "model.onnx")}
    exact = run.embed(TEXTS).numpy()
    check(f"onnxruntime, opset {onnx.OPSET}", np.abs(onnx.onnx_vectors(graphs["float32"], run, TEXTS) - exact).max())
    (place / "example.py").write_text(onnx.example(run), encoding="utf-8")
    if not config.quantize:
        return []
    onnx.write_int8(place / "model.onnx", place / "model_int8.onnx")
    graphs["int8"] = onnx.session(place / "model_int8.onnx")
    said = onnx.loss_in_stsb(run, graphs, Path(config.data))
    print(said)
    return [f"model_int8.onnx: {said}."]


def main(argv) -> int:
    parsed = parse(argv, ExportConfig, prog="export.py", doc=__doc__, root=ROOT, positional=False)
    config, to = parsed.make(ExportConfig), Path(parsed.values["to"])
    if config.from_original:
        parsed.unused(parsed.given.keys() - {"from_original", "to"}, "by --from_original, which writes a run folder")
        print(import_original(config.from_original, to))
        return 0
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise UserError(f"{show(to)} is there already; give another --to, or delete it")
    if is_reference(config.run):
        raise UserError(f"{config.run} is a Hugging Face encoder already; give a run folder of train.py")
    token = card.check_push(config.push) if config.push else ""
    if "onnx" in config.formats:
        onnx.check_installed()
    run = config.load()
    to.parent.mkdir(parents=True, exist_ok=True)
    place = Path(mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    try:
        write(run, config, place)
        place.chmod(to.parent.stat().st_mode & 0o777)  # a temporary folder is closed to others
        for path in place.rglob("*"):
            sync(path)
        if to.is_dir():
            to.rmdir()
        place.rename(to)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    log(f"{show(to)}: {', '.join(sorted(path.name for path in to.iterdir()))}")
    if config.push:
        card.push(to, config.push, token)
        log(f"pushed to {config.push}")
    return 0


if __name__ == "__main__":
    command.command(main)

"""
Writes what the code itself knows: docs/OPTIONS.md (every part, every key) and config/README.md (every preset).

    python docs/generate.py            # writes both
    python docs/generate.py --check    # exit 1 where a file is not what would be written
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from decoders import DECODERS  # noqa: E402
from encoders import ENCODERS  # noqa: E402
from heads import HEADS  # noqa: E402
from lab.configurator import describe, fields_of  # noqa: E402
from losses import CONCEPT_LOSSES, ConceptLossConfig  # noqa: E402
from model import ModelConfig  # noqa: E402
from objectives import OBJECTIVES, ObjectiveConfig  # noqa: E402

MADE = "<!-- made by `python docs/generate.py`; edit the code instead -->"
VOCABULARY = {"pydocs": 16384}  # of presets whose data say it, by dataset; else
MODERNBERT = 50368
EXPECTED = r"(?:Expect|Logged|Never\s+trained|Planned)\b.*?(?:\.(?=\s|$)|$)"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown, not padded: cells are long."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def summary(part) -> str:
    """The first sentence of a docstring."""
    return " ".join(part.__doc__.strip().split("\n\n")[0].split())


def options() -> str:
    parts = {"objective": OBJECTIVES, "encoder": ENCODERS, "decoder": DECODERS, "head": HEADS}
    parts["concept_loss"] = CONCEPT_LOSSES
    text = f"# Options\n\n{MADE}\n\nKeys of `train.py`; `python train.py --help=all` says the same.\n"
    for key, registry in parts.items():
        rows = [[f"`{name}`", summary(part)] for name, part in registry.items()]
        text += f"\n## `{key}`\n\n{table([key, 'what it does'], rows)}\n"
    for group in (train.TrainConfig, ObjectiveConfig, ModelConfig, ConceptLossConfig):
        rows = [
            [f"`{key}`", f"`{f.default}`", f"{describe(f.kinds)}{f', {f.bounds}' if f.bounds else ''}", f.help]
            for key, f in fields_of(group).items()
        ]
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        text += f"\n## {group.__name__}\n\n{table(['key', 'default', 'type', 'meaning'], rows)}\n"
    return text


def presets() -> str:
    rows = []
    for path in sorted((ROOT / "config").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text()))
        expected = re.search(EXPECTED, text, re.S)
        settings = train.read_settings([str(path)])
        settings.model.vocab_size = VOCABULARY.get(settings.train.dataset, MODERNBERT)
        known = settings.resolved()
        cost = [f"{known['parameters']:,}", f"{known['train_flops_per_token'] / 1e6:.1f}"]
        said = " ".join(expected[0].split()) if expected else ""
        rows.append([f"`{path.stem}`", " ".join(text.split("\n\n")[0].split()), *cost, said])
    head = ["preset", "what it is for", "parameters", "training MFLOP per token", "expected"]
    grids = []
    for path in sorted((ROOT / "config/grids").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text()))
        grids.append([f"`grids/{path.stem}`", " ".join(text.split("\n\n")[0].split())])
    counted = "Counted with a vocabulary of 50,368 entries (ModernBERT's), presets for two cores with 16,384."
    about = f"`python train.py config/NAME.py`. {counted}\n\n{table(head, rows)}"
    compared = f"`python compare.py config/grids/NAME.py`:\n\n{table(['grid', 'what it asks'], grids)}"
    return f"# Presets\n\n{MADE}\n\n{about}\n\n{compared}\n"


def main(argv) -> int:
    different = 0
    for path, make in ((ROOT / "docs/OPTIONS.md", options), (ROOT / "config/README.md", presets)):
        text = make()
        if argv == ["--check"]:
            if not path.is_file() or path.read_text() != text:
                print(f"{path.relative_to(ROOT)} is not up to date; run python docs/generate.py", file=sys.stderr)
                different = 1
        else:
            path.write_text(text)
    return different


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""
Runs from Python, in any folder, after `pip install -e .` in this one:

    import nanoconcept

    run = nanoconcept.load("out/quickstart")             # or a folder of export.py, or a Hugging Face encoder
    vectors = run.encode(["one text", "another text"])   # numpy, float32 [2, hidden]; of a str [hidden]
    vectors = run.embed(["one text", "another text"])    # the same as a tensor

The files beside this one are imported as nanoconcept.model, nanoconcept.lab.runs and so on, so that names such as
`model`, `train` and `lab` stay free for your own files.
"""

import ast
import sys
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path

ROOT = Path(__file__).resolve().parent
if not (ROOT / "lab" / "runs.py").is_file():
    raise ImportError(f"{ROOT} is not the checkout of nanoconcept; write there: pip install -e .")
__path__ = [str(ROOT)]  # this module is a package, too
OWN = {path.stem for path in ROOT.glob("*.py")} | {"lab"}


class Renaming(SourceFileLoader):
    """Loads a file with `import model` read as `import nanoconcept.model as model`; keeps no bytecode, which would take
    the place of that of the file as it stands."""

    def get_code(self, name):
        tree = ast.parse(self.get_data(self.path), self.path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in OWN:
                node.module = f"{__name__}.{node.module}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in OWN:
                        alias.name, alias.asname = f"{__name__}.{alias.name}", alias.asname or alias.name
        return compile(tree, self.path, "exec", dont_inherit=True)


class Files(PathFinder):
    """Finds nanoconcept.* in the checkout."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target) if name.startswith(f"{__name__}.") else None
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Renaming(name, spec.origin)
        return spec


sys.meta_path.insert(0, Files)

from nanoconcept.lab.evaluation.huggingface import load  # noqa: E402
from nanoconcept.lab.runs import LoadedRun, load_run  # noqa: E402
from nanoconcept.model import ConceptModel, ModelConfig  # noqa: E402

__all__ = ["ConceptModel", "LoadedRun", "ModelConfig", "load", "load_run"]

"""
Which of two objectives is better on your text?

    python examples/compare_objectives.py notes.txt "tsdae + bow" "mlm" --max_minutes=10

Trains config/quickstart.py with each (keys of train.py may follow; data and runs lie in out/compared), then asks of
held-out documents: which body belongs to this first sentence? Vectors lose what these texts have in common. Says which
objective finds more, with the 95 % interval of the difference over the same questions. It is of one seed each: for
more, and for labelled tasks, see `python compare.py --help`.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # not needed after `pip install -e .`
import nanoconcept  # noqa: E402
from nanoconcept.lab.evaluation.retrieval import hits, retrieval_pairs  # noqa: E402
from nanoconcept.lab.evaluation.scores import lifts  # noqa: E402
from nanoconcept.lab.runs import ADAPTED  # noqa: E402


def python(*words):
    subprocess.run([sys.executable, *map(str, words)], check=True)


def main(text: str, *rest: str):
    objectives, keys = [word for word in rest if word[:2] != "--"], [word for word in rest if word[:2] == "--"]
    here, answers, said = Path("out/compared"), [], []
    data = ["--name=text", f"--data_dir={here / 'data'}"]
    if not (here / "data/text/meta.json").exists():
        python(ROOT / "data/text/prepare.py", *data, "--files", text, "--tokenizer=bpe:4096", "--val_fraction=0.1")
    for number, objective in enumerate(objectives):
        out = here / f"run{number}"
        given = [f"--data_dir={here / 'data'}", "--dataset=text", "--vocab_size=0", f"--objective={objective}", *keys]
        python(ROOT / "train.py", ROOT / "config/quickstart.py", *given, f"--out_dir={out}")
        run = nanoconcept.load_run(out)
        pairs = retrieval_pairs(run.corpus("val"), run.tokenizer)
        texts = [first for first, _ in pairs] + [body for _, body in pairs]
        answers.append(hits(run.pooled(texts).numpy(), ADAPTED["model"])["adapted"])
        said.append(f"{objective}: finds {answers[-1].mean():.1%} of {len(pairs)} bodies by their first sentence")
    lift = lifts("accuracy", answers[0], {"other": answers[1]}, np.ones(answers[0].shape[1]))["other"]
    better = (
        objectives[0] if lift["low"] > 0 else objectives[1] if lift["high"] < 0 else "neither, as far as this tells"
    )
    print("\n".join(said))
    print(f"difference {lift['value']:+.1%} [{lift['low']:+.1%}, {lift['high']:+.1%}]; better: {better}")


if __name__ == "__main__":
    if len([word for word in sys.argv if word[:2] != "--"]) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])

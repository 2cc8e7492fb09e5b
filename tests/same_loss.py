"""
Do two commits train alike? Prints, for a few fixed runs of 30 steps, whether their losses are equal to the bit.

    python tests/same_loss.py main~1 main
    python tests/same_loss.py main .            # a commit and the working tree

A refactor leaves every list as it was; a change of mathematics, initial weights or noise makes new ones.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMON = (
    "--lengths=16,32 --max_length=32 --batch_size=8 --concepts=8 --hidden=32 --heads=4 --layers=2 --intermediate=48"
)
COMMON += " --dataset=tiny --vocab_size=0 --max_steps=30 --warmup=5 --log_interval=1 --eval_interval=15 --compile=False"
COMMON += " --eval_tokens=1024 --final_report=losses --device=cpu --dtype=float32"
RUNS = {
    "tsdae + bow": "config/quickstart.py --objective=tsdae+bow",
    "tsdae, idf, a quarter scored": "config/concepts_cpu.py --objective=tsdae --micro_batch=4",
    "mlm, input": "config/perceiver_mlm_cpu.py --decoder=input",
    "mlm, faithful, dropout": "config/perceiver_mlm_l2.py --dtype=float32 --micro_batch=0",
    "mlm, weighted, rope": "config/perceiver_mlm_cpu.py --decoder=weighted --visible_only --token_position=rope",
    "bow + contrastive": "config/concepts_cpu.py --objective=bow+0.3*contrastive --token_dim=16 --lengths=16",
}


def losses(tree: Path) -> dict[str, list]:
    """Run -> the training and validation losses that a tree's own code makes of its own small corpus."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tree}:{tree / 'tests'}"}
        make = f"from pathlib import Path; import corpus; corpus.make_corpus(Path({folder!r}, 'tiny'))"
        subprocess.run([sys.executable, "-c", make], cwd=tree, env=environment, check=True)
        for name, arguments in RUNS.items():
            out = Path(folder, "out", name.replace(" ", "_"))
            words = [*arguments.split()[:1], *COMMON.split(), *arguments.split()[1:]]
            command = [sys.executable, "train.py", *words, f"--data_dir={folder}", f"--out_dir={out}"]
            done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
            if done.returncode:
                found[name] = [done.stderr.strip().splitlines()[-1]]
                continue
            records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
            found[name] = [r.get("loss", r.get("val_loss")) for r in records]
    return found


def tree_of(commit: str, folder: str) -> Path:
    if commit == ".":
        return ROOT
    tree = Path(folder, commit.replace("/", "_"))
    subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "--quiet", tree, commit], check=True)
    return tree


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        try:
            a, b = (losses(tree_of(commit, folder)) for commit in sys.argv[1:])
        finally:
            for tree in Path(folder).iterdir():
                subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
    for name in RUNS:
        verdict = "equal" if a[name] == b[name] and len(a[name]) > 1 else "DIFFERENT"
        at = next((i for i, (x, y) in enumerate(zip(a[name], b[name], strict=False)) if x != y), None)
        where = f" from entry {at}: {a[name][at]} and {b[name][at]}" if at is not None else ""
        print(f"{name}: {verdict}{where} ({len(a[name])} and {len(b[name])} losses)")
    sys.exit(a != b)


if __name__ == "__main__":
    main()

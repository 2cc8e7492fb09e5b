"""The README's commands exist and run, shortened."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines() if line]


def python(*words):
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=ROOT, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_the_two_commands():
    first, second = (line for line in COMMANDS if line.startswith("python3 -m venv"))
    assert first.endswith("pip install -r requirements.txt && python train.py config/quickstart.py")
    assert second.endswith("pip install -r requirements-dev.txt && python -m pytest")
    assert "torch==2.13.0" in (ROOT / "requirements.txt").read_text()
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text()


def test_every_command_names_files_and_keys_that_exist():
    scripts = {}
    for line in COMMANDS:
        for words in (shlex.split(part) for part in line.split("&&")):
            path = next((word for word in words if word.endswith(".py")), None)
            if path is None:
                continue
            scripts.setdefault(path, set()).update(re.findall(r" --(\w+)", line))
            assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))
    assert {"train.py", "sample.py", "data/text/prepare.py", "data/hub/prepare.py"} <= scripts.keys()
    for path, keys in scripts.items():
        text = python(path, "--help").stdout
        assert all(f"--{key}=" in text for key in keys - {"nproc_per_node"}), path


def test_the_file_table_is_the_tree():
    named = set(re.findall(r"`(\w+\.py)`", README))
    assert {path.name for path in ROOT.glob("*.py")} == named


def test_the_quickstart_shortened(tmp_path):
    python("data/pydocs/prepare.py", "--max_mb=2", f"--data_dir={tmp_path}")
    more = ["--max_steps=20", f"--data_dir={tmp_path}", f"--out_dir={tmp_path / 'run'}"]
    done = python("train.py", "config/quickstart.py", *more)
    assert "unigram floor" in done.stdout and done.stdout.count("said:") == 3
    done = python("sample.py", f"--run={tmp_path / 'run'}", "--mode=reconstruct", "--text=Return the list.")
    assert done.stdout.startswith("text: Return the list.\nsaid:")

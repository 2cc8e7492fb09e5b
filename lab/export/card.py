"""The model card of an exported folder: what it is, what it was trained on, what it scores beside its floors."""

import json
from contextlib import suppress
from pathlib import Path

from lab.command import reason
from lab.configurator import UserError
from lab.files import read_json
from lab.report import dict_table
from lab.runs import ROOT, LoadedRun
from lab.training.run_folder import RunFolder

USES = {
    "sentence-transformers (5 or 6)": """
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({name!r}, trust_remote_code=True)
vectors = model.encode(["one text", "another text"])  # numpy, float32 [2, {hidden}]""",
    "sentence-transformers 6, all {count} concepts of a text": """
from sentence_transformers import MultiVectorEncoder

model = MultiVectorEncoder({name!r}, trust_remote_code=True, similarity_fn_name="meanmaxsim")
concepts = model.encode(["one text", "another text"])  # each [{count}, {hidden}], of norm 1""",
    "transformers": """
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name!r}, trust_remote_code=True)
model = AutoModel.from_pretrained({name!r}, trust_remote_code=True)
out = model(**tokenizer(["one text", "another text"], padding=True, return_tensors="pt"))
vectors, concepts = out.pooler_output, out.last_hidden_state  # [2, {hidden}], [2, {count}, {hidden}]""",
    "nanoconcept": """
from nanoconcept import load

vectors = load({name!r}).encode(["one text", "another text"])""",
}

CARD = """---
library_name: {library}
pipeline_tag: sentence-similarity
tags: [sentence-similarity, feature-extraction, nanoconcept]
---

# {run_id}

A concept encoder: a text is read into {count} vectors of width {hidden} (encoder `{encoder}`, {parameters:,} parameters
with what predicts text), whose mean is the vector of the text. Rows have at most {longest} tokens; a longer text is
read in parts. Trained from scratch and without labels, objective `{objective}`. If you need good embeddings today, take
a pretrained sentence encoder.

## Training

Text: {corpus}

{step:,} steps, {tokens:,} tokens, {flops:.3g} FLOPs, {minutes:.0f} minutes; commit {commit}.

## Health

{health}

## Scores beside their floors

{scores}

## Use

{uses}

## Citation

```bibtex
@misc{{nanoconcept,
  title = {{nanoconcept: concept encoders, trained, judged and compared}},
  note = {{Model {run_id}, commit {commit}}},
  year = {{{year}}}
}}
```
"""


def scores(run: LoadedRun, folder: Path) -> tuple[list[dict], list[str]]:
    """(a row for each task and split of the run's zero-shot records, their protocols in words)."""
    rows, protocols = [], []
    for path in sorted(folder.glob("eval/zero_shot_*.json")):
        with suppress(UserError, LookupError, TypeError):  # damaged, or of other code
            record = read_json(path, "an evaluation")
            if (record["run_id"], record["checkpoint"]) != (run.config["run_id"], f"ckpt_{run.step}"):
                continue
            for split, judged in record["splits"].items():
                metric, lift = headline(judged)
                best = judged[lift]["best_floor"]["floor"]
                of = {"metric": metric.replace("_", " "), "score": f"{100 * judged['metrics'][metric]:.1f}"}
                of |= {"best floor": f"{100 * judged['floors'][best][metric]:.1f} ({best})"}
                of |= {"the same model, untrained": f"{100 * judged['floors']['untrained'][metric]:.1f}"}
                rows.append({"task": record["task"], "split": split} | of | {"it is": judged["verdict"]})
            known = {key: value for key, value in record["protocol"].items() if value not in (None, 0, "none")}
            protocols.append(f"{record['task']}: {json.dumps(known)}")
    return rows, protocols


def headline(judged: dict) -> tuple[str, str]:
    """(metric, the key of its lift) that the verdict is of: its last one."""
    for metric, lift in (("pearson_adapted", "lift_adapted"), ("order_concepts", "lift_concepts")):
        if metric in judged["metrics"] and lift in judged:
            return metric, lift
    return "accuracy", "lift"


def corpus_in_words(run: LoadedRun, licence: str) -> str:
    folder, about = Path(run.config.get("data_dir") or ROOT / "data") / run.config.get("dataset", ""), {}
    with suppress(UserError):
        about = read_json(folder / "meta.json", "the prepared text")
    said = f"`{run.config.get('dataset')}`"
    if about.get("tokenizer_hash") == run.config["tokenizer_hash"] and "train_tokens" in about:
        files = [*about.get("files", [])]
        named = ", ".join(files[:8]) + (" and more" if len(files) > 8 else "")
        said += f", {about['train_tokens']:,} tokens{f' of {named}' if named else ''}"
    return f"{said}. Licence of the text: {licence or 'not stated by who exported this'}."


def health(records: list[dict]) -> str:
    """Of a run's metrics: what its last evaluation says."""
    if not (judged := [record for record in records if "verdict" in record]):
        return "Not judged: the run has no evaluation."
    last = judged[-1]
    numbers = [f"{key} {last[key]:.3g}" for key in ("input_share", "rank_slot_centred", "rank_pooled") if key in last]
    said = f"Step {last['step']:,}: {last['verdict']} ({', '.join(numbers)})"
    return f"{said}; {last['learned']}." if "learned" in last else f"{said}."


def score_table(run: LoadedRun, folder: Path) -> str:
    rows, protocols = scores(run, folder)
    if not rows:
        return "None: `python eval_glue.py --run=RUN` was not run before the export."
    about = (
        "Zero-shot, x100. Floors are treated as the model is; what is not above its best floor adds nothing to that."
    )
    return "\n".join([dict_table(rows), "", about, "", *(f"* {protocol}" for protocol in protocols)])


def card(run: LoadedRun, folder: str, name: str, licence: str, formats: list[str], alone: bool, said: str) -> str:
    """Markdown. folder: the run's; name: by which the model is loaded; alone: does AutoTokenizer give the run's ids?
    said: what was measured while it was exported."""
    c, records = run.config, [record for record in RunFolder(folder).metrics() if record["step"] <= run.step]
    trained = next((record for record in reversed(records) if "flops" in record), {})
    values = {"name": name, "hidden": c["hidden"], "count": run.count}
    uses = {
        title: code for title, code in USES.items() if "sentence_transformers" in formats or "sentence-" not in title
    }
    uses = [f"{title.format(**values)}:\n\n```python{code.format(**values)}\n```" for title, code in uses.items()]
    if not alone:
        uses.append("AutoTokenizer does not cut sentences as training did, so its ids differ; the other ways do.")
    if "onnx" in formats:
        uses.append('With onnxruntime and tokenizers alone, in this folder: `python example.py "one text" "another"`')
    return CARD.format(
        **values,
        **{key: c[key] for key in ("run_id", "encoder", "objective")},
        library="sentence-transformers" if "sentence_transformers" in formats else "transformers",
        parameters=run.model.num_parameters(),
        longest=run.max_length,
        corpus=corpus_in_words(run, licence),
        step=run.step,
        tokens=trained.get("tokens", 0),
        flops=trained.get("flops", 0.0),
        minutes=trained.get("seconds", 0) / 60,
        commit=c.get("commit") or "unknown",
        health=health(records),
        scores=score_table(run, Path(folder)),
        uses="\n\n".join([*uses, *([said] if said else [])]),
        year=c["run_id"].split("_")[-2][:4],
    )


def push(folder: Path, name: str, token: str):
    """Uploads the folder as the model ORG/NAME of the Hugging Face Hub."""
    import huggingface_hub

    try:
        hub = huggingface_hub.HfApi(token=token)
        hub.create_repo(name, exist_ok=True)
        hub.upload_folder(folder_path=folder, repo_id=name, commit_message="Export by nanoconcept")
    except Exception as error:  # of networks and of the service: any
        what = f"{folder} is whole, but was not pushed to {name} ({reason(error)})"
        raise UserError(f"{what}; once the Hub can be reached: hf upload {name} {folder}") from None


def check_push(name: str) -> str:
    """The token with which to push. UserError where that cannot work."""
    try:
        import huggingface_hub
        from huggingface_hub.constants import HF_HUB_OFFLINE
    except ImportError:
        raise UserError("huggingface_hub is not installed; pip install huggingface_hub, or leave --push out") from None
    if HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set; leave --push out, and later: hf upload ORG/NAME DIR")
    if name.count("/") != 1 or not all(part.strip("-._").isascii() and part for part in name.split("/")):
        raise UserError(f"--push={name} is no model of the Hub; write --push=ORG/NAME")
    if not (token := huggingface_hub.get_token()):
        raise UserError("no token of the Hugging Face Hub is there; write: hf auth login (or set HF_TOKEN)")
    return token

"""What a finished run prints: losses beside their floors, geometry, retrieval, reconstructions."""

import torch
from torch import Tensor

import geometry
from lab.data.corpus import Corpus
from lab.data.tokenizers import load_tokenizer
from lab.report import table
from lab.runs import LoadedRun
from lab.training.run_folder import ROWS
from lab.training.validation import Validation, learned


def final_table(numbers: dict[str, float], validation: Validation, train: Corpus, val: Corpus) -> str:
    """A Markdown table of the losses of an evaluation beside those of guessing without reading the text."""
    objectives, floors = validation.objectives, validation.floors(train, val)
    titles = {f"val_loss_{n}": f"validation loss, rows of {n}" for n in validation.lengths}
    for part, own in zip(objectives.parts, objectives.names, strict=True):
        unit = "" if part.unit == "nats" else f" ({part.unit})"
        titles[f"val_loss_{own}"] = f"of it {part.name}{unit}, longest rows"
        titles |= {f"val_loss_{name}": f"validation loss, {name}, longest rows" for name in part.reported()}
    rows = [[title, numbers[key], floors[key]] for key, title in titles.items() if key in floors]
    if "delta_shuffle" in numbers:
        rows.append(["added by another row's concepts, longest rows", numbers["delta_shuffle"], 0.0])
    kinds = dict.fromkeys(part.floor_name for part in objectives.parts)
    return table([objectives.unit, "loss", ", ".join(kinds)], rows)


@torch.no_grad()
def reconstructions(validation: Validation, tokenizer, rows: int = 3) -> str:
    """Held-out rows of the shortest length: the text, what the encoder read of it, what the decoder predicted; "" if
    the model has no decoder."""
    model, n = validation.model, validation.lengths[0]
    if (part := validation.decoded()) is None:
        return ""
    problem = validation.problem(part, validation.batches_of(part, n)[0])
    model.eval()
    concepts = model.encode(problem.source, problem.source_pos)[:rows]
    predicted = model.generate(concepts, problem.targets.shape[1], continues=problem.continues)  # [rows, T]
    model.train()
    kinds = {"text": problem.targets, "read": problem.source, "predicted": predicted}
    lines = []
    for i in range(rows):
        lines += [f"  {name + ':':<11}{one_line(tokenizer, ids[i])}" for name, ids in kinds.items()] + [""]
    return "\n".join(lines)


def one_line(tokenizer, ids: Tensor) -> str:
    """ids [n] -> text in one line, special tokens included."""
    return " ".join(tokenizer.decode(ids.tolist(), skip_special_tokens=False).split())


def final_report(trainer, retrieval: bool) -> str:
    """The text that a finished run prints. retrieval: with the retrieval table."""
    validation, tokenizer = trainer.validation, load_tokenizer(trainer.val_text.folder / "tokenizer.json")
    parts = [final_table(trainer.numbers, validation, trainer.train_text, trainer.val_text)]
    parts.append(geometry.line(trainer.numbers, trainer.model.config.concepts))
    parts[-1] += f"\nlearned: {learned(trainer, trainer.numbers)['learned']}"
    if retrieval and not trainer.signals.received:
        from lab.evaluation.retrieval import retrieval_table  # late: scipy

        run = LoadedRun(
            trainer.model.eval(), tokenizer, trainer.out.config(), trainer.step, trainer.out.load_tensor(ROWS)
        )
        run.warned = True  # of texts in chunks: the table says it
        parts.append(retrieval_table(run, trainer.val_text))
    if texts := reconstructions(validation, tokenizer):
        parts.append(f"held-out rows (text, what of it the encoder read, what was predicted):\n\n{texts}".rstrip())
    parts.append(f"run: {trainer.out.path} (curves.png, geometry.png, metrics.jsonl)")
    return "\n" + "\n\n".join(parts)

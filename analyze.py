"""
Analyses a run: did it collapse, what is each of its concepts worth, does its decoder use them?

    python analyze.py --run=out/quickstart             # RUN/analysis/: report.html, metrics.json, pictures
    python analyze.py --run=out/quickstart --quick     # a health check: one line per finding, exit code 3 if there is
                                                       # one; and one line about what was learned
    python analyze.py --run=out/quickstart --capacity  # also: reconstruction from concepts optimised for the decoder
    python analyze.py --compare out/A out/B            # side by side on the same texts: out/A/analysis/compare/

Numbers are computed on rows of the validation text that are kept in the run folder (shortest row length), beside those
of the untrained twin: the same model before training. Attention, neighbours and probes use sentences of the validation
text if the prepared data are available, else the same rows.
"""

from lab import command  # isort: skip  (first: it tells an older Python)
import json
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

import geometry
from lab import report
from lab.analysis import attention, probes, rate, words
from lab.analysis import measure as analysis
from lab.analysis.measure import Analysis, analyse, capacity, evaluator_of, nearest, numbers_of, same_texts, samples
from lab.command import log
from lab.configurator import PathStr, parse
from lab.files import locked, write_atomic
from lab.runs import LoadedRun, OneRun
from lab.training.run_folder import RunFolder
from lab.training.validation import Evaluator
from objectives import Bounds

ROOT = Path(__file__).resolve().parent
ROWS = 512
QUICK = 128, 32  # rows, and tokens of each, of the health check: seconds for six layers on a CPU
POOL, READ, PLOTTED, NEAR = 8000, 500, 1500, 10  # sentences: for probes, for attention, for neighbours, listed
LONG, WATCHED = 64, 32  # of rows as long as this, so many show which part of them each concept reads
SHOWN = 8  # concepts whose attention to a sentence is shown: those of largest variance over texts


@dataclass
class AnalyzeConfig(OneRun):
    quick: Annotated[bool, "only the health check: one line per finding, exit code 3 if there is one"] = False
    compare: Annotated[tuple[PathStr, ...], "several run folders instead of --run, side by side on the same texts"] = ()
    capacity: Annotated[bool, "also optimise concepts for the frozen decoder: how well it could reconstruct"] = False
    probes: Annotated[int, "texts per linear probe; 0: no probes", Bounds(0)] = 1000
    data_dir: Annotated[PathStr, "where the prepared data are; empty: where the run had them"] = ""

    def __post_init__(self):
        if self.compare:
            if len(self.compare) < 2 or self.run or self.quick or len({*map(Path, self.compare)}) < len(self.compare):
                raise ValueError("--compare takes two different run folders or more, and neither --run nor --quick")
            self.run = self.compare[0]
        super().__post_init__()


# ---------------------------------------------------------------------------------------------------------------------
# The health check

ADVICE = (  # beginning of a finding, what to try
    ("slots are static", "init=fan_in_positions, spectral tokens, or an objective that needs the text: tsdae"),
    ("slots are duplicates", "fewer concepts, or concept_position=learned"),
    ("one direction", "tsdae + bow in the place of contrastive or bow alone; whitening=0.25 when texts are compared"),
    ("decoder ignores", "a higher mask_rate or delete_rate, visible_only=True, spectral tokens, or decoder=posonly"),
    ("decoder gains", "longer training, spectral tokens, or an objective that needs the text: tsdae"),
    ("", "fewer concepts, a lower learning rate, or longer training"),
)


def not_finite(run: LoadedRun, whole: Tensor) -> list[str]:
    """A finding if weights or concepts [B, C, H] are not finite."""
    broken = [name for name, tensor in run.model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        return [f"{len(broken)} tensors are not finite, {broken[0]} first; go back to another --ckpt"]
    if not whole.isfinite().all():
        return ["concepts are not finite, though all weights are; go back to another --ckpt, train at a lower rate"]
    return []


def findings(run: LoadedRun, numbers: dict) -> list[str]:
    """What is unhealthy and what to try, one line each."""
    found = [] if numbers["verdict"].startswith("not collapsed") else numbers["verdict"].split("; ")
    gain = numbers.get("delta_mean", geometry.IGNORED_NATS)
    if gain < geometry.IGNORED_NATS and not any(what.startswith("decoder ignores") for what in found):
        found.append(f"decoder gains nothing by the concepts: their mean over texts costs it {gain:.3f} nats")
    if count := numbers["collapsed_dimensions"]:
        found.append(f"{count} of {run.config['hidden']} dimensions hardly change with the text")
    return [f"{what}; try {next(text for start, text in ADVICE if what.startswith(start))}" for what in found]


# ---------------------------------------------------------------------------------------------------------------------
# The page

NUMBERS = {  # key -> name, explanation
    "input_share": ("input share", "share of the concepts' variance that the text makes; 0: they are constants"),
    "rank_slot_centred": ("slot-centred rank", "directions that a text's concepts use for what is its own"),
    "rank_raw": ("raw rank", "the same with what all texts share"),
    "rank_pooled": ("pooled rank", "directions that tell texts apart"),
    "dead_slots": ("dead slots", "concepts that hardly change with the text"),
    "collapsed_dimensions": ("collapsed dimensions", "of the pooled vector: they hardly change with the text"),
    "halves": (
        "nearer halves (good: clearly above untrained)",
        "share of other rows' halves to which half a row is less similar than to its own other half; chance: 0.5",
    ),
    "halves_error": ("standard error of nearer halves", "of that mean over rows"),
    "delta_shuffle": ("loss rise with another text's concepts", "in nats: what its own are worth to the decoder"),
    "delta_mean": ("loss rise with mean concepts", "in nats: the mean over all texts"),
    "delta_zero": ("loss rise with zeros", "in nats"),
    "bits": ("bits a concept", "what all concepts save the decoder, for each"),
    "sim_mean": ("mean cosine", "of two concepts of a text, without sign"),
    "sim_max": ("largest cosine", "of two concepts of a text"),
}


ABOUT = {  # section -> introduction
    "Training": "Losses beside those of guessing without the text, and the geometry of the concepts, over steps.",
    "Reconstructions": """Held-out rows, predicted from their concepts; words with a wrong token at its place are red.
    Teacher-forced: each token after the true ones before it; free-running: after the decoder's own.""",
    "What each concept reads and does": """Attention to the tokens of {texts} texts, mean over heads and reads. What
    tells a concept apart: the tokens and the type of tokens that it reads more than the others do (x so much), and
    where. Variance: 1 on average. Loss rise: nats, when the concept becomes its mean over texts. Below: three
    sentences, each token as dark as the attention to it.""",
    "Nearest texts": """The nearest of {texts} texts and its centred cosine, beside the nearest by word TF-IDF. Both are
    the same for {same}. What is near without sharing words, only the concepts can know.""",
    "Geometry of the concepts": """Singular values, largest first: of a text's slot-centred concepts, mean over texts;
    of the pooled ones, over texts. The slower they fall, the higher the rank. Cosines: which concepts are alike.""",
    "Linear probes of the frozen concepts": """Share of held-out texts whose class a linear classifier of all concepts
    tells, x100 [95 % interval]. What a bag of words or the untrained model tells too was not learned in training.""",
    "What the concepts could hold": """Concepts of 32 texts optimised against the frozen decoder, from the encoder's on:
    what they could tell it at least. Loss: nats a token; then shares of right tokens; bits: what a concept saves of the
    loss with the mean ones. Share: what of the way from the mean concepts to the optimised ones the encoder goes.""",
}


def good_ranges(one: Analysis) -> dict[str, tuple[float, float]]:
    """Key -> (lowest, highest) value that is good."""
    C, H, rows = (
        len(one.shape["variance"]),
        one.run.config["hidden"],
        sum(len(batch.ids) for batch in one.evaluator.fixed),
    )
    low, used = geometry.low_rank(C), (geometry.IGNORED_NATS, math.inf)
    ranges = {"rank_slot_centred": (low, C), "rank_raw": (low, C), "rank_pooled": (low, min(rows - 1, H))}
    ranges |= {"input_share": (geometry.STATIC_SHARE, math.inf), "dead_slots": (0, 0), "collapsed_dimensions": (0, 0)}
    return ranges | {"delta_shuffle": used, "delta_mean": used}


def in_words(least: float, most: float) -> str:
    """A range in words."""
    return f"{least:g}" if least == most else f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"


def sentence(name: str, one: Analysis, found: list[str]) -> str:
    """The verdict on a run: what is wrong, or how its concepts are used; and what it learned."""
    numbers, C = one.numbers, len(one.shape["variance"])
    learned = f"Learned: {numbers['learned']}."
    if found:
        return f"{name}: {'. '.join(found)}. {learned}"
    said = f"{name}: {numbers['verdict']}. For what differs between texts its {C} concepts use "
    said += f"{numbers['rank_slot_centred']:.1f} of {C} directions; {numbers['input_share']:.0%} of their variance is "
    use = f"; with another text's concepts the loss rises by {numbers.get('delta_shuffle', 0):.2f} nats"
    return f"{said}due to the text{use * ('delta_shuffle' in numbers)}. {learned}"


class Page:
    """A report of models side by side: a run and its untrained twin, or several runs."""

    def __init__(self, columns: dict[str, Analysis], shown: dict[str, RunFolder], texts: list[str], folder: Path):
        """columns: name -> model; shown: name -> folder, of the trained runs among them, which get details."""
        self.columns, self.shown, self.texts, self.folder, self.parts = columns, shown, texts, folder, []
        self.record = {name: one.record for name, one in columns.items()}

    def section(self, title: str, **values):
        self.parts.append(report.heading(title))
        self.note(ABOUT[title].format(**values))

    def note(self, text: str):
        self.parts.append(report.paragraphs([text]))

    def table(self, rows: list[dict]):
        self.parts += [report.html_table(*report.columns(rows))] if rows else []

    def picture(self, name: str, draw, *args, **keys):
        """Adds a picture of lab/report.py, as NAME.png in the folder."""
        self.parts.append(report.picture(draw(*args, self.folder / f"{name}.png", **keys)))

    def each_run(self):
        """Yields (name, model) of the trained runs, with a heading if there are several."""
        for name in self.shown:
            self.parts += [report.heading(name, 3)] * (len(self.shown) > 1)
            yield name, self.columns[name]

    def html(self, title: str, source: str, found: dict[str, list[str]], probes: int, capacity: bool) -> str:
        """The whole page. found: findings of each run; source: where the texts come from."""
        self.training()
        self.reconstructions()
        self.reading()
        self.neighbours()
        self.spectra()
        if probes:
            self.probing(probes)
        if capacity:
            self.capacity_section()
        sections, self.parts = self.parts, []
        self.numbers()
        runs = [self.columns[name] for name in self.shown]
        fixed, steps = runs[0].evaluator.fixed, (f"{one.run.config['run_id']} ckpt_{one.run.step}" for one in runs)
        about = f"{', '.join(steps)}. Numbers: {sum(len(batch.ids) for batch in fixed)} rows of "
        about += f"{fixed[0].ids.shape[1]} tokens that the run keeps, every token counting alike. Texts: {source}."
        names = [*self.shown] if len(runs) > 1 else [title]
        said = [(sentence(*row), not row[2]) for row in zip(names, runs, found.values(), strict=True)]
        return report.page(title, said, about, self.parts + sections)

    def numbers(self):
        """The table of numbers; called last, since the sections add numbers."""
        runs = {name: self.columns[name].run for name in self.shown}
        if len({run.config["tokenizer_hash"] for run in runs.values()}) > 1:
            self.note("The runs have different tokenizers: their nats and bits a token do not compare.")
        if untrained := [name for name, run in runs.items() if not run.step]:
            self.note(f"{', '.join(untrained)}: at step 0, so all that is shown is of first weights.")
        ranges, rows = {name: good_ranges(one) for name, one in self.columns.items()}, []
        measured = {key for record in self.record.values() for key in record}
        for key, (name, text) in ((key, NUMBERS[key]) for key in NUMBERS if key in measured):
            good = ", ".join(dict.fromkeys(in_words(*own[key]) for own in ranges.values() if key in own))
            rows.append({"number": report.Html(f"{name}{good and f' (good: {good})'}<br><small>{text}</small>")})
            for column, record in self.record.items():
                value, (least, most) = record.get(key), ranges[column].get(key, (-math.inf, math.inf))
                shown = "-" if value is None else f"{value:.3g}"
                rows[-1][column] = report.marked([(shown, value is not None and not least <= value <= most)])
        self.table(rows)

    def training(self):
        """The curves drawn in training, and the configuration, keys that differ between runs first."""
        self.section("Training")
        for name, _ in self.each_run():
            paths = [self.shown[name].path / f"{file}.png" for file in ("curves", "geometry", "weights")]
            self.parts += [report.picture(path) for path in paths if path.is_file()]
        configs = {name: folder.config() for name, folder in self.shown.items()}
        keys = dict.fromkeys(key for config in configs.values() for key in config)
        rows = [{"key": key} | {name: json.dumps(own.get(key)) for name, own in configs.items()} for key in keys]
        rows.sort(key=lambda row: len({*row.values()}) == 2)
        self.parts.append("<details><summary>Configuration</summary>")
        self.table(rows)
        self.parts.append("</details>")

    def reconstructions(self):
        self.section("Reconstructions")
        for _, one in self.each_run():
            said, rows = samples(one.run, one.evaluator)
            self.note(said)
            self.table(rows)

    def reading(self):
        texts = self.texts[:READ]
        self.section("What each concept reads and does", texts=len(texts))
        for name, one in self.each_run():
            read = attention.attention(one.run, texts)
            if read is None:
                self.note(f"{name}: its concepts do not attend to the tokens themselves, there is nothing to show.")
            self.each_concept(one, read)
        self.where_it_reads()
        uses = {name: one.use for name, one in self.columns.items() if one.use}
        for name in self.columns.keys() - uses.keys():
            self.note(f"{name}: no position is decoded, so nothing says what a concept is worth there.")
        if uses:
            curves = {name: (use["position"], use["delta_shuffle"]) for name, use in uses.items()}
            self.picture("positions", report.lines, curves, "position", "loss rise, another text's concepts")

    def where_it_reads(self):
        """Which part of its longest rows each concept reads."""
        maps = {}
        for name in self.shown:
            own = self.columns[name].run
            rows = rate.validation_rows(own, own.max_length, WATCHED) if own.max_length >= LONG else None
            if rows is not None and (read := attention.attention_of(own, rows.tolist())):
                maps[f"{name}, {own.max_length:,} tokens"] = attention.by_position(read)
        if maps:
            labels = {"xlabel": "part of the row", "ylabel": "concept"}
            self.picture("where", report.heatmaps, maps, limits=(0, 2), what="attention, 1: even", **labels)

    def each_concept(self, one: Analysis, read: attention.Attention | None):
        """A row per concept, and the attention of the concepts of largest variance to three sentences."""
        spelt, variance = words.Words(one.run.tokenizer), one.shape["variance"]
        rows = [{"concept": str(c)} for c in range(len(variance))]
        if read:
            types = attention.type_shares(one.run, read)
            kinds, every = (types - types.mean(0)).argmax(1).tolist(), types.mean(0)
            places = (read.weights * torch.arange(read.weights.shape[2])).sum(2).mean(0).tolist()
            for c, tokens in enumerate(attention.top_tokens(read, one.run.model.config.vocab_size)):
                kind = f"{words.TYPES[kinds[c]]} {types[c, kinds[c]]:.0%} (all: {every[kinds[c]]:.0%})"
                rows[c]["tokens"] = " · ".join(f"{spelt.pieces[t]} x{v:.1f}" for t, v in tokens)
                rows[c] |= {"type of tokens": kind, "mean position": f"{places[c]:.1f}"}
        for c, row in enumerate(rows):
            row["variance"] = f"{variance[c] / variance.mean().clamp_min(1e-30):.2f}"
            row |= {"loss rise without it": f"{one.use['knock_out'][c]:.2f}"} if one.use else {}
        self.table(rows)
        most = variance.topk(min(SHOWN, len(variance))).indices.sort().values.tolist()
        for i, ids in enumerate(read.ids[:3] if read else ()):
            tokens = [" " * begins + spelt.pieces[t] for t, begins in zip(ids, spelt.begins(ids), strict=True)]
            weights = [(f"concept {c}", read.weights[i, c, : len(ids)].tolist()) for c in most]
            self.parts.append(report.shaded(tokens, weights))

    def neighbours(self):
        texts, near = self.texts[:PLOTTED], {}
        for name, one in self.columns.items():
            vectors = one.run.embed(texts, adapt_to=texts).double()
            near[name] = nearest(vectors - vectors.mean(0))
        lexical = nearest(torch.from_numpy(words.tfidf(texts)))
        same = [sum(a[0] == b[0] for a, b in zip(own, lexical, strict=True)) / len(texts) for own in near.values()]
        same = ", ".join(f"{share:.0%} ({name})" for name, share in zip(near, same, strict=True))
        self.section("Nearest texts", texts=len(texts), same=same)
        near["word TF-IDF"] = lexical
        rows = [
            {"text": text} | {k: f"{texts[own[i][0]]} ({own[i][1]:.2f})" for k, own in near.items()}
            for i, text in enumerate(texts[:NEAR])
        ]
        self.table(rows)

    def spectra(self):
        self.section("Geometry of the concepts")
        shapes = {name: {key: x.tolist() for key, x in one.shape.items()} for name, one in self.columns.items()}
        for name in [name for name, shape in shapes.items() if len(shape["similarity"]) == 1]:
            self.note(f"{name}: a single concept has no other that it could resemble.")
        for key, what in (("spectrum", "concepts of a text"), ("pooled", "pooled concepts")):
            curves = {name: (range(1, len(shape[key]) + 1), shape[key]) for name, shape in shapes.items()}
            self.picture(key, report.lines, curves, "direction", f"singular value, {what}")
        self.picture("similarity", report.heatmaps, {name: shape["similarity"] for name, shape in shapes.items()})

    def probing(self, count: int):
        self.section("Linear probes of the frozen concepts")
        embedders = {name: one.run.all_concepts for name, one in self.columns.items()}
        rows = []
        for record in self.record.values():
            record["probes"] = {}
        for name, probe in probes.probes(self.texts, count).items():
            if probe is None:
                self.note(f"{name}: too few of the texts can answer it.")
                continue
            scores = probes.score(probe, embedders)
            majority, *others = scores.values()
            rows.append({"question": f"{name}: {probe.about}", "asked of": int(probe.test.sum())})
            rows[-1] |= {"commonest class": (majority,)} | dict(zip(("bag of words", *embedders), others, strict=True))
            floors = {"majority": majority, "bag_of_words": scores["bag_of_words"]["value"]}
            for column in embedders:
                self.record[column]["probes"][name] = floors | scores[column]
        self.table(rows)

    def capacity_section(self):
        self.section("What the concepts could hold")
        for name, one in self.each_run():
            if one.run.model.decoder is None:
                self.note(f"{name}: there is no decoder, so nothing says what its concepts could hold.")
                continue
            found = capacity(one.run, one.evaluator.fixed[0].ids[:32].to(one.run.device))
            self.record[name]["capacity"] = found
            self.table([{"concepts": kind} | values for kind, values in found.items()])


# ---------------------------------------------------------------------------------------------------------------------
# The command


def checked(run: LoadedRun, path: str, rows: Tensor, quick: bool) -> tuple[Analysis | None, list[str], list[str]]:
    """(measurements, None if `quick` or not finite; findings; the lines to print)."""
    evaluator = (
        evaluator_of(run, rows[: QUICK[0], : QUICK[1]], QUICK[0], QUICK[0] // 2) if quick else evaluator_of(run, rows)
    )
    whole = evaluator.whole()
    if wrong := not_finite(run, whole):
        return None, wrong, wrong
    one = None if quick else analyse(run, evaluator, whole)
    numbers = numbers_of(evaluator, whole, least=QUICK[0], batches=1) if quick else one.numbers
    numbers["learned"] = analysis.learned(run, evaluator, numbers, RunFolder(path).metrics())
    wrong = findings(run, numbers)
    return one, wrong, [*(wrong or ["not collapsed"]), f"learned: {numbers['learned']}"]


def main(argv) -> int:
    parsed = parse(argv, AnalyzeConfig, prog="analyze.py", doc=__doc__, root=ROOT, positional=False)
    config = parsed.make(AnalyzeConfig)
    runs = {path: config.load(path) for path in config.compare} or {"trained": config.load()}
    folder = Path(config.run) / "analysis" / ("compare" if config.compare else "")
    with nullcontext() if config.quick else locked(folder, "analyse a copy of the run folder"):
        return report_on(config, runs, folder)


def report_on(config: AnalyzeConfig, runs: dict[str, LoadedRun], folder: Path) -> int:
    """Measures runs, prints the findings and, without --quick, writes the report -> exit code."""
    columns, found, told = {}, {}, []
    for (name, run), rows in zip(runs.items(), same_texts([*runs.values()], ROWS), strict=True):
        path = name if config.compare else config.run
        columns[name], found[name], lines = checked(run, path, rows, config.quick)
        told += [f"{name}: {line}" if config.compare else line for line in lines]
    print("\n".join(told))
    if None in columns.values():
        return 3 if any(found.values()) else 0
    shown = {name: RunFolder(name if config.compare else config.run) for name in columns}
    first = next(iter(columns.values()))
    if not config.compare:
        untrained = first.run.twin(first.run.config.get("seed", 0))
        evaluator = Evaluator(
            untrained.model,
            first.evaluator.objectives,
            first.evaluator.vocab,
            first.evaluator.world,
            first.evaluator.fixed,
        )
        columns["untrained"] = analyse(untrained, evaluator, evaluator.whole())
    if config.data_dir:
        first.run.config["data_dir"] = config.data_dir
    texts, source = first.run.held_out(POOL)
    page = Page(columns, shown, texts, folder)
    title = ", ".join(run.path.resolve().name for run in shown.values())
    text = page.html(title, source, found, config.probes, config.capacity)
    names = dict.fromkeys(name for record in page.record.values() for name in record)
    record = {name: {column: one.get(name) for column, one in page.record.items()} for name in names}
    write_atomic(folder / "metrics.json", json.dumps(record, indent=1) + "\n")
    write_atomic(folder / "report.html", text)
    log(f"{folder}: report.html, metrics.json")
    return 0


if __name__ == "__main__":
    command.command(main)

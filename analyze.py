"""
Did a model collapse, what is each of its concepts worth, and does its decoder use them?

    python analyze.py --run=out/quickstart             # RUN/analysis/: report.html, metrics.json, pictures
    python analyze.py --run=out/quickstart --quick     # a health check: a line a finding; exit code 3 if there is one;
                                                       # and a line of what was learned, which changes no exit code
    python analyze.py --run=out/quickstart --capacity  # also: how much of what its concepts could hold they do hold
    python analyze.py --compare out/A out/B            # side by side, the same texts: out/A/analysis/compare/

Numbers are of rows of the validation text that the run folder keeps (its shortest row length), and beside each stands
that of the untrained twin: the same model as it began. Attention, topics, neighbours and probes take sentences of the
validation text where the prepared data are, else those rows too.
"""

from lab import command  # isort: skip  (first: it tells an older Python)
import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

import geometry
from lab import analysis, attention, probes, report, words
from lab.analysis import Analysis, analyse, between, capacity, judge_of, nearest, numbers_of, same_texts, samples
from lab.command import say
from lab.configurator import PathStr, parse
from lab.files import locked, write_atomic
from lab.runs import LoadedRun, OneRun, RunFolder
from lab.validation import Judge

ROOT = Path(__file__).resolve().parent
ROWS = 512
QUICK = 128, 32  # rows, and tokens of them, of the health check: seconds for six layers on a CPU
POOL, READ, PLOTTED, NEAR = 8000, 500, 1500, 10  # sentences: probes choose among, attention reads, pictures show
SHOWN = 8  # concepts whose attention to a sentence is shown: those that change most with the text
LIKELY = 0.05  # p below: a concept prefers a class of words


@dataclass
class AnalyzeConfig(OneRun):
    quick: Annotated[bool, "only the health check: a line a finding, exit code 3 if there is one"] = False
    compare: Annotated[
        tuple[PathStr, ...], "several run folders in place of --run, side by side on the same texts"
    ] = ()
    capacity: Annotated[bool, "also optimise concepts against the frozen decoder: the most they could hold"] = False
    probes: Annotated[int, "texts of each linear probe; 0: no probes"] = 1000
    data_dir: Annotated[PathStr, "where the prepared data are; empty: where the run had them"] = ""

    def __post_init__(self):
        if self.compare:
            if len(self.compare) < 2 or self.run or self.quick or len({*map(Path, self.compare)}) < len(self.compare):
                raise ValueError("--compare takes two different run folders or more, and neither --run nor --quick")
            self.run = self.compare[0]
        super().__post_init__()
        if self.probes < 0:
            raise ValueError(f"probes = {self.probes} is negative; write 0 for none")


# ---------------------------------------------------------------------------------------------------------------------
# The health check

ADVICE = (  # how a finding begins, what to try
    ("slots are static", "init=fan_in_positions, spectral tokens, or an objective that needs the text: tsdae"),
    ("slots are duplicates", "fewer concepts, or concept_position=learned"),
    ("one direction", "tsdae + bow in the place of contrastive or bow alone; whitening=0.25 when texts are compared"),
    ("decoder ignores", "a higher mask_rate or delete_rate, visible_only=True, spectral tokens, or decoder=posonly"),
    ("decoder gains", "longer training, spectral tokens, or an objective that needs the text: tsdae"),
    ("", "fewer concepts, a lower learning rate, or longer training"),
)


def not_finite(run: LoadedRun, whole: Tensor) -> list[str]:
    """A line if weights are not, or concepts [B, C, H]."""
    broken = [name for name, tensor in run.model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        return [f"{len(broken)} tensors are not finite, {broken[0]} first; go back to another --ckpt"]
    if not whole.isfinite().all():
        return ["concepts are not finite, though all weights are; go back to another --ckpt, train at a lower rate"]
    return []


def findings(run: LoadedRun, numbers: dict) -> list[str]:
    """What is unhealthy, a line each, with what to try."""
    found = [] if numbers["verdict"].startswith("not collapsed") else numbers["verdict"].split("; ")
    gain = numbers.get("delta_mean", geometry.IGNORED_NATS)
    if gain < geometry.IGNORED_NATS and not any(what.startswith("decoder ignores") for what in found):
        found.append(f"decoder gains nothing by the concepts: their mean over texts costs it {gain:.3f} nats")
    if count := numbers["collapsed_dimensions"]:
        found.append(f"{count} of {run.config['hidden']} dimensions hardly change with the text")
    return [f"{what}; try {next(text for start, text in ADVICE if what.startswith(start))}" for what in found]


# ---------------------------------------------------------------------------------------------------------------------
# The page

DEFINED = {
    "rank_slot_centred": "directions that a text's concepts use for what is its own; at most the number of concepts",
    "rank_raw": "the same with what all texts share",
    "rank_pooled": "directions that tell texts apart",
    "input_share": "share of the concepts' variance that the text makes; 0: they are constants",
    "dead_slots": "concepts that hardly change with the text",
    "collapsed_dimensions": "dimensions of the pooled vector that hardly change with the text",
    "sim_mean": "mean cosine, without sign, of two concepts of a text",
    "sim_max": "the largest cosine of two concepts of a text",
    "delta_shuffle": "nats that another text's concepts cost",
    "delta_zero": "nats that zeros in the place of the concepts cost",
    "delta_mean": "nats that the mean concepts cost",
    "bits": "bits that a concept carries: what all of them save, for each",
    "class_preference": "how far a concept's attention to the classes of words is, 0 to 1, from what it would give "
    "to another text's words at the same places; mean over concepts",
    "specialised": f"concepts that prefer a class of words (p below {LIKELY}); untrained ones do too, by their tokens",
    "halves": "share of other rows' halves to which half a row is less similar than to its own other half; chance: 0.5",
    "halves_error": "the standard error of that",
    "verdict": "in words",
    "learned": "what training added, in words",
}


class Page:
    """A report of several models side by side: of a run and its untrained twin, or of several runs."""

    def __init__(self, columns: dict[str, Analysis], twin: Analysis | None, texts: words.Sentences, folder: Path):
        """columns: a name for each run, looked at closely; twin: the untrained one of a single run."""
        self.trained, self.texts, self.folder, self.parts = columns, texts, folder, []
        self.columns = columns | ({"untrained": twin} if twin else {})
        columns = self.columns
        self.record = {name: one.record for name, one in columns.items()}

    def section(self, title: str, *content: str):
        self.parts += [report.heading(title), *content]

    def note(self, text: str):
        self.parts.append(report.paragraphs([text]))

    def table(self, header: list[str], rows: list[list]):
        self.parts.append(report.html_table(header, [[*map(report.cell, row)] for row in rows]))

    def picture(self, name: str, draw, *args, **options):
        """One of report's pictures, as NAME.png in the folder."""
        self.parts.append(report.picture(draw(*args, self.folder / f"{name}.png", **options)))

    def by_trained(self, name: str) -> str:
        """A heading where there are several runs."""
        return report.heading(name, 3) if len(self.trained) > 1 else ""

    def html(self, findings: list[str], probes: int, capacity: bool) -> str:
        """The whole page."""
        self.spectra()
        self.each_concept()
        self.positions()
        self.reading()
        self.map_of_topics()
        self.reconstructions()
        if probes:
            self.probing(probes)
        if capacity:
            self.room()
        sections, self.parts = self.parts, [report.paragraphs(findings)]
        self.numbers()
        first = next(iter(self.columns.values()))
        rows, n = sum(len(batch.ids) for batch in first.judge.fixed), first.judge.fixed[0].ids.shape[1]
        steps = ", ".join(f"{one.run.config['run_id']} ckpt_{one.run.step}" for one in self.trained.values())
        if len({one.run.config["tokenizer_hash"] for one in self.trained.values()}) > 1:
            self.note("The runs have different tokenizers: their nats and bits a token do not compare.")
        if untrained := [name for name, one in self.trained.items() if not one.run.step]:
            self.note(f"{', '.join(untrained)}: at step 0, so all that is shown is of first weights.")
        about = f"{steps}. Numbers: {rows} rows of {n} tokens that the run keeps, every token counting alike. "
        title = ", ".join(self.trained) if len(self.trained) > 1 else first.run.config["run_id"]
        return report.page(title, f"{about}Texts: {self.texts.source}.", self.parts + sections)

    def numbers(self):
        """Last, for it shows what the sections found."""
        rows = [
            [name, *(record.get(name) for record in self.record.values()), text]
            for name, text in DEFINED.items()
            if any(name in record for record in self.record.values())
        ]
        self.table(["number", *self.columns, "what it says"], rows)

    def spectra(self):
        def lists(key):
            return {name: one.shape[key].tolist() for name, one in self.columns.items()}

        self.section("Singular values of a text's concepts")
        about = "slot-centred, mean over texts"
        self.picture("spectrum", report.spectra, lists("spectrum"), about)
        self.section("Singular values of the pooled concepts")
        self.picture("pooled", report.spectra, lists("pooled"), "over texts, centred")
        self.section("Which concepts resemble each other")
        for name in [name for name, one in self.columns.items() if len(one.shape["similarity"]) == 1]:
            self.note(f"{name}: a single concept has no other that it could resemble.")
        self.picture("similarity", report.heatmaps, lists("similarity"))

    def each_concept(self):
        bars = {}
        for name, one in self.trained.items():
            of, variance = f", {name}" if len(self.trained) > 1 else "", one.shape["variance"]
            bars[f"variance over texts{of}"] = (variance / variance.mean().clamp_min(1e-30)).tolist()
            bars |= {f"loss rise without it, nats{of}": one.use["knock_out"]} if one.use else {}
        self.section("What each concept does")
        self.picture("concepts", report.bars, bars, "concept")

    def positions(self):
        self.section("What the concepts are worth, by position")
        uses = {name: one.use for name, one in self.trained.items() if one.use}
        for name in self.trained.keys() - uses.keys():
            self.note(f"{name}: no position is decoded, so nothing says what a concept is worth there.")
        kinds = ("shuffle", "zero", "mean") if len(uses) == 1 else ("shuffle",)
        lines = {
            f"delta_{k}" if len(uses) == 1 else name: use[f"delta_{k}"] for name, use in uses.items() for k in kinds
        }
        if uses:
            places = next(iter(uses.values()))["position"]
            what = "loss rise, nats" if len(uses) == 1 else "delta_shuffle, nats"
            self.picture("positions", report.spectra, lines, what, places=places)

    def reading(self):
        self.section("What the concepts read")
        texts = self.texts.texts[:READ]
        self.note(
            f"Mean over heads and over all reads of the tokens, of {len(texts)} texts. In the sentences each token is "
            "as dark as the concept's attention to it; the number appears when the pointer rests on it."
        )
        for name, one in self.columns.items():
            read = attention.attention(one.run, texts)
            if read is None:
                self.note(f"{name}: its concepts do not attend to the tokens themselves, there is nothing to show.")
                continue
            own, mean, p = attention.preferences(one.run, read)
            self.record[name]["specialised"] = int((p < LIKELY).sum())
            self.record[name]["class_preference"] = 0.5 * (own - mean).abs().sum(1).mean().item()
            if name in self.trained:
                self.parts.append(self.by_trained(name))
                self.sentences(one, read)
                self.preferences(one, read, (own, mean, p))

    def sentences(self, one: Analysis, read: attention.Attention):
        """Three sentences under the concepts that change most with the text."""
        spelt = words.Words(one.run.tokenizer)
        most = one.shape["variance"].topk(min(SHOWN, len(one.shape["variance"]))).indices.sort().values.tolist()
        for i in range(min(3, len(read.ids))):
            tokens = [" " * int(spelt.starts[t]) + spelt.pieces[t] for t in read.ids[i]]
            lines = [(f"concept {c}", read.weights[i, c, : len(tokens)].tolist()) for c in most]
            self.parts.append(report.shaded(tokens, lines))

    def preferences(self, one: Analysis, read: attention.Attention, tested: tuple[Tensor, Tensor, Tensor]):
        """Top tokens of each concept, and the class of words that it prefers most."""
        self.note(
            "Top tokens: those that a concept reads most beyond what reading all positions alike would give (x so "
            "much). Class: the class of words with the largest excess over other texts as long, at the same positions, "
            f"its share of the attention, what it is there, and p of a permutation test ({attention.ROUNDS} rounds). "
            f"Classes are guessed: {words.ACCURACY:.0%} of {words.TAGGED} words tagged by hand are right."
        )
        own, mean, p = tested
        best, rows = (own - mean).argmax(1).tolist(), []
        for c, tokens in enumerate(attention.top_tokens(read, one.run.model.config.vocab_size)):
            text = ", ".join(f"{one.run.tokenizer.decode([t]).strip()} x{v:.1f}" for t, v in tokens)
            k = best[c]
            rows.append([str(c), text, f"{words.CLASSES[k]} {own[c, k]:.0%}, {mean[c, k]:.0%}", f"{p[c]:.3f}"])
        self.table(["concept", "top tokens", "class, there", "p"], rows[:64])

    def map_of_topics(self):
        """Pooled vectors in two dimensions; the nearest of some of them."""
        self.section("Texts in two dimensions, by topic")
        texts = self.texts.texts[:PLOTTED]
        topic, names = words.topics(self.texts.texts, self.texts.documents)
        self.note(
            "The two largest principal components of the pooled concepts; topics: k-means of the documents' words."
        )
        points, near = {}, {}
        for name, one in self.columns.items():
            vectors = one.run.embed(texts).double()
            vectors = vectors - vectors.mean(0)
            points[name] = (vectors @ torch.linalg.svd(vectors, full_matrices=False).Vh[:2].T).tolist()
            near[name] = nearest(vectors, NEAR)
        self.picture("topics", report.scatter, points, topic[: len(texts)].tolist(), names)
        self.section("Nearest texts")
        for name in self.trained:
            self.parts.append(self.by_trained(name))
            rows = [[texts[i], texts[j], f"{v:.2f}"] for i, (j, v) in enumerate(near[name])]
            self.table(["text", "nearest other text", "centred cosine"], rows)

    def reconstructions(self):
        for name, one in self.trained.items():
            rows, sentence = samples(one.run, one.judge)
            self.section("Reconstructions", self.by_trained(name), report.paragraphs([sentence]))
            if rows:
                self.table(["text", "what the encoder read", "teacher-forced", "free-running"], rows)
                self.note("Between two texts: decoded on the straight line between their concepts.")
                self.table(["share of the second", "decoded"], between(one.run, one.judge))

    def probing(self, count: int):
        self.section("Linear probes of the frozen concepts")
        self.note(
            "Share of held-out texts whose class a linear classifier of all concepts tells, x100, with its 95 % "
            "interval. What a bag of words or the untrained model tells as well was not learned in training."
        )
        embedders = {name: probes.concepts_of(one.run) for name, one in self.columns.items()}
        rows = []
        for record in self.record.values():
            record["probes"] = {}
        for name, probe in probes.probes(self.texts.texts, count).items():
            if probe is None:
                self.note(f"{name}: too few of the texts can answer it.")
                continue
            scores = probes.judge(probe, embedders)
            majority, *others = scores.values()
            rows.append([f"{name}: {probe.about}", int(probe.test.sum()), (majority,), *others])
            floors = {"majority": majority, "bag_of_words": scores["bag_of_words"]["value"]}
            for column in embedders:
                self.record[column]["probes"][name] = floors | scores[column]
        if rows:
            self.table(["question", "asked of", "commonest class", "bag of words", *embedders], rows)

    def room(self):
        self.section("What the concepts could hold")
        self.note(
            "Concepts of each of 32 texts optimised against the frozen decoder, from the encoder's on: so much, at "
            "least, they could tell it. Share: what of the way from the mean concepts to those the encoder goes; bits: "
            "what a concept saves of the loss with the mean ones."
        )
        for name, one in self.trained.items():
            if one.run.model.decoder is None:
                self.note(f"{name}: there is no decoder, so nothing says what its concepts could hold.")
                continue
            found = capacity(one.run, one.judge.fixed[0].ids[:32].to(one.run.device))
            self.record[name]["capacity"] = found
            rows = [[kind, *(values.get(key) for key in found["free"])] for kind, values in found.items()]
            self.parts.append(self.by_trained(name))
            self.table(["concepts", "loss, nats a token", "right, teacher-forced", "right, free-running", "bits"], rows)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def checked(run: LoadedRun, path: str, rows: Tensor, quick: bool) -> tuple[Analysis | None, bool, list[str]]:
    """What is measured of a run (None where `quick` or where it is not finite), whether something is wrong with it, and
    lines that say so, and what it learned."""
    judge = judge_of(run, rows[: QUICK[0], : QUICK[1]], QUICK[0], QUICK[0] // 2) if quick else judge_of(run, rows)
    whole = judge.whole()
    if wrong := not_finite(run, whole):
        return None, True, wrong
    one = None if quick else analyse(run, judge, whole)
    numbers = numbers_of(judge, whole, least=QUICK[0], batches=1) if quick else one.numbers
    numbers["learned"] = analysis.learned(run, judge, numbers, RunFolder(path).metrics())
    wrong = findings(run, numbers)
    return one, bool(wrong), [*(wrong or ["not collapsed"]), f"learned: {numbers['learned']}"]


def main(argv) -> int:
    parsed = parse(argv, AnalyzeConfig, prog="analyze.py", doc=__doc__, root=ROOT, positional=False)
    config = parsed.make(AnalyzeConfig)
    runs = {path: config.load(path) for path in config.compare} or {"trained": config.load()}
    folder = Path(config.run) / "analysis" / ("compare" if config.compare else "")
    with nullcontext() if config.quick else locked(folder, "analyse a copy of the run folder"):
        return report_on(config, runs, folder)


def report_on(config: AnalyzeConfig, runs: dict[str, LoadedRun], folder: Path) -> int:
    """Measures runs, prints what is found and, unless it is a quick check, writes all; returns the exit code."""
    columns, sick, told = {}, False, []
    for (name, run), rows in zip(runs.items(), same_texts([*runs.values()], ROWS), strict=True):
        columns[name], wrong, lines = checked(run, name if config.compare else config.run, rows, config.quick)
        told += [f"{name}: {line}" if config.compare else line for line in lines]
        sick |= wrong
    print("\n".join(told))
    if None in columns.values():
        return 3 if sick else 0
    first = next(iter(columns.values()))
    twin = None
    if not config.compare:
        untrained = first.run.twin(first.run.config.get("seed", 0))
        judge = Judge(untrained.model, first.judge.objectives, first.judge.vocab, first.judge.world, first.judge.fixed)
        twin = analyse(untrained, judge, judge.whole())
    data = Path(config.data_dir or first.run.config["data_dir"] or ROOT / "data") / first.run.config["dataset"]
    page = Page(columns, twin, words.sentences(first.run, data, POOL), folder)
    text = page.html(told, config.probes, config.capacity)
    names = dict.fromkeys(name for record in page.record.values() for name in record)
    record = {name: {column: one.get(name) for column, one in page.record.items()} for name in names}
    write_atomic(folder / "metrics.json", json.dumps(record, indent=1) + "\n")
    write_atomic(folder / "report.html", text)
    say(f"{folder}: report.html, metrics.json")
    return 0


if __name__ == "__main__":
    command.command(main)

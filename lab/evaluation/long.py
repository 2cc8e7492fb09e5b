"""
Tasks of long documents: published ones read from their files, and generated ones whose answer is known.

    task = TASKS["qmsum"](context, 2048)        # Search or Classes; documents end at 2,048 tokens

A Search asks which of some texts belongs to a query, by cosine or MaxSim of frozen vectors; nothing is trained but,
where `mapped` is set, a ridge regression. Classes asks for the class of a text, by a linear probe of frozen vectors.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from lab.configurator import UserError, show
from lab.data import text_files
from lab.data.tokenizers import split_sentences
from lab.runs import LoadedRun

WINDOW = 150  # words of a window of QMSum, at most
PAIRS = 500  # documents of `halves` and `duplicates`
REPLACED = 0.5  # share of the sentences of a document that `duplicates` replaces
AMONG = 10  # documents of which one contains the sentence of `contains`
BINS = 5  # of depth
TRAIN = 2 / 3  # share of generated documents that a probe is fitted on


@dataclass
class Search:
    queries: list[str]
    texts: list[str]
    candidates: list[np.ndarray]  # of each query: numbers of texts
    right: list[np.ndarray]  # bool, which of them belong to it
    depth: np.ndarray | None = None  # bin of each query
    mapped: int = 0  # queries at the beginning that a ridge regression from query to text is fitted on

    @property
    def documents(self) -> list[str]:
        return [*self.queries, *self.texts]

    @property
    def chance(self) -> dict[str, float]:
        """Of `recall_1` and `recall_5` by random orders."""
        found = []
        for right in self.right[self.mapped :]:
            n, wrong = len(right), len(right) - right.sum()
            miss = [np.prod([(wrong - i) / (n - i) for i in range(min(k, n))]) for k in (1, 5)]
            found.append([1 - x for x in miss])
        return dict(zip(("recall_1", "recall_5"), np.mean(found, 0).tolist(), strict=True))


@dataclass
class Classes:
    texts: list[str]
    labels: np.ndarray
    train: int  # texts at the beginning that the probe is fitted on
    depth: np.ndarray | None = None  # bin of each text

    @property
    def documents(self) -> list[str]:
        return self.texts

    @property
    def chance(self) -> dict[str, float]:
        """The most frequent class of the test's labels."""
        labels = self.labels[self.train :]
        return {"accuracy": float(np.bincount(labels).max() / len(labels))}


@dataclass
class Context:
    """What tasks are made of, and how much of their texts was cut."""

    run: LoadedRun
    folder: Path  # with imdb_*, race_*, qmsum*
    most: int  # documents of a task
    seed: int = 0
    tokens: int = 0
    cut: int = 0
    fitted: dict = field(default_factory=dict)

    def truncated(self, texts: list[str], length: int) -> list[str]:
        """The first `length` tokens of each text."""
        rows = self.run.encode_texts(texts)
        self.tokens += sum(map(len, rows))
        self.cut += sum(max(0, len(ids) - length) for ids in rows)
        decode = self.run.tokenizer.decode
        return [text if len(ids) <= length else decode(ids[:length]) for text, ids in zip(texts, rows, strict=True)]

    @cached_property
    def sentences(self) -> list[tuple[str, int]]:
        """(held-out sentence, its tokens)."""
        found, _ = self.run.held_out(9000)
        if len(found) < 100:
            raise UserError("the run's validation text is not at hand; give --data_dir's folder back, or other --tasks")
        return [(text, len(ids)) for text, ids in zip(found, self.run.encode_texts(found), strict=True)]

    def chance(self, name: str) -> random.Random:
        return random.Random(f"{name} {self.seed}")


# ---------------------------------------------------------------------------------------------------------------------
# Published tasks


def path_of(context: Context, stem: str) -> Path:
    """A file of the folder, packed or not."""
    path = next(iter(sorted(context.folder.glob(f"{stem}.*"))), context.folder / stem)
    if not path.is_file():
        raise UserError(f"{show(path)} is missing; put the file there, give --data=DIR, or other --tasks")
    return path


def lines_of(path: Path) -> list[tuple[str, str]]:
    """("file:line", line) of a file, packed or not."""
    with open(path, "rb") as file:
        lines = text_files.whole_lines(text_files.decoded(file))
        return [(f"{show(path)}:{i}", line) for i, line in enumerate(lines, 1) if line.strip()]


def parquet_rows(path: Path) -> list[tuple[str, dict]]:
    """("file, row", row) of a parquet file."""
    import pyarrow.parquet  # late: hardly any file is one

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{show(path)} is damaged ({str(error)[:80]}); fetch the file again") from None
    return [(f"{show(path)}, row {i}", row) for i, row in enumerate(rows, 1)]


def objects_of(context: Context, stem: str, make: Callable) -> list:
    """`make` of each object of a file of JSON lines, or of parquet, where a column is a key."""
    path, found = path_of(context, stem), []
    parquet = path.suffix == ".parquet"
    for where, row in parquet_rows(path) if parquet else lines_of(path):
        try:
            found.append(make(row if parquet else json.loads(row)))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"[:100]
            raise UserError(f"{where} is not of this task ({reason}); fetch the file again") from None
    return found


def review(where: str, line: str) -> tuple[str, int]:
    """A line of imdb_*.tsv -> (text, label)."""
    fields = line.split("\t")
    if len(fields) != 4 or fields[2] not in ("0", "1"):
        raise UserError(f"{where}: no id, rating, label and text; correct or delete the line")
    return fields[3], int(fields[2])


def imdb(context: Context, length: int) -> Classes:
    """Is a film review positive? (Maas et al. 2011)"""
    reviews, counts = [], []
    for split, most in (("train", context.most), ("test", context.most // 2)):
        path = path_of(context, f"imdb_{split}")
        if path.suffix == ".parquet":
            rows = objects_of(context, f"imdb_{split}", lambda row: (row["text"], [0, 1].index(row["label"])))
        else:
            rows = [review(*line) for line in lines_of(path)]
        reviews += context.chance(split).sample(rows, min(most, len(rows)))
        counts.append(len(reviews))
    texts, labels = zip(*reviews, strict=True)
    return Classes(context.truncated(list(texts), length), np.array(labels), counts[0])


def race(context: Context, length: int) -> Search:
    """Which of four answers is right to a question about a passage? (Lai et al. 2017, arXiv:1704.04683) The query is
    the passage and the question."""

    def make(row):  # as published, all questions to a passage; or, in parquet, one
        if "question" in row:
            return [(row["question"], row["article"], row["options"], "ABCD".index(row["answer"]))]
        answers = ["ABCD".index(letter) for letter in row["answers"]]
        return [*zip(row["questions"], [row["article"]] * len(answers), row["options"], answers, strict=True)]

    asked = [one for each in objects_of(context, "race_test", make) for one in each]
    return questions(context, length, context.chance("race").sample(asked, min(context.most, len(asked))))


def questions(context: Context, length: int, asked: list[tuple]) -> Search:
    """(question, passage, options, number of the right one) -> which option belongs to the passage and question?"""
    passages = context.truncated([passage for _, passage, *_ in asked], length)
    texts, candidates, right = [], [], []
    for *_, options, answer in asked:
        candidates.append(np.arange(len(texts), len(texts) + len(options)))
        right.append(np.arange(len(options)) == answer)
        texts += options
    queries = [f"{passage}\n{question}" for passage, (question, *_) in zip(passages, asked, strict=True)]
    return Search(queries, texts, candidates, right)


def windows(turns: list[str]) -> list[tuple[int, int]]:
    """(first turn, turn behind the last) of consecutive windows of about WINDOW words."""
    found, begin, words = [], 0, 0
    for i, turn in enumerate(turns):
        words += len(turn.split())
        if words >= WINDOW or i + 1 == len(turns):
            found.append((begin, i + 1))
            begin, words = i + 1, 0
    return found


def qmsum(context: Context, length: int) -> Search:
    """Which window of a whole meeting, whatever `length` is, belongs to a query? (Zhong et al. 2021, arXiv:2104.05938)
    Right is each that overlaps the turns given for the query."""
    task = Search([], [], [], [])

    def make(meeting):
        turns = [f"{turn['speaker']}: {turn['content']}" for turn in meeting["meeting_transcripts"]]
        asked = {
            query["query"]: [(int(a), int(b)) for a, b in query["relevant_text_span"]]
            for query in meeting["specific_query_list"]
        }
        return meeting["split"], turns, asked

    for split, turns, asked in objects_of(context, "qmsum", make):
        if split == "train" or len(task.queries) >= context.most:
            continue
        spans = windows(turns)
        every = np.arange(len(task.texts), len(task.texts) + len(spans))
        for query, relevant in asked.items():
            right = np.array([any(a <= last and first < b for first, last in relevant) for a, b in spans])
            if right.any() and not right.all():
                task.queries.append(query)
                task.candidates.append(every)
                task.right.append(right)
        task.texts += ["\n".join(turns[a:b]) for a, b in spans]
    return task


# SCROLLS (Shaham et al. 2022, arXiv:2201.03533): NAME/train.jsonl and validation.jsonl with input and output; its tests
# have no labels. Its QMSum asks for summaries: qmsum above, of the published file, has the spans. LongBench (Bai et al.
# 2023, arXiv:2308.14508): NAME.jsonl with input, context and answers.
NLI = ["Entailment", "Contradiction", "Not mentioned"]
OPTION = re.compile(r"^ ?\(([A-D])\) (.*)$", re.MULTILINE)


def contract_nli(context: Context, length: int) -> Classes:
    """Does a contract entail a statement? (SCROLLS) The statement stands before the contract."""
    rows, sizes = [], []
    for split, most in (("train", context.most), ("validation", context.most // 2)):
        own = objects_of(context, f"contract_nli/{split}", lambda row: (row["input"], NLI.index(row["output"])))
        rows += context.chance(split).sample(own, min(most, len(own)))
        sizes.append(len(rows))
    texts, labels = zip(*rows, strict=True)
    return Classes(context.truncated(list(texts), length), np.array(labels), sizes[0])


def quality(context: Context, length: int) -> Search:
    """Which of four answers is right to a question about a story? (QuALITY in SCROLLS)"""

    def make(row):
        options = [match[2].strip() for match in OPTION.finditer(row["input"])]
        *_, last = OPTION.finditer(row["input"])
        question, story = row["input"].split("\n", 1)[0], row["input"][last.end() :].strip()
        return question, story, options, options.index(row["output"].strip())

    rows = objects_of(context, "quality/validation", make)
    return questions(context, length, context.chance("quality").sample(rows, min(context.most, len(rows))))


def qasper(context: Context, length: int) -> Search:
    """Which of AMONG answers, the others to questions about other papers, answers a question about a paper? (Qasper in
    SCROLLS, where the question stands before the paper)"""
    asked = objects_of(context, "qasper/validation", lambda row: (*row["input"].split("\n", 1), row["output"].strip()))
    chance, found = context.chance("qasper"), []
    for question, paper, answer in chance.sample(asked, min(context.most, len(asked))):
        others = sorted({text for _, other, text in asked if other != paper and text != answer})
        options = chance.sample(others, min(AMONG - 1, len(others)))
        place = chance.randrange(len(options) + 1)
        found.append((question, paper.strip(), [*options[:place], answer, *options[place:]], place))
    return questions(context, length, found)


def trec(context: Context, length: int) -> Classes:
    """Of what kind is the answer to a question? (LongBench) The question stands before the examples that go with it."""
    rows = objects_of(
        context,
        "trec",
        lambda row: (f"{row['input']}\n{row['context']}", row["all_classes"].index(row["answers"][0])),
    )
    rows = context.chance("trec").sample(rows, min(context.most, len(rows)))
    texts, labels = zip(*rows, strict=True)
    return Classes(context.truncated(list(texts), length), np.array(labels), round(TRAIN * len(rows)))


def passage_retrieval_en(context: Context, length: int) -> Search:
    """Which of 30 paragraphs does an abstract summarise? (LongBench) Each ends at `length` tokens."""

    def make(row):
        paragraphs = re.split(r"^Paragraph \d+: ", row["context"], flags=re.MULTILINE)[1:]
        return row["input"], paragraphs, np.arange(len(paragraphs)) == int(row["answers"][0].split()[1]) - 1

    task = Search([], [], [], [])
    for query, paragraphs, right in objects_of(context, "passage_retrieval_en", make)[: context.most]:
        task.queries.append(query)
        task.candidates.append(np.arange(len(task.texts), len(task.texts) + len(paragraphs)))
        task.right.append(right)
        task.texts += paragraphs
    task.texts = context.truncated(task.texts, length)
    return task


# ---------------------------------------------------------------------------------------------------------------------
# Without labels


def held_out_documents(context: Context, length: int) -> list[str]:
    """Documents of the run's validation text with 8 sentences or more, at most PAIRS."""
    corpus, found = context.run.corpus("val"), []
    if corpus is None:
        raise UserError("the run's validation text is not at hand; prepare it again, or give other --tasks")
    for i in np.random.default_rng(context.seed).permutation(len(corpus.documents) - 1):
        start, end = corpus.documents[i : i + 2]
        text = context.run.tokenizer.decode(corpus.tokens[start:end].tolist())
        if len(split_sentences(text)) >= 8:
            found.append(text)
        if len(found) == min(PAIRS, context.most):
            break
    if len(found) < 20:
        raise UserError(f"{len(found)} documents of the validation text have 8 sentences, 20 are needed; take others")
    return context.truncated(found, length)


def one_to_one(queries: list[str], texts: list[str]) -> Search:
    """Query i belongs to text i, among all."""
    every = np.arange(len(texts))
    return Search(queries, texts, [every] * len(queries), [every == i for i in range(len(queries))])


def halves(context: Context, length: int) -> Search:
    """Which second half belongs to the first half of a document?"""
    first, second = [], []
    for text in held_out_documents(context, length):
        sentences = split_sentences(text)
        first.append(" ".join(sentences[: len(sentences) // 2]))
        second.append(" ".join(sentences[len(sentences) // 2 :]))
    return one_to_one(first, second)


def duplicates(context: Context, length: int) -> Search:
    """Which document became this one, when half of its sentences were replaced by those of others?"""
    documents, chance = held_out_documents(context, length), context.chance("duplicates")
    parts = [split_sentences(text) for text in documents]
    queries = []
    for i, own in enumerate(parts):
        changed = list(own)
        for place in chance.sample(range(len(own)), round(REPLACED * len(own))):
            other = chance.randrange(len(parts) - 1)
            changed[place] = chance.choice(parts[other + (other >= i)])
        queries.append(" ".join(changed))
    return one_to_one(queries, documents)


# ---------------------------------------------------------------------------------------------------------------------
# Generated controls: held-out sentences in random order, and something to be found between them. Depth 0: at the
# beginning.


def filler(context: Context, chance: random.Random, length: int) -> list[str]:
    """Sentences of `length` tokens in all, or a few less."""
    found, left = [], length
    while left > 0:
        text, tokens = chance.choice(context.sentences)
        found.append(text)
        left -= tokens
    return found[:-1] or found


def inserted(sentences: list[str], text: str, depth: float) -> list[str]:
    at = round(depth * len(sentences))
    return [*sentences[:at], text, *sentences[at:]]


def generated(context: Context, length: int, name: str, make: Callable) -> Classes:
    """make(random, filler) -> (sentences, label, depth), for each document."""
    chance, texts, labels, depths = context.chance(f"{name} {length}"), [], [], []
    for _ in range(min(context.most, 900)):
        sentences, label, depth = make(chance, filler(context, chance, length - 12))
        texts.append(" ".join(sentences))
        labels.append(label)
        depths.append(min(BINS - 1, int(BINS * depth)))
    return Classes(texts, np.array(labels), round(TRAIN * len(texts)), np.array(depths))


def passkey(context: Context, length: int) -> Classes:
    """Which digit was named? (Mohtashami & Jaggi 2023, arXiv:2305.16300)"""

    def make(chance, sentences):
        digit, depth = chance.randrange(10), chance.random()
        return inserted(sentences, f"The pass key is {digit}.", depth), digit, depth

    return generated(context, length, "passkey", make)


def needle(context: Context, length: int) -> Classes:
    """Is a certain sentence in the text, or another?"""

    def make(chance, sentences):
        there, depth = chance.randrange(2), chance.random()
        text = "A purple elephant dances on the roof." if there else chance.choice(context.sentences)[0]
        return inserted(sentences, text, depth), there, depth

    return generated(context, length, "needle", make)


def order(context: Context, length: int) -> Classes:
    """Which of two sentences comes first? depth: of the first."""

    def make(chance, sentences):
        swapped, depths = chance.randrange(2), sorted((chance.random(), chance.random()))
        pair = ["The doctor opened the red door.", "A dog ate the green apple."]
        sooner, later = pair[::-1] if swapped else pair
        first, last = (round(depth * len(sentences)) for depth in depths)
        return [*sentences[:first], sooner, *sentences[first:last], later, *sentences[last:]], swapped, depths[0]

    return generated(context, length, "order", make)


def count(context: Context, length: int) -> Classes:
    """How often, 0 to 4 times, does a word occur?"""

    def make(chance, sentences):
        times = chance.randrange(5)
        for _ in range(times):
            sentences = inserted(sentences, "The trumpet sounded.", chance.random())
        return sentences, times, 0.0

    return generated(context, length, "count", make)


def contains(context: Context, length: int) -> Search:
    """Which of AMONG documents contains a sentence?"""
    chance, task = context.chance(f"contains {length}"), Search([], [], [], [])
    depths = []
    for i in range(min(context.most, 400)):
        parts = [filler(context, chance, length) for _ in range(AMONG)]
        answer, place = chance.randrange(AMONG), chance.randrange(len(parts[0]))
        place = min(place, len(parts[answer]) - 1)
        query = parts[answer][place]
        parts = [p if j == answer else [s for s in p if s != query] or ["."] for j, p in enumerate(parts)]
        task.queries.append(query)
        task.candidates.append(np.arange(i * AMONG, (i + 1) * AMONG))
        task.right.append(np.arange(AMONG) == answer)
        task.texts += [" ".join(p) for p in parts]
        depths.append(min(BINS - 1, BINS * place // len(parts[answer])))
    task.depth = np.array(depths)
    return task


def third(context: Context, length: int) -> Search:
    """Which of a document's sentences is the third? Ridge regression predicts its vector from the document's."""
    chance, task = context.chance(f"third {length}"), Search([], [], [], [])
    for _ in range(min(context.most, 900)):
        sentences = list(dict.fromkeys(filler(context, chance, length)))
        if len(sentences) < 4:
            continue
        task.queries.append(" ".join(sentences))
        task.candidates.append(np.arange(len(task.texts), len(task.texts) + len(sentences)))
        task.right.append(np.arange(len(sentences)) == 2)
        task.texts += sentences
    if not task.queries:
        raise UserError(f"documents of {length} tokens have fewer than four sentences; take longer --lengths")
    task.mapped = round(TRAIN * len(task.queries))
    return task


FILES = {imdb: "imdb_test", race: "race_test", qmsum: "qmsum", passage_retrieval_en: "passage_retrieval_en"}
FILES |= {contract_nli: "contract_nli/validation", quality: "quality/validation", qasper: "qasper/validation"}
FILES |= {trec: "trec"}
REAL = {task.__name__: task for task in (*FILES, halves, duplicates)}
CONTROLS = {task.__name__: task for task in (passkey, needle, order, count, contains, third)}
TASKS = REAL | CONTROLS


def there(folder: Path) -> list[str]:
    """The tasks that need no file, or whose file is in the folder."""
    return [name for name, task in TASKS.items() if task not in FILES or [*folder.glob(f"{FILES[task]}.*")]]

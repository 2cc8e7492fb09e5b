"""Planted sentences are found, and nothing else: against a search by strings."""

import eval_glue
from lab.data.corpus import Corpus
from lab.data.tokenizers import encode_texts, load_tokenizer, split_sentences
from lab.evaluation.contamination import SHORTEST, found_in
from tests.corpus import make_corpus
from tests.test_eval_glue import write_tasks


def test_against_a_search(tmp_path):
    folder = make_corpus(tmp_path / "toy", documents=300)
    corpus, tokenizer = Corpus(folder, "train"), load_tokenizer(folder / "tokenizer.json")
    starts = [*corpus.sentences.tolist(), corpus.count]
    rows = [corpus.tokens[a:b].tolist() for a, b in zip(starts, starts[1:], strict=False)]
    known = {tuple(i for i in row if i != corpus.eod) for row in rows}
    own = [tokenizer.decode([i for i in row if i != corpus.eod]).strip() for row in rows[:300]]
    texts = [*own, *(text[:-6] for text in own), *(f"{text} And more of it is here." for text in own[:20])]
    texts += [f"{a} {b}" for a, b in zip(own, own[7:], strict=False)] + ["The.", "zzz " * 9]

    def expect(text):
        rows = encode_texts(tokenizer, split_sentences(text))
        return all(tuple(ids) in known and len(ids) >= SHORTEST for ids in rows)

    expected = [expect(text) for text in texts]
    assert found_in(corpus, texts).tolist() == expected
    assert 50 < sum(expected) < len(expected) - 50


def test_the_command(tmp_path, capsys):
    folder = make_corpus(tmp_path / "toy")
    corpus, tokenizer = Corpus(folder, "train"), load_tokenizer(folder / "tokenizer.json")
    a, b = next(
        (a, b) for a, b in zip(corpus.sentences, corpus.sentences[1:], strict=False) if SHORTEST + 2 < b - a < 16
    )
    text = tokenizer.decode([i for i in corpus.tokens[a:b].tolist() if i != corpus.eod]).strip()
    write_tasks(tmp_path / "glue")
    file = tmp_path / "glue/STS-B/sts-dev.csv"
    file.write_text(file.read_text() + f"g\tf\ty\t99\t1.0\t{text}\tSomething else.\n")
    words = ["--contamination=toy", f"--data_dir={tmp_path}", f"--data={tmp_path / 'glue'}", "--tasks=stsb"]
    assert eval_glue.main(words) == 0
    printed = capsys.readouterr().out
    assert f"stsb: {text}" in printed and "| stsb | dev " in printed

"""Word classes against text tagged by hand; words of tokens; sentences; topics of planted documents."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from lab import words

# word/tag; noun n, name N, verb v, adjective a, adverb r, determiner d, pronoun p, preposition i, conjunction c,
# auxiliary x, number m, punctuation . Written and tagged when the rules stood, and the rules
# were not changed for it.
TAGGED = """
The/d museum/n shows/v paintings/n by/i local/a artists/n ./.
After/i the/d war/n he/p returned/v to/i Paris/N and/c opened/v a/d small/a shop/n ./.
Wolves/n hunt/v deer/n in/i large/a forests/n ./.
The/d court/n rejected/v the/d appeal/n on/i technical/a grounds/n ./.
Each/d thread/n keeps/v a/d private/a copy/n of/i the/d buffer/n ./.
My/p sister/n plays/v the/d violin/n and/c sings/v beautifully/r ./.
Oil/n prices/n fell/v sharply/r in/i March/N ./.
This/d method/n must/x not/x change/v the/d order/n of/i keys/n ./.
Two/m brothers/n founded/v the/d firm/n in/i 1887/m ./.
The/d lake/n freezes/v every/d winter/n ./.
Critics/n praised/v her/p honest/a performance/n ./.
The/d train/n to/i Oslo/N leaves/v at/i noon/n ./.
A/d strange/a noise/n woke/v the/d guests/n ./.
He/p never/r finished/v the/d third/m volume/n ./.
Farmers/n use/v the/d canal/n for/i irrigation/n ./.
When/c the/d index/n is/x negative/a ,/. count/v from/i the/d end/n ./.
The/d queen/n gave/v the/d island/n to/i her/p younger/a son/n ./.
Thousands/n of/i workers/n joined/v the/d strike/n ,/. which/p lasted/v nine/m days/n ./.
Rare/a metals/n make/v these/d magnets/n strong/a ./.
The/d valley/n has/x a/d mild/a climate/n and/c fertile/a soil/n ./.
Pilots/n train/v for/i many/d years/n ./.
The/d word/n comes/v from/i an/d old/a Greek/a root/n ./.
I/p thought/v that/c the/d answer/n was/x wrong/a ./.
Parliament/n passed/v a/d new/a law/n against/i pollution/n ./.
Students/n who/p speak/v German/N often/r visit/v Berlin/N ./.
"""
NAMES = {"n": "noun", "N": "name", "v": "verb", "a": "adjective", "r": "adverb", "d": "determiner", "p": "pronoun"}
NAMES |= {"i": "preposition", "c": "conjunction", "x": "auxiliary", "m": "number", ".": "punctuation"}


def test_the_stated_accuracy_of_classes_is_that_of_text_tagged_by_hand():
    right = total = 0
    for line in TAGGED.split("\n")[1:-1]:
        pairs = [pair.rsplit("/", 1) for pair in line.split()]
        guessed = words.classes_of([word for word, _ in pairs])
        right += sum(a == NAMES[b] for a, (_, b) in zip(guessed, pairs, strict=True))
        total += len(pairs)
    assert total == words.TAGGED and right / total == pytest.approx(words.ACCURACY, abs=0.005)


def test_words_of_tokens_in_both_kinds_of_tokenizer():
    bytes_ = Tokenizer(models.BPE({"Ġthe": 0, "Ġun": 1, "seen": 2, ",": 3, "Ġcat": 4, "s": 5, "<|endoftext|>": 6}, []))
    bytes_.decoder = decoders.ByteLevel()
    found, numbers = words.Words(bytes_)([2, 0, 1, 2, 3, 4, 5])
    assert found == ["seen", "the", "unseen", ",", "cats"] and numbers == [0, 1, 2, 2, 3, 4, 4]
    pieces = Tokenizer(models.WordPiece({"the": 0, "un": 1, "##seen": 2, ",": 3, "cat": 4, "##s": 5}, unk_token=","))
    pieces.decoder = decoders.WordPiece()
    assert words.Words(pieces)([0, 1, 2, 3, 4, 5])[0] == ["the", "unseen", ",", "cats"]


def test_topics_find_planted_ones():
    kinds = [" ".join(kind + a + b for a in "abcdefgh" for b in "abcdefgh") for kind in ("river", "court", "violin")]
    rng = np.random.default_rng(0)
    documents = rng.integers(0, 60, 400).tolist()
    texts = [" ".join(rng.choice(kinds[d % 3].split(), 4)) for d in documents]
    topic, names = words.topics(texts, documents, 3)
    assert len({(t, d % 3) for t, d in zip(topic.tolist(), documents, strict=True)}) == 3
    assert {frozenset(name.split(", ")) <= frozenset(kind.split()) for name in names for kind in kinds} == {True, False}
    assert words.topics(["a b", "c d"], [0, 1])[1] == ["all"]  # no word is left

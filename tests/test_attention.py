"""Attention that is watched, against weights from the layers' own projections; what tells concepts apart."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from encoders import ENCODERS
from lab.analysis import attention
from lab.runs import LoadedRun
from model import ConceptModel, ModelConfig

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", ".", "<|endoftext|>", "[MASK]", "[PAD]", "[SEP]"]
TEXTS = ["the cat sat on a mat .", "a dog ran", "the dog sat on the cat ."] * 40


@pytest.fixture(scope="module")
def tokenizer():
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="."))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    return made


def run_of(tokenizer, encoder="perceiver", **keys):
    shape = {"hidden": 16, "heads": 2, "intermediate": 32, "layers": 2, "concepts": 3, "max_length": 16} | keys
    model = ConceptModel(ModelConfig(encoder=encoder, vocab_size=len(WORDS), **shape), mask_id=10).eval()
    config = {"lengths": (16,), "pad_id": 11, "hidden": 16, "remove_directions": 0, "whitening": 0}
    return LoadedRun(model, tokenizer, config, 0)


def test_weights_are_those_of_the_layers(tokenizer):
    run = run_of(tokenizer)
    read = attention.attention(run, TEXTS)
    encoder = run.model.encoder
    for i in range(3):
        ids = torch.tensor([read.ids[i]])
        with torch.no_grad():
            x = encoder.norm_tokens(encoder.widen(run.model.tokens(ids) + run.model.positions.weight[: ids.shape[1]]))
            z, expected = encoder.slots(), 0
            for layer in encoder.layers:
                q, k = layer.cross.q(layer.cross.norm(z)), layer.cross.kv(x)[..., :16]
                q, k = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k))
                expected = expected + (q @ k.mT / 8**0.5).softmax(-1).mean(1) / 2
                k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in layer.cross.kv(x).chunk(2, -1))
                z = layer(z, k, v, None)
        n = ids.shape[1]
        torch.testing.assert_close(read.weights[i, :, :n], expected[0], atol=1e-5, rtol=1e-4)
        assert not read.weights[i, :, n:].any()


def test_where_in_a_row_each_concept_reads():
    weights = torch.rand(4, 3, 40).softmax(-1)
    shares = attention.by_position(attention.Attention(weights, [[0] * 40] * 4))
    assert shares.shape == (3, attention.BINS)
    for c in range(3):
        for part in range(attention.BINS):
            inside = [i for i in range(40) if i * attention.BINS // 40 == part]
            expected = sum(weights[r, c, i] for r in range(4) for i in inside) / 4 / (len(inside) / 40)
            torch.testing.assert_close(shares[c, part], expected)


def test_texts_have_concepts_by_their_tokens(tokenizer):
    """And the same ones whatever is embedded with them."""
    run = run_of(tokenizer, concepts=4, concepts_per_token=0.5, min_concepts=1)
    texts = ["ran .", "a dog ran .", "the cat sat on a mat .", "the cat sat on the mat . a dog"]
    counts = [run.model.config.concepts_of(len(ids)) for ids in run.encode_texts(texts)]
    assert counts == [1, 2, 2, 4]
    together, vectors, every = run.concepts(texts), run.embed(texts), run.pooled(texts, every=True)
    for i, text in enumerate(texts):
        with torch.no_grad():
            (alone,) = run.model.encode(torch.tensor(run.encode_texts([text])))
        assert len(alone) == counts[i]
        expected = alone.repeat(4 // counts[i], 1)
        torch.testing.assert_close(together[i], expected)
        torch.testing.assert_close(every[i].float(), expected)
        torch.testing.assert_close(vectors[i], alone.mean(0), atol=1e-5, rtol=1e-4)
    assert attention.attention(run, texts).weights.shape[1] == 4


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("concepts", [3, 7])  # 7: as many as the longest text has tokens
def test_every_encoder_is_watched_or_says_that_it_cannot(encoder, concepts, tokenizer):
    registers = {"registers": 2} if "registers" not in ModelConfig(encoder=encoder).unused() else {}
    read = attention.attention(run_of(tokenizer, encoder, concepts=concepts, **registers), TEXTS[:6])
    if encoder == "funnel" and concepts == 3:
        assert read is None
    elif encoder != "funnel":
        assert read.weights.shape == (6, concepts, 6 if concepts == 7 else 7)
        torch.testing.assert_close(read.weights.sum(-1), torch.ones(6, concepts))


def test_what_tells_concepts_apart_is_what_is_planted(tokenizer):
    torch.manual_seed(0)
    ids = torch.randint(0, 9, (200, 7))
    weights = torch.rand(200, 3, 7)
    weights += 5.0 * (ids == 3)[:, None]  # all concepts read "on": that tells none of them apart
    weights[:, 1] += 9.0 * ((ids == 2) | (ids == 6))  # "sat", "dog"
    weights[:50, :, 5:] = 0.0  # shorter texts
    weights = weights / weights.sum(-1, keepdim=True)
    rows = [row[:5] if i < 50 else row for i, row in enumerate(ids.tolist())]
    read = attention.Attention(weights, rows)

    def given(token):
        """[C]: attention to a token, over all texts."""
        return sum(weights[i, :, j] for i, row in enumerate(rows) for j, own in enumerate(row) if own == token)

    top = attention.top_tokens(read, len(WORDS), 2)
    assert {token for token, _ in top[1]} == {2, 6} and all(ratio > 1.5 for _, ratio in top[1])
    first, own, last = given(2).tolist()
    assert dict(top[1])[2] == pytest.approx(own / ((first + last) / 2), rel=1e-4)
    alone = attention.top_tokens(attention.Attention(weights[:, 1:2], rows), len(WORDS), 2)  # beside an even reading
    assert {token for token, _ in alone[0]} == {2, 6}

    shares = attention.type_shares(run_of(tokenizer), read)
    torch.testing.assert_close(shares.sum(1), torch.ones(3, dtype=torch.float64))
    content = attention.TYPES.index("content")
    assert shares[1, content] > shares[0, content] + 0.1
    punctuation = shares[:, attention.TYPES.index("punctuation")]
    torch.testing.assert_close(punctuation, given(8).double() / 200, rtol=1e-4, atol=1e-6)


def test_slots_weights_are_those_they_read_with(tokenizer):
    """Of a slot encoder: what `attend` makes of values that are one-hot is its weights, mean over heads."""
    run = run_of(tokenizer, "slot", layers=1)
    read = attention.attention(run, TEXTS[:3])
    encoder, ids = run.model.encoder, torch.tensor([read.ids[1] + [11] * 4])  # the second text, padded as in its batch
    mask = torch.arange(7)[None] < 3
    with torch.no_grad():
        x = run.model.tokens(ids) + run.model.positions.weight[:7]
        cross, x = encoder.layers[0].cross, encoder.norm_tokens(encoder.widen(x))
        q, k = cross.q(cross.norm(encoder.slots())), cross.kv(x)[..., :16]
        q, k = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k))
        one_hot = torch.eye(7).expand(1, 2, 7, 7)
        weights = cross.attend(q, k, one_hot, mask, 0.0).unflatten(-1, (2, 7)).mean(2)
    torch.testing.assert_close(read.weights[1], weights[0], atol=1e-5, rtol=1e-4)

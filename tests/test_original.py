"""Checkpoints of the original project, restated here from its formulas: imported, their logits are ours."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from export import main
from lab.configurator import UserError
from lab.export.original import import_original
from lab.runs import load_run
from lab.training.run_folder import load_tensors
from problem import Problem

V, N, H, HEADS, INNER, C = 60, 12, 32, 4, 48, 5
GIVEN = dict(vocab_size=V, concept_num=C, hidden_size=H, num_attention_heads=HEADS, intermediate_size=INNER)
GIVEN |= dict(max_sequence_length=N, num_hidden_layers=2, hidden_dropout_prob=0.1, concept_position_type="none")


def attention():
    return nn.MultiheadAttention(H, HEADS, batch_first=True)


def read(module, query, tokens, mask=None):
    return module(query, tokens, tokens, key_padding_mask=mask, need_weights=False)[0]


class Layer(nn.Module):
    def __init__(self, both):
        super().__init__()
        self.concept_token_attn, self.concept_self_attn = attention(), attention()
        self.pre_cross_attn_norm, self.pre_self_attn_norm = nn.LayerNorm(H), nn.LayerNorm(H)
        self.pre_ff_norm, self.Wi, self.Wo = nn.LayerNorm(H), nn.Linear(H, 2 * INNER), nn.Linear(INNER, H)
        if both:
            self.token_concept_attn, self.pre_reverse_cross_norm = attention(), nn.LayerNorm(H)

    def forward(self, z, x, mask):
        z = z + read(self.concept_token_attn, self.pre_cross_attn_norm(z), x, mask)
        if hasattr(self, "token_concept_attn"):
            x = x + read(self.token_concept_attn, self.pre_reverse_cross_norm(x), z)
        y = self.pre_self_attn_norm(z)
        z = z + read(self.concept_self_attn, y, y)
        a, g = self.Wi(self.pre_ff_norm(z)).chunk(2, -1)
        return z + self.Wo(F.gelu(a) * g), x


class Encoder(nn.Module):
    def __init__(self, T=H, both=False, iterations=0, positions="none"):
        super().__init__()
        self.token_embeddings, self.token_position_embeddings = nn.Embedding(V, T), nn.Embedding(N, T)
        self.token_projection = nn.Linear(T, H) if T != H else None
        self.concept_embeddings, self.iterations = nn.Embedding(C, H), iterations
        self.concept_position_emb = nn.Embedding(C, H) if positions == "learned" else None
        if iterations:
            self.shared_layer = Layer(both)
        else:
            self.layers = nn.ModuleList([Layer(both) for _ in range(2)])
        self.output_layer_norm = nn.LayerNorm(H, eps=1e-12)

    def forward(self, ids, mask):
        x = self.token_embeddings(ids) + self.token_position_embeddings.weight[: ids.shape[1]]
        x = x if self.token_projection is None else self.token_projection(x)
        z = self.concept_embeddings.weight
        z = (z if self.concept_position_emb is None else z + self.concept_position_emb.weight).expand(len(ids), -1, -1)
        for layer in [self.shared_layer] * self.iterations if self.iterations else self.layers:
            z, x = layer(z, x, ~mask)
        return self.output_layer_norm(z)


class Perceiver(nn.Module):
    def __init__(self, T=H, only_positions=False, tied=False, **keys):
        super().__init__()
        self.encoder, self.only_positions = Encoder(T, **keys), only_positions
        self.decoder_query_embeddings, self.decoder_cross_attn = nn.Embedding(N, H), attention()
        self.decoder_input_projection = nn.Linear(T, H) if T != H and not only_positions else None
        self.decoder_norm, self.post_cross_norm = nn.LayerNorm(H), nn.LayerNorm(H)
        self.decoder_ffn = nn.Sequential(nn.Linear(H, INNER), nn.GELU(), nn.Linear(INNER, H))
        self.lm_head = nn.Linear(H, V, bias=False)
        if tied:
            self.lm_head.weight = self.encoder.token_embeddings.weight

    def forward(self, ids, mask, t):
        x = self.decoder_query_embeddings.weight[: ids.shape[1]].expand(len(ids), -1, -1)
        if not self.only_positions:
            tokens = self.encoder.token_embeddings(ids)
            x = x + (tokens if self.decoder_input_projection is None else self.decoder_input_projection(tokens))
        x = x + read(self.decoder_cross_attn, self.decoder_norm(x), self.encoder(ids, mask))
        return self.lm_head(x + self.decoder_ffn(self.post_cross_norm(x)))


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.concept_weights = Encoder(), nn.Parameter(torch.randn(N, C))
        self.pre_lm_projection = nn.Sequential(nn.LayerNorm(H), nn.Linear(H, H), nn.GELU())
        self.lm_head = nn.Linear(H, V, bias=False)

    def forward(self, ids, mask, t):
        share = self.concept_weights[: ids.shape[1]].softmax(-1)
        return self.lm_head(self.pre_lm_projection(torch.einsum("sc, bch -> bsh", share, self.encoder(ids, mask))))


class Noise(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(H, 2 * H), nn.SiLU(), nn.Linear(2 * H, H))

    def forward(self, t):
        angles = t[:, None] * torch.exp(-torch.arange(H // 2) * torch.tensor(10000.0).log() / (H // 2))
        return self.proj(torch.cat([angles.sin(), angles.cos()], -1))


class DiffusionLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_cross, self.norm_ff, self.cross_attn = nn.LayerNorm(H), nn.LayerNorm(H), attention()
        self.ff_in, self.ff_out, self.adaLN = nn.Linear(H, 2 * INNER), nn.Linear(INNER, H), nn.Linear(H, 6 * H)

    def forward(self, x, concepts, time):
        scale, shift, gate, scale2, shift2, gate2 = self.adaLN(time)[:, None].chunk(6, -1)
        x = x + gate * read(self.cross_attn, self.norm_cross(x) * (1 + scale) + shift, concepts)
        a, g = self.ff_in(self.norm_ff(x) * (1 + scale2) + shift2).chunk(2, -1)
        return x + gate2 * self.ff_out(F.gelu(a) * g)


class DiffusionDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embed, self.pos_embed, self.t_embed = nn.Embedding(V, H), nn.Embedding(N, H), Noise()
        self.layers, self.out_norm = nn.ModuleList([DiffusionLayer() for _ in range(3)]), nn.LayerNorm(H)

    def forward(self, ids, concepts, t):
        x, time = self.token_embed(ids) + self.pos_embed.weight[: ids.shape[1]], self.t_embed(t)
        for layer in self.layers:
            x = layer(x, concepts, time)
        return self.out_norm(x)


class Diffusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.lm_head = Encoder(), DiffusionDecoder(), nn.Linear(H, V, bias=False)

    def forward(self, ids, mask, t):
        return self.lm_head(self.decoder(ids, self.encoder(ids, mask), t))


MODELS = {
    "perceiver": (Perceiver, {}, {}),
    "perceiver, tied": (lambda: Perceiver(tied=True), {}, {}),
    "perceiver, thin tokens": (lambda: Perceiver(T=8), {}, {}),
    "perceiver, learned positions": (lambda: Perceiver(positions="learned"), dict(concept_position_type="learned"), {}),
    "posonly": (lambda: Perceiver(only_positions=True), dict(decoder_posonly=True), dict(decoder="posonly")),
    "posonly, both ways": (
        lambda: Perceiver(only_positions=True, both=True),
        dict(decoder_posonly=True, use_bixt=True),
        dict(encoder="two_way"),
    ),
    "recursive": (lambda: Perceiver(iterations=4), dict(num_iterations=4), dict(encoder="recursive", iterations=4)),
    "weighted": (Weighted, {}, dict(decoder="weighted")),
    "diffusion": (Diffusion, {}, dict(decoder="diffusion", decoder_layers=3)),
}


def save(folder, model, given, pickle=False):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GIVEN | given))
    vocab = {name: i for i, name in enumerate(["[UNK]", "[MASK]", "[PAD]", "[SEP]", "<|endoftext|>"])}
    vocab |= {f"w{i}": i for i in range(5, V)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    tensors = model.state_dict() | {"loss_manager.raw_weights": torch.zeros(2)}
    if pickle:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file({name: x.clone().contiguous() for name, x in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_imported_checkpoints_have_the_same_logits(tmp_path, kind, capsys):
    make, given, expected = MODELS[kind]
    torch.manual_seed(0)
    theirs = make().eval()
    for name, p in theirs.named_parameters():
        p.copy_(torch.randn_like(p) * 0.3 + (1 if "norm" in name and name.endswith("weight") else 0))
    save(tmp_path / "theirs", theirs, given, pickle=kind == "posonly")
    assert main([f"--from_original={tmp_path / 'theirs'}", f"--to={tmp_path / 'ours'}"]) == 0
    report = capsys.readouterr().out
    assert "loss_manager.raw_weights" in report and ("reverse" in report) == ("both" in kind)
    ours = load_run(tmp_path / "ours")
    assert all(getattr(ours.model.config, key) == value for key, value in expected.items())
    ids = torch.randint(5, V, (3, 9))
    mask = torch.arange(9) < torch.tensor([9, 4, 7])[:, None]
    t = torch.tensor([0.3, 0.9, 0.5])
    concepts = ours.model.encode(ids, mask=mask)
    torch.testing.assert_close(concepts, theirs.encoder(ids, mask), atol=2e-5, rtol=1e-4)
    problem = Problem(ids, targets=ids, query_ids=ids, t=t)
    logits = ours.model.logits(ours.model.decode(concepts, problem)).expand(3, -1, -1)
    torch.testing.assert_close(logits, theirs(ids, mask, t), atol=5e-4, rtol=1e-3)
    assert ours.embed("w7 w9").shape == (H,)


def drop(folder):
    path = folder / "model.safetensors"
    tensors = load_tensors(path)
    del tensors["encoder.layers.1.Wi.bias"]
    save_file(tensors, path)


WRONG = {
    "encoder.layers.1.ffn.wi.bias": drop,
    "it has no concept_num": lambda folder: (folder / "config.json").write_text("{}"),
    "neither model.safetensors nor": lambda folder: (folder / "model.safetensors").unlink(),
    "tokenizer.json does not exist": lambda folder: (folder / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_such_checkpoint_is_refused(tmp_path, what):
    save(tmp_path / "theirs", Perceiver(), {})
    WRONG[what](tmp_path / "theirs")
    with pytest.raises(UserError, match=what):
        import_original(str(tmp_path / "theirs"), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_run_that_is_there_is_not_overwritten(tmp_path):
    save(tmp_path / "theirs", Perceiver(), {})
    import_original(str(tmp_path / "theirs"), tmp_path / "ours")
    with pytest.raises(UserError, match="holds a run already"):
        import_original(str(tmp_path / "theirs"), tmp_path / "ours")

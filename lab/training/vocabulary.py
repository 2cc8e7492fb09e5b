"""The text of a run, and what objectives ask to know of its tokens, on the device."""

import json

import torch
from torch import Tensor

from backbone import find
from lab.configurator import UserError, show
from lab.data import pmi
from lab.data.corpus import Corpus
from lab.data.tokenizers import load_tokenizer, word_ends, word_starts
from lab.distributed import World
from lab.training.run_folder import TOKEN_VECTORS
from objectives import Objectives
from problem import Vocabulary


def open_splits(folder, world: World) -> tuple[Corpus, Corpus]:
    """The training and the validation text of prepared data, the same on all ranks ; UserError."""
    train, val = (Corpus(folder, split) for split in ("train", "val"))
    train.counts()  # found wanting now, not at the end
    files = [(x.tokenizer_hash, x.count, x.documents.size, x.sentences.size) for x in (train, val)]
    differs = torch.tensor(files != world.on_rank0(lambda: files), dtype=torch.int32, device=world.device)
    if count := int(world.all_sum(differs)):
        raise UserError(f"{count} ranks have another {show(folder)} than rank 0; copy it to each node")
    return train, val


def make_vocabulary(text: Corpus, objectives: Objectives, vectors: Tensor | None, device) -> Vocabulary:
    """vectors [V, T]: of lab/data/spectral.py, where they are asked for."""
    idf = torch.from_numpy(text.idf()).to(device) if objectives.needs_idf else None
    starts = phrases = ends = None
    if objectives.needs_word_starts:
        tokenizer = load_tokenizer(text.folder / "tokenizer.json")
        starts = torch.from_numpy(word_starts(tokenizer)).to(device)
        ends = torch.from_numpy(word_ends(tokenizer)).to(device)
    if objectives.needs_collocations:
        phrases = torch.from_numpy(pmi.load(text)).to(device)
    vectors = vectors.to(device) if objectives.needs_token_vectors else None
    return Vocabulary(text.vocab_size, text.mask, tuple(text.special_ids), idf, starts, phrases, vectors, ends)


def check_tokenizer(backbone: str, text: Corpus):
    """UserError where the text was not prepared with the tokenizer of a pretrained model (a normalizer in front of it,
    such as --lowercase, is the user's choice)."""
    own = text.folder / "tokenizer.json"
    remedy = (
        f"prepare the text with its own: --tokenizer={backbone}{'' if backbone[:4] == 'hub:' else '/tokenizer.json'}"
    )
    try:
        theirs = find(backbone) / "tokenizer.json"
    except ValueError as error:
        raise UserError(str(error)) from None
    load_tokenizer(theirs)  # says what is wrong with it
    models = [json.loads(path.read_text(encoding="utf-8"))["model"] for path in (own, theirs)]
    if models[0] != models[1]:
        raise UserError(f"{show(own)} is not the tokenizer of backbone={backbone}; {remedy}")


def token_vectors(trainer) -> tuple[Tensor | None, float]:
    """([V, T] of the run that is there, else of its text; the seconds it took); (None, 0): nothing needs them."""
    if trainer.settings.model.token_init != "spectral" and not trainer.objectives.needs_token_vectors:
        return None, 0.0
    from lab.data import spectral  # late: scipy

    out = trainer.out
    if (out.path / "config.json").is_file() and (there := out.load_tensor(TOKEN_VECTORS)) is not None:
        return there, out.config().get("spectral_seconds", 0.0)
    width, most = trainer.settings.model.token_width, trainer.config.spectral_tokens
    return spectral.token_vectors(trainer.train_text, width, most, stop=lambda: trainer.signals.received)

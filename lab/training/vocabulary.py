"""What objectives ask to know of a corpus's tokens, on the device."""

import torch
from torch import Tensor

from lab.data import pmi
from lab.data.corpus import Corpus
from lab.data.tokenizers import load_tokenizer, word_ends, word_starts
from lab.training.run_folder import TOKEN_VECTORS
from objectives import Objectives
from problem import Vocabulary


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

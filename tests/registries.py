"""What there is to test: every encoder, decoder, objective and sum that stands in a registry, in every setting of its
own. So a new class is tested without an edit. And small models and problems to test them with."""

import itertools
from dataclasses import fields
from functools import cache
from typing import Literal, get_args, get_origin, get_type_hints

import torch

from decoders import DECODERS
from encoders import ENCODERS
from lab.configurator import read_layers
from model import ConceptModel, ModelConfig
from noise import Noise
from objectives import OBJECTIVES, ObjectiveConfig, Objectives, recorded
from problem import Problem, Rows, Vocabulary

MASK = 3
OWN_DECODERS = {name: part for name, part in DECODERS.items() if name != "backbone"}  # that one: test_backbone.py
SMALL = dict(layers=2, hidden=16, heads=2, intermediate=24, concepts=6, max_length=12, vocab_size=40, chunk=5)


def read_config(path, root):
    """A config with its bases merged -> {name: (value, "file:line")}; helpers (_name) are left out."""
    return {name: entry for layer in read_layers(path, root) for name, entry in layer.items() if name[0] != "_"}


def is_share(kind):
    """A float, or one beside something else (a pair)."""
    return kind is float or (get_origin(kind) is not tuple and float in get_args(kind))


def choices(config, keys):
    """{key: values to try} of those keys that are a switch, a choice of words or a share."""
    found, hints = {}, get_type_hints(config, include_extras=True)
    for key in sorted(keys):
        kind = get_args(hints[key])[0]
        values = (False, True) if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()
        found[key] = values or ((getattr(config, key), 0.25) if is_share(kind) else ())
    return {key: values for key, values in found.items() if values}


def allowed(config, fixed, tried):
    """Every combination of the values tried, with the fixed ones, that the config does not refuse."""
    for values in itertools.product(*tried.values()):
        keys = fixed | dict(zip(tried, values, strict=True))
        try:
            config(**keys)
        except ValueError:
            continue
        yield keys


@cache
def keys_of(part):
    """The keys of ModelConfig that an encoder or decoder reads when it is built, and `nested` where it follows that."""
    config, read = recorded(ModelConfig(vocab_size=8))
    with torch.device("meta"):
        part(config)
    own = read & {field.name for field in fields(ModelConfig)} - {"dropout", "init", *SHARED}
    return own | ({"nested"} if "concepts" in getattr(part, "options", ()) else set())


SHARED = dict(
    token_dim=(0, 8), tied=(True, False), token_position=("learned", "rope"), original_structure=(False, True)
)


def structures():
    """All pairs of an encoder and a decoder; and each of them, with a default partner, in every setting of one key."""
    found = [dict(encoder=e, decoder=d) for e, d in itertools.product(ENCODERS, OWN_DECODERS)]
    for part, kind in (ENCODERS | OWN_DECODERS).items():
        own = dict(encoder=ModelConfig.encoder, decoder=ModelConfig.decoder) | one_part(part)
        for key, values in (choices(ModelConfig, keys_of(kind)) | SHARED).items():
            found += allowed(ModelConfig, own, {key: values})
        found += allowed(ModelConfig, own | dict(token_dim=8, tied=False, original_structure=True), {})
    return list({name(keys): keys for keys in found}.values())


def objectives():
    """Each objective in every setting of one of its own keys (masked LM of two: units and replacements meet in it), and
    every sum of two of them."""
    for objective in OBJECTIVES:
        uses = Objectives(ObjectiveConfig(objective=objective)).uses - {"objective"}
        for keys in list(allowed(ObjectiveConfig, dict(objective=objective), choices(ObjectiveConfig, uses))):
            uses |= Objectives(ObjectiveConfig(**keys)).uses - {"objective"}  # one choice may bring others
        for keys in allowed(ObjectiveConfig, dict(objective=objective), choices(ObjectiveConfig, uses)):
            used = Objectives(ObjectiveConfig(**keys)).uses  # nothing new comes of a key that is not used
            changed = {key for key, value in keys.items() if value != getattr(ObjectiveConfig, key)} - {"objective"}
            if used.issuperset(changed) and len(changed) <= (2 if objective == "mlm" else 1):
                yield keys
    for a, b in itertools.combinations(OBJECTIVES, 2):
        yield dict(objective=f"{a} + 0.5*{b}")


def name(keys):
    """What differs from the defaults, as a test's id."""
    defaults = vars(ModelConfig) | vars(ObjectiveConfig)
    words = [f"{key}={value}" for key, value in keys.items() if key == "objective" or value != defaults[key]]
    return ",".join(words).replace(" ", "") or "defaults"


def one_part(part):
    """Keys of a model with this encoder or decoder, and the other by default."""
    return dict(encoder=part) if part in ENCODERS else dict(decoder=part)


STRUCTURES, OBJECTIVE_SETTINGS = structures(), list(objectives())


def build(seed=0, dtype=torch.float64, **keys):
    return ConceptModel(ModelConfig(**{**SMALL, **keys}), MASK, seed).to(dtype)


def built_for(objectives, decoder=ModelConfig.decoder):
    """Keys of a model that holds what the objectives train, and nothing else."""
    return dict(decoder=decoder, predicts=objectives.predicts)


def make_problems(B=4, N=12, vocab=40, seed=1, **keys):
    """The objective that the keys say, on random text -> (Objectives, one Problem a part)."""
    objectives = Objectives(ObjectiveConfig(**keys))
    ids = torch.randint(MASK + 1, vocab, (B, N), generator=torch.Generator().manual_seed(seed))
    starts = torch.arange(vocab) % 3 > 0
    vectors = torch.randn(vocab, SMALL["hidden"], generator=torch.Generator().manual_seed(9))
    idf = torch.linspace(0.5, 3, vocab)
    vocabulary = Vocabulary(vocab, MASK, idf=idf, starts=starts, phrases=ids[0], vectors=vectors)
    rows = Rows(ids, Noise(seed, 0, torch.arange(B)), vocabulary, documents=torch.arange(B))
    return objectives, objectives.problems(rows)


def masked_problem(B=3, N=12, K=4, vocab=40, seed=1, **fields):
    """An MLM problem: K columns of each row are hidden and scored."""
    noise = torch.Generator().manual_seed(seed)
    ids = torch.randint(MASK + 1, vocab, (B, N), generator=noise)
    scored = torch.rand(B, N, generator=noise).argsort(1)[:, :K].sort(1).values
    source = ids.scatter(1, scored, MASK)
    given = dict(source=source, targets=ids, query_pos=torch.arange(N)[None], query_ids=source, scored=scored)
    return Problem(**{**given, **fields})

"""
Does a strong decoder make poor concepts? (E10) One, two and four layers of position queries, and of a causal decoder.

Predicted, after TSDAE (Wang et al. 2021, arXiv:2104.06979): with strength the loss falls, and so do STS-B and what
another row's concepts cost (delta_shuffle); half of the words before dropped (Bowman et al. 2016, arXiv:1511.06349)
brings both back. Losses of the two kinds do not compare: a causal decoder sees the words before. Eighteen runs of a few
hundred steps (every position is scored), four to five minutes of one thread each by estimate.

    python compare.py config/grids/decoders.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/grids/objectives.py"  # spectral tokens, H 128, rows of 16 and 32 tokens, two seeds

arms = {
    "queries_1": {},
    "queries_2": {"decoder_layers": 2},
    "queries_4": {"decoder_layers": 4},
    "causal_1": {"decoder": "causal"},
    "causal_2": {"decoder": "causal", "decoder_layers": 2},
    "causal_4": {"decoder": "causal", "decoder_layers": 4},
    "causal_dropout_1": {"decoder": "causal", "word_dropout": 0.5},
    "causal_dropout_2": {"decoder": "causal", "decoder_layers": 2, "word_dropout": 0.5},
    "causal_dropout_4": {"decoder": "causal", "decoder_layers": 4, "word_dropout": 0.5},
}

objective = "tsdae"
score_rate = 1.0  # a causal decoder predicts every position
max_flops = 9e12

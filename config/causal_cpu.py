"""
A causal decoder for two cores, half of the words before hidden from it: TSDAE as in its paper, and a bag of words.

    python train.py config/causal_cpu.py                                   # Python's docstrings
    python train.py config/causal_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/concepts_cpu.py"

decoder = "causal"
word_dropout = 0.5
score_rate = 1.0

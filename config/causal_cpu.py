"""
TSDAE and a bag of words with a causal decoder, on two cores; half of the words before are hidden from it.

A decoder that goes from left to right is that of TSDAE's paper (Wang et al. 2021, arXiv:2104.06979), which hides none
of the words before: word dropout is added here (Bowman et al. 2016, arXiv:1511.06349). Never trained at this size:
there is no number to expect.

    python train.py config/causal_cpu.py                    # Python's docstrings
    python train.py config/causal_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/concepts_cpu.py"

decoder = "causal"
word_dropout = 0.5
score_rate = 1.0

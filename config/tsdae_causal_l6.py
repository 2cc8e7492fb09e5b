"""
TSDAE with a causal decoder, which says the row again; 30 % of the words before are hidden from it.

    torchrun --nproc_per_node=8 train.py config/tsdae_causal_l6.py

Survivors that close up and a decoder from left to right are those of TSDAE's paper (Wang et al. 2021,
arXiv:2104.06979). Word dropout is not in it, it is added here (Bowman et al. 2016, arXiv:1511.06349). Never trained at
this size: 88,879,104 parameters.
"""

base = "config/tsdae_l6.py"

original_structure = False
vocab_size = 0
positions = "compact"
decoder = "causal"
word_dropout = 0.3

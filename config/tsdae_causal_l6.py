"""
TSDAE as in its paper: a causal decoder says the row again, with a third of the words before hidden from it.

    torchrun --nproc_per_node=8 train.py config/tsdae_causal_l6.py

Never trained at this size.
"""

base = "config/tsdae_l6.py"

seeds_faithful = False
positions = "compact"
decoder = "causal"
word_dropout = 0.3

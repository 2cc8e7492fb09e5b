"""
Masked LM with slots that compete for the tokens.

    torchrun --nproc_per_node=4 train.py config/slot_mlm_l6.py

Never trained at this size.
"""

base = "config/perceiver_mlm_l6.py"

encoder = "slot"
seeds_faithful = False

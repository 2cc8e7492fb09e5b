"""
Masked LM with slots that compete for the tokens.

    torchrun --nproc_per_node=4 train.py config/slot_mlm_l6.py

Slot attention, Locatello et al. 2020, arXiv:2006.15055. Never trained at this size: 62,041,600 parameters.
"""

base = "config/perceiver_mlm_l6.py"

encoder = "slot"
original_structure = False
vocab_size = 0

"""
Masked LM with one read of the tokens and six layers of latents: Perceiver IO.

    torchrun --nproc_per_node=4 train.py config/perceiver_io_mlm_l6.py

Never trained at this size.
"""

base = "config/perceiver_mlm_l6.py"

encoder = "perceiver_io"
seeds_faithful = False

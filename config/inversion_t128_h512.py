"""
Masked LM with dimension inversion: tokens of width 128, concepts of width 512, and a tied head that is factorised.

    torchrun --nproc_per_node=4 train.py config/inversion_t128_h512.py

One of the sizes that the seeds planned; there the head stayed whole, and the model larger than with wide tokens.
"""

base = "config/perceiver_mlm_l6.py"

seeds_faithful = False
token_dim = 128
hidden = 512
heads = 8
intermediate = 2048

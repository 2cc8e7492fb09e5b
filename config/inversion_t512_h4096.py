"""
Masked LM with dimension inversion: tokens of width 512, concepts of width 4096, and a tied head that is factorised.

    torchrun --nproc_per_node=4 train.py config/inversion_t512_h4096.py

One of the sizes that the seeds planned; there the head stayed whole, and the model larger than with wide tokens.
"""

base = "config/perceiver_mlm_l6.py"

seeds_faithful = False
token_dim = 512
hidden = 4096
heads = 64
intermediate = 4096
concepts = 32

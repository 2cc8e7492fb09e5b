"""
Masked LM through the decoder of masked diffusion: blocks of cross-attention that know the share of hidden tokens.

    torchrun --nproc_per_node=4 train.py config/diffusion_mlm_l2.py

The structure that the seeds trained for diffusion: 94,774,784 parameters (untied, the decoder has its own tokens).
"""

base = "config/perceiver_mlm_l2.py"

decoder = "diffusion"
decoder_layers = 2
tied = False

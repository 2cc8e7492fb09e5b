"""
Masked LM through the decoder of masked diffusion: blocks of cross-attention that know the share of hidden tokens.

    torchrun --nproc_per_node=4 train.py config/diffusion_mlm_l2.py

The structure that the seeds trained for diffusion, blocks with AdaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748):
94,774,784 parameters (untied, the decoder has its own tokens). Under masked LM it was never trained, here or there.
"""

base = "config/perceiver_mlm_l2.py"

decoder = "diffusion"
decoder_layers = 2
tied = False

"""
Masked diffusion by its evidence bound, six layers, warm-started from the encoder of perceiver_mlm_l6.

    torchrun --nproc_per_node=4 train.py config/perceiver_mlm_l6.py
    torchrun --nproc_per_node=4 train.py config/diffusion_l6_elbo.py

The original project planned it with at least 30 % hidden and smoothed targets, which is no bound; here from one to all
tokens are hidden and weighed as in MDLM (Sahoo et al. 2024, arXiv:2406.07524) and LLaDA (arXiv:2502.09992). 122,093,056
parameters. Never trained, here or there.
"""

base = "config/perceiver_mlm_l6.py"

objective = "diffusion"
decoder = "diffusion"
decoder_layers = 2
tied = False
init_from = "out/perceiver_mlm_l6"  # its tokens, positions and encoder

lr = 3e-4
schedule = "cosine"
warmup = 1500
max_steps = 39_070

"""
Masked LM through the decoder of masked diffusion, six encoder layers: 122,093,056 parameters (untied).

    torchrun --nproc_per_node=4 train.py config/diffusion_mlm_l6.py

The structure that the seeds designed last for diffusion, blocks with AdaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748).
Never trained, here or there.
"""

base = "config/perceiver_mlm_l6.py"

decoder = "diffusion"
decoder_layers = 2
tied = False

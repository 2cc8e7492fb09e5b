"""
Masked diffusion over SmolLM2-135M as the token level (the original project's plan): its states of the clean row are
read by two layers of 128 concepts, from which hidden tokens are predicted.

Frozen for the first tenth of training, then at a tenth of the rate. Never trained: it is for GPUs.

    torchrun --nproc_per_node=8 train.py config/smollm2_diffusion.py
"""

base = "config/smollm2_tsdae_l2.py"

objective = "diffusion"
decoder = "diffusion"
decoder_layers = 2

"""
Masked diffusion as the original project trained it: two layers, at least 10 % hidden, all hidden tokens alike, smoothed
targets.

    torchrun --nproc_per_node=4 train.py config/diffusion_l2.py

MDLM (Sahoo et al. 2024, arXiv:2406.07524) and LLaDA (Nie et al. 2025, arXiv:2502.09992), with a decoder of AdaLN-Zero
(arXiv:2212.09748) that reads a clean row's concepts: 94,774,784 parameters (untied, the decoder has its own tokens).
Logged there (2026-02-23): 1.433 nats, of which smoothing alone is 1.408, after 39,070 steps and 21 h on four RTX 3090;
effective rank 10.1 of 128. This loss is no bound: `val_loss_elbo` is, without t_min, weight 1 and smoothing. Here, with
mirrored pairs and unpadded rows, it was never trained.
"""

base = "config/perceiver_mlm_l2.py"

objective = "diffusion"
decoder = "diffusion"
decoder_layers = 2
tied = False
t_min = 0.1
diffusion_weight = "none"
label_smoothing = 0.1

batch_size = 512
lr = 3e-4
schedule = "cosine"
warmup = 1500
max_steps = 39_070

"""
The original project's first sparse-decoding run: two layers, masked LM at 15 %.

    torchrun --nproc_per_node=4 train.py config/perceiver_mlm_l2.py

Logged there (2026-01-18): MLM loss 4.010, 36M parameters (tied), 20 epochs of MiniPile (78k steps of 256 rows, peak
learning rate 5e-4, linear) on RTX 3090 cards; GLUE MRPC F1 80.6 (majority class: 81.2), QQP F1 67.3, MNLI 52.5.
"""

base = "config/perceiver_mlm_l6.py"

layers = 2
intermediate = 1024
batch_size = 256
lr = 5e-4
schedule = "linear"
warmup = 2000
max_steps = 78_000

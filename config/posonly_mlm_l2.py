"""
Masked LM with position queries, two layers.

    torchrun --nproc_per_node=4 train.py config/posonly_mlm_l2.py

Logged by the original project (2026-01-19): MLM loss 4.089, 36M parameters (tied), 20 epochs of MiniPile, 12 h 44 min
on RTX 3090 cards (223k tokens/s in all); GLUE MRPC F1 81.8 (majority class: 81.2), QQP F1 69.2, MNLI 53.9.
"""

base = "config/perceiver_mlm_l2.py"

decoder = "posonly"

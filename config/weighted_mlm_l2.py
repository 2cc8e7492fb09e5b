"""
Masked LM decoded by a learned mixture, two layers.

    torchrun --nproc_per_node=4 train.py config/weighted_mlm_l2.py

Logged by the original project (2026-01-17): MLM loss 4.089, 20 epochs of MiniPile on RTX 3090 cards ("34M" there is the
encoder; with its untied head the model has 60M); GLUE MRPC F1 82.2 (majority class: 81.2), QQP F1 61.5, MNLI 49.0.
"""

base = "config/perceiver_mlm_l2.py"

decoder = "weighted"
tied = False

"""
Masked LM decoded by a learned mixture: every position is a fixed weighted mean of the concepts.

    torchrun --nproc_per_node=4 train.py config/weighted_mlm_l6.py

Logged by the original project (2026-02-07): MLM loss 3.415, 84M parameters (the head is never tied), 40 epochs of
MiniPile, about 10 h on four RTX 3090, 140k tokens/s each; GLUE MRPC F1 80.2 (majority class: 81.2), QQP F1 66.3, MNLI
53.8.
"""

base = "config/perceiver_mlm_l6.py"

decoder = "weighted"
tied = False

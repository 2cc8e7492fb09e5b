"""
Masked LM whose decoder queries are positions alone: no token of the input reaches it except through the concepts.

    torchrun --nproc_per_node=4 train.py config/posonly_mlm_l6.py

Logged by the original project (2026-02-08): MLM loss 2.640, 61M parameters (tied), 40 epochs of MiniPile, 10 h 43 min
on four RTX 3090, 133k tokens/s each; GLUE MRPC F1 81.0 (majority class: 81.2), QQP F1 72.3, MNLI 57.6.
"""

base = "config/perceiver_mlm_l6.py"

decoder = "posonly"

"""
The original project's second try with concept losses: masked LM + 0.1 (variance and uniformity of the concepts).

    torchrun --nproc_per_node=4 train.py config/combined_fixed01.py

Logged there (2026-02-20), 20 epochs of MiniPile: MLM loss 3.57, rank of the batch's mean 15.97 of 128, STS-B 0.507
(0.627 in 40 epochs without), MRPC F1 80.7, QQP F1 64.9, MNLI 56.9, PAWS 57.6. That rank knows nothing of content
(geometry.py).
"""

base = "config/perceiver_mlm_l6.py"

concept_loss = "combined"
concept_balance = "fixed"
concept_weight = 0.1
max_steps = 39_070

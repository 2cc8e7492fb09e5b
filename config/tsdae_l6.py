"""
TSDAE (Wang et al. 2021, arXiv:2104.06979) as the original project planned it: 60 % of the tokens deleted, survivors
keep their positions, position-only decoder, every position scored.

    torchrun --nproc_per_node=8 train.py config/tsdae_l6.py

Planned there for 20 epochs of MiniPile in batches of 64 x 4 on RTX 3090 cards and never trained: there is no logged
result. 87M parameters (untied).
"""

base = "config/perceiver_mlm_l6.py"

objective = "tsdae"
delete_rate = 0.6
positions = "original"

decoder = "posonly"
tied = False
batch_size = 256
max_steps = 78_140
warmup = 1500

"""
Masked LM with one shared layer, applied six times; at inference any number (--iterations=12).

    torchrun --nproc_per_node=4 train.py config/recursive_mlm_k6.py
    torchrun --nproc_per_node=4 train.py config/recursive_mlm_k6.py --init_from=out/perceiver_mlm_l6 --init_part=all

Planned by the original project at 0.7 of the learning rate, never trained there: 34,786,304 parameters (tied). The
second line begins with the first layer, the tokens and the decoder of a standard run.
"""

base = "config/perceiver_mlm_l6.py"

encoder = "recursive"
iterations = 6
lr = 2e-4

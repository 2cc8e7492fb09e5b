"""
Rows of up to 16,384 tokens, read into 512 concepts by six layers, on one GPU; shorter rows into fewer, of a sentence 8.

TSDAE as in tsdae_l6 on rows of 512, 4,096 or 16,384 tokens, without what is particular to the original project. Never
trained, here or there.

    torchrun --nproc_per_node=4 train.py config/long_l6.py
"""

base = "config/tsdae_l6.py"

original_structure = False
vocab_size = 0
tied = True
lengths = (512, 4096, 16384)
max_length = 16384
concepts = 512
concepts_per_token = 0.03125
batch_size = 32
micro_batch = 1

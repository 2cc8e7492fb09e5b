"""
Tokens and concepts read each other through one matrix, on two cores; tokens are half as wide as concepts.

    python train.py config/bixt_cpu.py                                   # Python's docstrings
    python train.py config/bixt_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/concepts_cpu.py"

encoder = "bixt"
token_dim = 128
heads = 8  # of width 32

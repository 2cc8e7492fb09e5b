"""
A plain Transformer whose tokens are pooled, on two cores: the control for every other encoder.

    python train.py config/dense_cpu.py                                   # Python's docstrings
    python train.py config/dense_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/concepts_cpu.py"

encoder = "dense"
token_position = "rope"

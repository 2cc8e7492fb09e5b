"""
Tokens and concepts read each other in turn, on two cores: config/concepts_cpu.py with another encoder.

    python train.py config/two_way_cpu.py                                   # Python's docstrings
    python train.py config/two_way_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/concepts_cpu.py"

encoder = "two_way"

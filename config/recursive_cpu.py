"""
One shared layer for two cores, 2 to 6 times in training, any number later (--iterations=12).

    python train.py config/recursive_cpu.py                                   # Python's docstrings
    python train.py config/recursive_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/concepts_cpu.py"

encoder = "recursive"
iterations = 6
least_iterations = 2

"""
Nested concepts for two cores: one run for 1, 2, 4 and 8 concepts (--concepts=2 later).

    python train.py config/nested_cpu.py                                   # Python's docstrings
    python train.py config/nested_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/concepts_cpu.py"

nested = True

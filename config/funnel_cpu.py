"""
Tokens pooled in two stages to ordered concepts, on two cores: config/concepts_cpu.py with another encoder.

    python train.py config/funnel_cpu.py                                   # Python's docstrings
    python train.py config/funnel_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/concepts_cpu.py"

encoder = "funnel"
concept_position = "rope"

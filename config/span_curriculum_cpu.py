"""
Masked LM from few, short spans and short rows to many, long spans and long rows, on two cores.

The seeds' curriculum of span_curriculum_l6 in the sizes of perceiver_mlm_cpu, with rows that grow from 16 to 32 tokens
(their progressive length, made small). Never trained at this size; its parts one by one: config/grids/curricula.py.

    python train.py config/span_curriculum_cpu.py                    # Python's docstrings
    python train.py config/span_curriculum_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/span_mlm_cpu.py"

mask_rate = (0.15, 0.40)
max_span = (1, 10)
length_mix = ((1, 0), (1, 3))

"""
Masked LM for two cores in which tokens know their neighbours before they are read.

    python train.py config/local_mlm_cpu.py                                   # Python's docstrings
    python train.py config/local_mlm_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/perceiver_mlm_cpu.py"

token_layers = 1

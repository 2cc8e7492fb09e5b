"""
How weights begin, at two depths: rank, input share and the untrained model's STS-B before the first step; validation
loss, use of the concepts and STS-B after two minutes.

    python compare.py config/grids/init.py --data=DIR     # DIR holds STS-B/; about 10 minutes on two cores
"""

base = "config/tsdae_cpu.py"  # TSDAE, rows of 16 and 32 tokens, H 128


arms = {
    "fan_in_c8_l2": {"init": "fan_in", "concepts": 8, "layers": 2},
    "gpt2_c8_l2": {"init": "gpt2", "concepts": 8, "layers": 2},
    "fan_in_c32_l6": {"init": "fan_in", "concepts": 32, "layers": 6},
    "gpt2_c32_l6": {"init": "gpt2", "concepts": 32, "layers": 6},
}
seeds = (0,)
tasks = "stsb"

max_minutes = 2

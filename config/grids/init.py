"""
How weights begin, at two sizes: rank, input share and the untrained model's STS-B before the first step; validation
loss, use of the concepts and STS-B after equal FLOPs, about two minutes of one thread.

    python data/text/prepare.py --name=wiki --files wiki_*.txt.xz --tokenizer=bpe:8192
    python compare.py config/grids/init.py --data=DIR     # DIR holds STS-B/; about 15 minutes on two cores
"""

base = "config/tsdae_cpu.py"  # TSDAE, rows of 16 and 32 tokens, H 128

arms = {
    "fan_in_c8_l2": {"init": "fan_in", "concepts": 8, "layers": 2},
    "positions_c8_l2": {"init": "fan_in_positions", "concepts": 8, "layers": 2},
    "gpt2_c8_l2": {"init": "gpt2", "concepts": 8, "layers": 2},
    "fan_in_c32_l6": {"init": "fan_in", "concepts": 32, "layers": 6},
    "positions_c32_l6": {"init": "fan_in_positions", "concepts": 32, "layers": 6},
    "gpt2_c32_l6": {"init": "gpt2", "concepts": 32, "layers": 6},
}
seeds = (0,)
tasks = "stsb"

dataset = "wiki"
max_flops = 6e12  # 0.7 million tokens at 8 concepts and 2 layers, 0.3 at 32 and 6

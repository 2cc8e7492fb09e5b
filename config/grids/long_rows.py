"""
From which row length on are concepts cheaper than a plain Transformer? (E12, as far as two cores go) C = N/16 at 512
and 2,048 tokens: reconstruction at equal FLOPs beside the dense control, the seconds it took, and use of the concepts.

Predicted, from FLOPs of deep models: dense is cheaper below N = 1,000 or so, dearer above. Counted here, at two layers:
its FLOPs a token are 1.6 times the perceiver's at 512 and 2.0 times at 2,048. Not here: 16,384 tokens, and finding a
passkey in them. Ten runs, about five minutes of one thread each by estimate; tokens/s and memory alone, up to 8,192, by
bench.py:

    python compare.py config/grids/long_rows.py     # needs no task files
    python bench.py config/bixt_cpu.py --lengths=512,2048,8192 --batch=1
"""

base = "config/grids/encoders.py"  # tsdae + bow, spectral tokens, H 128

arms = {
    "perceiver_512": {"lengths": (512,), "max_length": 512, "concepts": 32, "batch_size": 16},
    "bixt_thin_512": {"lengths": (512,), "max_length": 512, "concepts": 32, "batch_size": 16, "encoder": "bixt"},
    "dense_512": {
        "lengths": (512,),
        "max_length": 512,
        "concepts": 32,
        "batch_size": 16,
        "encoder": "dense",
        "token_position": "rope",
    },
    "perceiver_2048": {"lengths": (2048,), "max_length": 2048, "concepts": 128, "batch_size": 4},
    "dense_2048": {
        "lengths": (2048,),
        "max_length": 2048,
        "concepts": 128,
        "batch_size": 4,
        "encoder": "dense",
        "token_position": "rope",
    },
}
seeds = (0, 1)
tasks = ""

token_dim = 64
eval_interval = 0

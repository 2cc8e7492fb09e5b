"""
Where do concepts beat a plain Transformer? Rows of 512, 2,048 and 8,192 tokens, read into 64 concepts at equal FLOPs by
each encoder, whole or in chunks; two seeds.

    python compare.py config/grids/long.py          # needs no task files
    python bench.py config/long_cpu.py --encoders=perceiver,bixt,dense --lengths=512,2048,8192 --batch=1
"""

base = "config/grids/encoders.py"  # tsdae + bow, spectral tokens, H 128

arms = {
    "perceiver": {},
    "concepts_by_row": {"concepts": 128, "concepts_per_token": 1 / 64},
    "recursive": {"encoder": "recursive", "iterations": 2},
    "bixt_thin": {"encoder": "bixt", "token_dim": 64},
    "funnel": {"encoder": "funnel"},
    "dense": {"encoder": "dense"},
    "chunk_mean": {"encoder": "chunked"},
    "chunk_perceiver": {"encoder": "chunked", "merge": "perceiver"},
}
seeds = (0, 1)
tasks = ""
long = {"tasks": "halves,needle,reconstruction", "lengths": (512, 2048, 8192), "most": 600}

lengths = (512, 2048, 8192)
max_length = 8192
token_position = "rope"
concepts = 64
batch_size = 1
eval_interval = 0
max_flops = 9e12

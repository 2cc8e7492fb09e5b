"""
The arms of first.py at a size for one GPU: 32 concepts, H 384, 6 layers, rows of 32 and 128 tokens, equal FLOPs for
every arm, which is meant to be about 100 s. Not yet run on a GPU.

    python data/text/prepare.py --name=wiki --files wiki_*.txt.xz --tokenizer=bpe:8192
    python compare.py config/grids/first_gpu.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/grids/first.py"

layers = 6
hidden = 384
heads = 6
intermediate = 1024
concepts = 32
lengths = (32, 128)
max_length = 128
batch_size = 256  # 32,768 tokens a step
lr = 1e-3
warmup = 200
max_flops = 8e15  # 100 million tokens of tsdae, 140 of bow

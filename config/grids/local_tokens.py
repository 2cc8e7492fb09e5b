"""
Does masked LM leave the unigram plateau when tokens know their neighbours before they are read? None, one and two
layers of windowed self-attention, random and spectral token embeddings, equal FLOPs, two seeds, about three minutes of
one thread a run (docs/LOG.md).

    python compare.py config/grids/local_tokens.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/perceiver_mlm_cpu.py"

arms = {
    "random": {"token_init": "random"},
    "random_local_1": {"token_init": "random", "token_layers": 1},
    "random_local_2": {"token_init": "random", "token_layers": 2},
    "spectral": {},
    "spectral_local_1": {"token_layers": 1},
    "spectral_local_2": {"token_layers": 2},
}
seeds = (0, 1)
tasks = "stsb,sick_r,order"

dataset = "wiki"
eval_interval = 0  # only before and after
max_flops = 9e12

"""
Do spectral token embeddings help every objective? Random against spectral at equal FLOPs, three seeds, about three
minutes of one thread a run; judged on STS-B and SICK-R beside every floor, also beyond words (docs/LOG.md).

    python data/text/prepare.py --name=wiki --lowercase --files wiki_*.txt.xz --tokenizer=bpe:16384
    python compare.py config/grids/spectral.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/concepts_cpu.py"

_adjacent = "tsdae + bow + 0.5*contrastive"

arms = {
    "sum_random": {"token_init": "random", "bow_source": "row"},
    "sum_spectral": {"bow_source": "row"},
    "survivors_random": {"token_init": "random"},
    "survivors_spectral": {},
    "adjacent_random": {"token_init": "random", "objective": _adjacent, "views": "adjacent"},
    "adjacent_spectral": {"objective": _adjacent, "views": "adjacent"},
    "mlm_random": {"token_init": "random", "objective": "mlm", "decoder": "input", "token_weight": "none"},
    "mlm_spectral": {"objective": "mlm", "decoder": "input", "token_weight": "none"},
    "mlm_bow_random": {"token_init": "random", "objective": "mlm + bow", "visible_only": True, "mask_rate": 0.4},
    "mlm_bow_spectral": {"objective": "mlm + bow", "visible_only": True, "mask_rate": 0.4},
    "survivors_share_70": {"spectral_share": 0.7},
    "survivors_share_100": {"spectral_share": 1.0},
}
seeds = (0, 1, 2)
tasks = "stsb,sick_r,order"

dataset = "wiki"
hidden = 128
intermediate = 256
spectral_share = 0.85
whitening = 0.0
eval_interval = 0  # only before and after
max_flops = 9e12

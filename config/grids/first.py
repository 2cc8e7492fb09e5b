"""
Which objective gives concepts that mean something? Equal FLOPs for every arm, about three minutes of one thread, on
Wikipedia; judged without training on STS-B and SICK-R beside every floor. About an hour.

    python data/text/prepare.py --name=wiki --files wiki_*.txt.xz --tokenizer=bpe:8192
    python compare.py config/grids/first.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/tsdae_cpu.py"  # a perceiver of 8 concepts, H 128 and 2 layers, rows of 16 and 32 tokens

arms = {
    "mlm_visible_30": {"objective": "mlm", "mask_rate": 0.3, "visible_only": True},
    "tsdae_original_30": {"objective": "tsdae", "positions": "original", "delete_rate": 0.3},
    "tsdae_compact_60": {"objective": "tsdae", "positions": "compact", "delete_rate": 0.6},
    "tsdae_idf": {"objective": "tsdae", "positions": "compact", "delete_rate": 0.6, "token_weight": "idf"},
    "contrastive": {"objective": "contrastive", "views": "both"},
    "bow": {"objective": "bow"},
    "tsdae_contrastive": {
        "objective": "tsdae + 0.3*contrastive",
        "positions": "compact",
        "delete_rate": 0.6,
        "token_weight": "idf",
    },
    "tsdae_bow": {
        "objective": "tsdae + bow",
        "positions": "compact",
        "delete_rate": 0.6,
        "token_weight": "idf",
        "score_rate": 0.25,
    },
}
seeds = (0, 1)
tasks = "stsb,sick_r,order"

dataset = "wiki"
batch_size = 64
eval_interval = 0  # only before and after
max_flops = 9e12  # 0.9 million tokens (tsdae_contrastive) to 5.7 (bow)

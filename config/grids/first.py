"""
Which objective gives concepts that mean something? Three minutes an arm on Wikipedia, judged without training on STS-B
and SICK-R beside every floor. About 20 minutes on two cores.

    python data/text/prepare.py --name=wiki --files wiki_*.txt.xz --tokenizer=bpe:8192
    python compare.py config/grids/first.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/quickstart.py"  # a perceiver of 8 concepts, H 128 and 2 layers

arms = {
    "mlm_visible_30": {"objective": "mlm", "mask_rate": 0.3, "visible_only": True},
    "tsdae_original_30": {"objective": "tsdae", "positions": "original", "delete_rate": 0.3},
    "tsdae_compact_60": {"objective": "tsdae", "positions": "compact", "delete_rate": 0.6},
}
seeds = (0, 1)
tasks = "stsb,sick_r"

dataset = "wiki"
vocab_size = 0
lengths = (16, 32)
max_length = 32
max_minutes = 3

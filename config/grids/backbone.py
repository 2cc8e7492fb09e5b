"""
How much does a pretrained token level give? SmolLM2-135M, frozen: how many of its layers, in which direction, with
which objective; equal FLOPs, its own forward among them; two seeds.

    python data/text/prepare.py --name=wiki_smollm2 --tokenizer=hub:HuggingFaceTB/SmolLM2-135M --files wiki_*.txt.xz
    python compare.py config/grids/backbone.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/smollm2_cpu.py"

arms = {
    "k6_bow": {},
    "k12_bow": {"backbone_layers": 12},
    "k24_bow": {"backbone_layers": 24},
    "k6_both_directions": {"backbone_causal": False},
    "k6_mixture": {"backbone_read": "mix"},
    "k6_tsdae_bow": {"objective": "tsdae + bow", "bow_source": "survivors"},
    "k6_bow_next": {"bow_target": "both"},
}
seeds = (0, 1)
tasks = "stsb,sick_r,order"

eval_interval = 0
max_flops = 3e13
warmup = 20

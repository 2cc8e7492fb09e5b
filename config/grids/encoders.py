"""
Which encoder? All of them with the log's best objective and token embeddings at equal FLOPs, two seeds, about three
minutes of one thread a run; rank and input share are judged every 200 steps, too: who collapses, and when?

    python data/text/prepare.py --name=wiki --lowercase --files wiki_*.txt.xz --tokenizer=bpe:16384
    python compare.py config/grids/encoders.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/concepts_cpu.py"

arms = {
    "perceiver": {},
    "perceiver_local": {"token_layers": 1},
    "perceiver_io": {"encoder": "perceiver_io", "layers": 3},
    "recursive": {"encoder": "recursive", "iterations": 4, "min_iterations": 1},
    "slot": {"encoder": "slot"},
    "two_way": {"encoder": "two_way"},
    "bixt": {"encoder": "bixt"},
    "bixt_thin": {"encoder": "bixt", "token_dim": 64},
    "dense": {"encoder": "dense", "token_position": "rope"},
    "funnel": {"encoder": "funnel", "concept_position": "rope"},
    "nested": {"nested": True},
    "registers": {"registers": 4},
    "rope": {"concept_position": "rope"},
    "cope": {"concept_position": "cope"},
}
seeds = (0, 1)
tasks = "stsb,sick_r,order"

dataset = "wiki"
hidden = 128
intermediate = 256
whitening = 0.0
eval_interval = 200
max_flops = 9e12

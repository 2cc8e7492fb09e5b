"""--deterministic=True: steps of a GPU that repeat to the bit, as far as can be seen without one (see test_cuda.py)."""

import pytest
import torch
from registries import SMALL, built_for, make_problems
from torch.utils._python_dispatch import TorchDispatchMode

from lab import distributed
from losses import CONCEPT_LOSSES, Balance, ConceptLossConfig
from model import ConceptModel, ModelConfig

# What torch refuses on a GPU then: cumsum and cumprod of floats, the others always.
OF_FLOATS = {"cumsum", "cumprod"}
ALWAYS = {"median", "nanmedian", "kthvalue", "histc", "put", "put_", "nll_loss2d_forward", "grid_sampler_2d_backward"}
ALWAYS |= {"upsample_linear1d_backward", "upsample_bilinear2d_backward", "reflection_pad1d_backward", "_cdist_backward"}


class Refused(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), keys=None):
        name = function._overloadpacket.__name__
        floats = any(torch.is_tensor(x) and x.is_floating_point() for x in args)
        if name in ALWAYS or (name in OF_FLOATS and floats):
            self.found.add(name)
        return function(*args, **keys or {})


MANY = " + ".join(("mlm", "tsdae", "bow", "contrastive", "diffusion", "nextconcept"))
STEPS = {
    "cope": (dict(objective="tsdae"), dict(concept_position="cope")),
    "causal cope": (dict(objective="prefix"), dict(concept_position="cope", decoder="causal")),
    "many": (dict(objective=MANY), dict(decoder="diffusion", decoder_window=2, token_layers=1)),
    "funnel": (dict(objective="mlm", mask_unit="span"), dict(encoder="funnel", concept_position="cope")),
    "slot": (dict(objective="mlm", mask_unit="pmi"), dict(encoder="slot")),
}


@pytest.mark.parametrize("step", STEPS)
def test_no_step_does_what_torch_refuses(step):
    objective, shape = STEPS[step]
    regulariser = ConceptLossConfig(",".join(CONCEPT_LOSSES), concept_share=0.01)
    balance = Balance(regulariser)
    with Refused() as refused:
        objectives, problems = make_problems(**objective)
        model = ConceptModel(ModelConfig(**SMALL | built_for(objectives) | shape), 3)
        predicted, concepts, *copies = model(*problems, split=balance.split)
        balance.total(objectives.total(objectives.losses(predicted, concepts, problems)), *copies).backward()
    assert not refused.found


def test_compiled_kernels_repeat_too():
    import torch._inductor.config as inductor

    try:
        distributed.start("cpu", "float32", deterministic=True)
        assert torch.are_deterministic_algorithms_enabled() and getattr(inductor, "deterministic", True)
    finally:
        torch.use_deterministic_algorithms(False)

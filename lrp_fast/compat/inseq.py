"""LRP as one of inseq's attribution methods. Importing this module is what makes inseq know of it.

import inseq
import lrp_fast.compat.inseq

model = inseq.load_model(name, "lrp_fast")          # or rule="cp"
model.attribute(prompt, prompt + " Sydney", attributed_fn="contrast_logits_diff", contrast_targets=prompt + " Canberra")
"""

from __future__ import annotations

from captum.attr import InputXGradient
from inseq.attr.feat import GradientAttributionRegistry

from ..hf import patched
from ..rules import Rules, as_rules


class LRPAttribution(GradientAttributionRegistry):
    """inseq's input x gradient, within `lrp_fast.patched`.

    Only the model obeys a rule: what inseq's step functions do with its logits passes plain gradients. What comes out
    is of shape (tokens, steps, hidden size): relevance is its ``.sum(-1)``. inseq's default aggregation takes norms;
    ``aggregate("sum")`` keeps the signs, each step divided by its sum of |relevance|.

    Args:
        attribution_model: inseq's decoder-only model, of a supported family.
        rule: a name or `lrp_fast.Rules`.

    Raises:
        ValueError, TypeError: for an unknown rule.
        UnsupportedModuleError: when something is attributed, for a module that no rule covers.
    """

    method_name = "lrp_fast"

    def __init__(self, attribution_model, rule: str | Rules = "attnlrp", **named) -> None:
        super().__init__(attribution_model, **named)
        self.method = InputXGradient(attribution_model)
        self.rules = as_rules(rule)

    def attribute_step(self, *args, **named):
        with patched(self.attribution_model.model, self.rules):
            return super().attribute_step(*args, **named)

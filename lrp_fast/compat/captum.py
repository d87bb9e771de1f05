"""LRP as one of Captum's attribution methods, by itself or under Captum's `LLMGradientAttribution`.

    from captum.attr import LLMGradientAttribution, TextTokenInput
    from lrp_fast.compat.captum import LayerRelevance

    LayerRelevance(model).attribute(input_ids, target=token_id).sum(-1)                       # (1, N)
    LLMGradientAttribution(LayerRelevance(model), tokenizer).attribute(TextTokenInput(prompt, tokenizer), " Sydney")

Captum's methods that take gradients at their inputs need nothing from here: run them within `lrp_fast.patched`.
"""

from __future__ import annotations

from captum.attr import LayerGradientXActivation
from torch import Tensor, nn

from ..hf import patched
from ..rules import Rules, as_rules


class LayerRelevance(LayerGradientXActivation):
    """Relevance of what a layer of a model puts out, the input embeddings unless another is named.

    A `LayerGradientXActivation` that runs within `lrp_fast.patched`, so that Captum takes it wherever it takes that.
    Only the model obeys a rule: what ``forward_func`` does with its logits, as the log-softmax of
    `LLMGradientAttribution`, passes plain gradients.

    Args:
        model: a transformers model of a supported family.
        layer: a module of the model, or a list of them; None: its input embeddings.
        rule: a name or `lrp_fast.Rules`.
        forward_func: (inputs, *additional_forward_args) -> tensor, as anywhere in Captum, by way of ``model``. None:
            the logits (B, V) of the last position for token ids (B, N), so that ``target`` is a token id.

    Raises:
        ValueError, TypeError: for an unknown rule.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module | list[nn.Module] | None = None,
        rule: str | Rules = "attnlrp",
        forward_func=None,
    ) -> None:
        # Of a method whose function is the model itself, LLMGradientAttribution learns which model that is.
        super().__init__(
            model if forward_func is None else forward_func,
            model.get_input_embeddings() if layer is None else layer,
        )
        self.model = model
        self.rules = as_rules(rule)

    def attribute(self, inputs, target=None, additional_forward_args=None, **named) -> Tensor | list[Tensor]:
        """As `LayerGradientXActivation.attribute`: relevance in the shape of the layer's output, (B, N, H) at the
        embeddings; a list of them for a list of layers.

        Args:
            inputs: what ``forward_func`` takes; token ids (B, N) where none was given.
            target: which of its outputs is explained, as anywhere in Captum.
            additional_forward_args: what ``forward_func`` takes besides; with none given, the model's next parameters.
            **named: Captum's ``attribute_to_layer_input`` and ``grad_kwargs``.

        Raises:
            UnsupportedModuleError: for a module that no rule covers.
        """
        forward_func = self._last_logits if self.forward_func is self.model else self.forward_func
        method = LayerGradientXActivation(forward_func, self.layer)
        with patched(self.model, self.rules):
            return method.attribute(inputs, target, additional_forward_args, **named)

    def _last_logits(self, input_ids: Tensor, *more) -> Tensor:
        return self.model(input_ids, *more, use_cache=False, logits_to_keep=1).logits[:, -1]

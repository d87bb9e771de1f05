"""What a model makes of hidden states behind its last layer: its final norm, its head, and what lies between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..rules import Rules
from .altup import as_read
from .heads import is_classifying_encoder, logits_at
from .layers import decoder_layers
from .overlay import laid, uncompiled
from .patching import passing
from .positions import keeping_rotations
from .walk import modules_of
from .weights import device_of


@contextmanager
def decoding(model: nn.Module, rules: Rules) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within the block, a function of hidden states (P, D), or (P, S, D) of several streams, as decoder layers put them
    out, to the logits (P, V) that the model makes of the last layer's, of labels as of a vocabulary.

    It is the model's own code behind its layers: these are passed over, and put out what the function is given.
    """
    device = device_of(model.get_input_embeddings())

    def blank(prompts: int, tokens: int) -> Tensor:
        return torch.zeros(prompts, tokens, dtype=torch.int64, device=device)

    with passing(model, rules), keeping_rotations(model):
        layers, rest = set(decoder_layers(model)), {}

        def noting(module: nn.Module) -> Callable:
            def call(*args, **named):
                output = uncompiled(module.forward)(*args, **named)
                if module in layers:
                    rest[module] = tuple(output[1:]) if isinstance(output, tuple | list) else None
                return output

            return call

        # One token shows in what form each layer puts out its hidden states. Past hooks: it is nobody's prompt.
        with torch.no_grad(), laid(_in_place(modules_of(model), noting)):
            model(input_ids=blank(1, 1), use_cache=False)

        def logits(hidden: Tensor) -> Tensor:
            apart = is_classifying_encoder(model)  # there each is a prompt of its own
            whole = hidden[:, None] if apart else hidden[None]

            def passed_over(module: nn.Module) -> Callable:
                given = as_read(module, whole)
                return lambda *args, **named: given if rest[module] is None else (given, *rest[module])

            with torch.no_grad(), laid(_in_place(list(rest), passed_over)):
                return logits_at(model, blank(*whole.shape[:2]), list(range(len(hidden))))

        yield logits


def _in_place(modules: list[nn.Module], call_of: Callable[[nn.Module], Callable]) -> list[tuple]:
    """Overlays that have modules do something else, their hooks passed over."""
    overlays = [(module, "_call_impl", call_of(module)) for module in modules]
    return overlays + [
        (module, "_compiled_call_impl", call)
        for module, _, call in overlays
        if module.__dict__.get("_compiled_call_impl") is not None
    ]

"""Which models are taken; of the others, that the reason is true and that what the refusal advises works."""

import copy

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn

import lrp_fast
from lrp_fast import UnsupportedModuleError, attribute, patched, plan

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 97}
HEADS = ["SequenceClassification", "TokenClassification", "QuestionAnswering"]


@pytest.fixture
def taught(monkeypatch):
    """`lrp_fast.hf.register`, until the test ends."""
    monkeypatch.setattr(lrp_fast.hf.families, "_TABLE", dict(lrp_fast.hf.families._TABLE))
    return lrp_fast.hf.register


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt_neox", "falcon", "phi3", "mixtral"])
@pytest.mark.parametrize("head", HEADS)
def test_scores_can_be_differentiated(family, head, tiny, ids):
    alone = tiny(family)
    name = type(alone).__name__.replace("CausalLM", head)
    if not hasattr(transformers, name):
        pytest.skip("transformers has no such class")
    model_class = getattr(transformers, name)
    config = copy.deepcopy(alone.config)
    config.num_labels, config.pad_token_id = 2, 0
    model = model_class(config).double().eval()
    if head == "QuestionAnswering":
        why = f"^{name} has no next-token logits to explain: differentiate what it puts out under lrp_fast.patched$"
        with pytest.raises(ValueError, match=why):
            attribute(model, ids)
        with pytest.raises(ValueError, match=why):
            plan(model, 23)
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model, "cp"):
        outputs = model(inputs_embeds=x)
        score = (outputs.start_logits if head == "QuestionAnswering" else outputs.logits).flatten()[-1]
        score.backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() > 0
    if head != "QuestionAnswering":
        relevance = (x * x.grad).sum(-1)[0]
        gap = (attribute(model, ids, 1, rule="cp").relevance - relevance).abs().max()
        assert gap <= 1e-9 * relevance.abs().max() or family == "gemma"  # which scales what it looks up
    last = [module for module in model.children() if isinstance(module, nn.Linear)][-1]
    if family in ("gemma", "mixtral") and last.bias is None:  # nothing but linear maps and norms: cp keeps all of it
        assert (x * x.grad).sum().item() == pytest.approx(score.item(), rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3", "falcon"])
def test_a_model_without_its_head_is_loaded_with_it(family, tiny, ids, tmp_path):
    whole = tiny(family)
    whole.save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    why = (
        f"^{type(model).__name__} has no next-token logits to explain, being a model without its head: load its "
        "checkpoint with AutoModelForCausalLM, if it holds a head$"
    )
    for call in (lambda: attribute(model, ids), lambda: plan(model, 23)):
        with pytest.raises(ValueError, match=why):
            call()
    mended, about = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not about["missing_keys"]
    truth = attribute(whole, ids, 3, 5).layers
    assert (attribute(mended.eval(), ids, 3, 5).layers - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_a_wrapper_without_its_head_is_loaded_with_it():
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SMALL),
        vision_config=transformers.SiglipVisionConfig(**vision, image_size=28, patch_size=14),
    )
    model = transformers.LlavaModel(config).eval()
    for call in (lambda: attribute(model, [1, 2]), lambda: plan(model, 2)):
        with pytest.raises(ValueError, match="^LlavaModel has .* LlavaForConditionalGeneration, if it holds a head$"):
            call()
    assert attribute(transformers.LlavaForConditionalGeneration(config).eval(), [1, 2]).layers.shape == (3, 2)


def test_an_encoder_without_its_head_is_loaded_with_it():
    model = transformers.BertModel(transformers.BertConfig(**SMALL)).eval()
    for call in (lambda: attribute(model, [1, 2]), lambda: plan(model, 2)):
        with pytest.raises(ValueError, match="^BertModel has .* with AutoModelForMaskedLM, if it holds a head$"):
            call()


@pytest.mark.parametrize("name", ["ViTModel"])
def test_what_reads_both_ways_has_no_mend(name):
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**SMALL)).eval()
    why = f"^{name} has no next-token logits to explain: lrp_fast explains decoders and encoders$"
    for call in (lambda: attribute(model, [1, 2]), lambda: plan(model, 2)):
        with pytest.raises(ValueError, match=why):
            call()


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "T5Model", "BartModel", "WhisperModel"])
def test_encoder_decoders(name):
    model_class = getattr(transformers, name)
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_layers": 1, "vocab_size": 97}
    small |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0}
    model = model_class(model_class.config_class(**small)).eval()
    for call in (lambda: attribute(model, [1, 2]), lambda: plan(model, 2)):
        with pytest.raises(ValueError, match=f"^{name} is an encoder-decoder model: lrp_fast explains decoders and"):
            call()


class Holder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = nn.ModuleDict({"lm": model})

    def forward(self, **given):
        return self.inner["lm"](**given)


WRAPPINGS = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "Holder": Holder,
    "Sequential": nn.Sequential,
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_what_is_wrapped_around_a_model_names_the_model(name, tiny, ids):
    model = tiny("llama")
    around = WRAPPINGS[name](model).eval()
    path = {"Holder": "inner.lm", "Sequential": "0"}.get(name, "module")
    why = f"^{name} is no model of transformers, but holds one: pass its .{path}, a LlamaForCausalLM$"
    for call in (lambda: attribute(around, ids), lambda: plan(around, 23), lambda: patched(around).__enter__()):
        with pytest.raises(UnsupportedModuleError, match=why):
            call()
    assert torch.equal(attribute(around.get_submodule(path), ids, 3, 5).layers, attribute(model, ids, 3, 5).layers)


def test_distributed_data_parallel(tiny, ids, tmp_path):
    """And FSDP, whose weights are shards."""
    if not torch.distributed.is_available():
        pytest.skip("torch has no distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = tiny("llama")
        around = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(UnsupportedModuleError, match=r"holds one: pass its .module, a LlamaForCausalLM$"):
            attribute(around, ids)
        assert attribute(around.module, ids).layers.shape == (4, 23)
        from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

        sharded = FullyShardedDataParallel(tiny("llama"), device_id=torch.device("cpu")).eval()
        with pytest.raises(UnsupportedModuleError, match="keeps the weights in shards: load the model whole, without"):
            attribute(sharded, ids)
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        sharded = fully_shard(tiny("llama"), mesh=mesh).eval()
        spread = "is a DTensor, spread over processes: load the model whole, without FSDP or tp_plan$"
        for call in (lambda: attribute(sharded, ids), lambda: plan(sharded, 23), lambda: patched(sharded).__enter__()):
            with pytest.raises(UnsupportedModuleError, match=spread):
                call()
    finally:
        torch.distributed.destroy_process_group()


def test_what_is_no_model_at_all(tiny, ids):
    model = tiny("llama")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, "a")))
    pipeline = transformers.TextGenerationPipeline(model, tokenizer)
    why = "^model must be a loaded transformers model, not TextGenerationPipeline: pass its .model$"
    for call in (lambda: attribute(pipeline, ids), lambda: plan(pipeline, 23)):
        with pytest.raises(TypeError, match=why):
            call()
    assert torch.equal(attribute(pipeline.model, ids, 3, 5).layers, attribute(model, ids, 3, 5).layers)
    load = "load one with transformers.AutoModelForCausalLM.from_pretrained$"
    for given in ("gpt2", None, model.config, transformers.LlamaForCausalLM, model(ids), model.state_dict()):
        with pytest.raises(TypeError, match=f"^model must be a loaded transformers model, not .*: {load}"):
            attribute(given, ids)
    other = type("HookedTransformer", (nn.Module,), {})()
    with pytest.raises(UnsupportedModuleError, match=f"^HookedTransformer is no model of transformers: {load}"):
        attribute(other, ids)
    with pytest.raises(ValueError, match=f"^Linear has no next-token logits to explain: .*{load[8:]}"):
        attribute(nn.Linear(2, 2).eval(), ids)


def test_a_model_on_meta_is_loaded(tiny, ids, tmp_path):
    whole = tiny("llama")
    whole.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(whole.config).eval()
    why = (
        "^model.embed_tokens of LlamaForCausalLM has no weights, being on the 'meta' device: load the model with "
        r"LlamaForCausalLM.from_pretrained \(lrp_fast.plan needs none\)$"
    )
    with pytest.raises(ValueError, match=why):
        attribute(model, ids)
    assert plan(model, 23, device="cpu").tiers == plan(whole, 23).tiers
    mended = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(attribute(mended, ids, 3, 5).layers, attribute(whole, ids, 3, 5).layers)
    half = tiny("llama")
    half.model.layers[1].mlp.to("meta")
    with pytest.raises(ValueError, match="^model.layers.1.mlp.gate_proj of LlamaForCausalLM has no weights"):
        attribute(half, ids)


def test_a_model_that_has_logits_and_no_rule_names_what_of_it_has(ids, tiny):
    """Blip-2 wants an image; what it holds does not."""
    text = transformers.LlamaConfig(**SMALL)
    config = transformers.Blip2Config(
        text_config=text,
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        qformer_config=SMALL | {"encoder_hidden_size": 16},
    )
    model = transformers.Blip2ForConditionalGeneration(config).eval()
    why = "^no propagation rule covers Blip2ForC.*, but its language model is covered: pass model.language_model, and"
    for call in (lambda: attribute(model, ids), lambda: plan(model, 23)):
        with pytest.raises(UnsupportedModuleError, match=why):
            call()
    assert attribute(model.language_model, ids).layers.shape == (3, 23)


def test_a_class_of_ones_own_is_taken_once_it_is_taught(tiny, ids, taught):
    class Mine(transformers.LlamaForCausalLM):
        def forward(self, *args, **named):
            return super().forward(*args, **named)

    model = tiny("llama")
    truth = attribute(model, ids, 3, 5)
    model.__class__ = Mine
    with pytest.raises(UnsupportedModuleError, match=r"the model itself, a Mine: .*hf.register\(Mine, handler\)"):
        attribute(model, ids)
    taught(Mine, lrp_fast.hf.handlers.leave)
    assert torch.equal(attribute(model, ids, 3, 5).layers, truth.layers)

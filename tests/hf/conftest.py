"""Models quantised on the way in."""

import pytest
import torch
import transformers


@pytest.fixture
def load_quantised():
    """``load_quantised(folder, form)``: a float32 checkpoint as users load it quantised, in one of three forms."""

    def load(folder, form):
        pytest.importorskip("accelerate")
        if form == "int8":
            given = transformers.TorchAoConfig(
                pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig(set_inductor_config=False)
            )
        else:
            pytest.importorskip("bitsandbytes")
            kinds = {"llm.int8": {"load_in_8bit": True}, "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
            given = transformers.BitsAndBytesConfig(**kinds[form])
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=given, device_map="cpu", dtype=torch.float32
        ).eval()

    return load

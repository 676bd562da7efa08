"""Hugging Face architectures, tiny and with random weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn

from tests.zoo.harness import check

V = 20  # vocabulary
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def images(size: int = 8, classes: int = 3):
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(4, 3, size, size, generator=g), torch.tensor([0, 1, 2, 0])
    return lambda model: F.cross_entropy(model(pixel_values=x).logits, y)


def tokens(length: int = 7) -> torch.Tensor:
    return torch.randint(1, V, (3, length), generator=torch.Generator().manual_seed(2))


def language(model: nn.Module) -> torch.Tensor:
    ids = tokens()
    return model(input_ids=ids, labels=ids).loss


def translation(model: nn.Module) -> torch.Tensor:
    return model(input_ids=tokens(), labels=tokens(5)).loss


def classification(model: nn.Module) -> torch.Tensor:
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return model(input_ids=tokens(), attention_mask=mask, labels=torch.tensor([0, 1, 2])).loss


def numbered(*prefixes: str, n: int = 2) -> list[str]:
    return [f"{p}.{i}" for p in prefixes for i in range(n)]


def test_resnet() -> None:
    config = hf.ResNetConfig(
        embedding_size=6, hidden_sizes=[6, 8], depths=[2, 2], layer_type="basic", num_labels=3
    )
    stages = numbered("resnet.encoder.stages.0.layers", "resnet.encoder.stages.1.layers")
    check(hf.ResNetForImageClassification(config), images(16), blocks=stages)


def test_convnext() -> None:
    config = hf.ConvNextConfig(
        num_stages=2,
        hidden_sizes=[6, 8],
        depths=[2, 2],
        patch_size=2,
        layer_scale_init_value=0.5,
        num_labels=3,
    )
    stages = numbered("convnext.encoder.stages.0.layers", "convnext.encoder.stages.1.layers")
    check(hf.ConvNextForImageClassification(config), images(), blocks=stages)


def test_vit() -> None:
    config = hf.ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_labels=3,
        **NO_DROPOUT,
    )
    check(hf.ViTForImageClassification(config), images(), blocks=numbered("vit.layers"))


def test_swin() -> None:
    config = hf.SwinConfig(
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=4,
        drop_path_rate=0.0,
        num_labels=3,
        **NO_DROPOUT,
    )
    stages = numbered("swin.encoder.layers.0.blocks", "swin.encoder.layers.1.blocks")
    check(hf.SwinForImageClassification(config), images(16), blocks=stages)


def bert() -> nn.Module:
    config = hf.BertConfig(
        vocab_size=V,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        num_labels=3,
        **NO_DROPOUT,
    )
    return hf.BertForSequenceClassification(config)


def test_bert() -> None:
    check(bert(), classification, blocks=numbered("bert.encoder.layer"))


@pytest.mark.parametrize("reentrant", [False, True])
def test_bert_with_gradient_checkpointing(reentrant: bool) -> None:
    model = bert()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()

    def without(twin: nn.Module) -> torch.Tensor:
        twin.activation_checkpointing_disable()
        return classification(twin)

    check(model, classification, oracle_loss=without, blocks=numbered("bert.encoder.layer"))


def gpt2() -> nn.Module:
    config = hf.GPT2Config(
        vocab_size=V,
        n_positions=16,
        n_embd=12,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return hf.GPT2LMHeadModel(config)


def test_gpt2() -> None:
    model = gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight  # tied
    result = check(model, language, blocks=numbered("transformer.h"))
    sites = result.run["error_moment"].set_index(site="site")
    attention = sites.sel(site="transformer.h.0.attn.c_attn")
    assert (attention["fan_in"].item(), attention["fan_out"].item()) == (12, 36)
    assert "transformer.h.0.attn.c_attn" in result.run["filter_correlation"]["site"].values


def test_llama() -> None:
    config = hf.LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    check(hf.LlamaForCausalLM(config), language, blocks=numbered("model.layers"))


def test_t5() -> None:
    config = hf.T5Config(
        vocab_size=V,
        d_model=12,
        d_kv=6,
        d_ff=16,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    model = hf.T5ForConditionalGeneration(config)
    stages = numbered("encoder.block", "decoder.block")
    # Its weight is that of the encoder's and the decoder's embedding; it runs under their names alone.
    check(model, translation, blocks=stages, unobserved=["shared"])


def test_bart() -> None:
    config = hf.BartConfig(
        vocab_size=V,
        d_model=12,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=32,
        dropout=0.0,
        decoder_start_token_id=2,
    )
    model = hf.BartForConditionalGeneration(config)
    layers = numbered("model.encoder.layers", "model.decoder.layers")
    check(model, translation, blocks=layers, unobserved=["model.shared"])


def test_mixtral_keeps_its_experts_in_one_module() -> None:
    config = hf.MixtralConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=32,
        output_router_logits=True,
    )
    model = hf.MixtralForCausalLM(config)
    result = check(model, language, blocks=numbered("model.layers"))
    sites = result.run["error_moment"]["site"].values
    assert {"model.layers.0.mlp.gate", "model.layers.0.mlp.experts"} <= set(sites)


def test_switch_runs_some_experts_only() -> None:
    config = hf.SwitchTransformersConfig(
        vocab_size=V,
        d_model=12,
        d_kv=6,
        d_ff=16,
        num_layers=2,
        num_sparse_encoder_layers=1,
        num_decoder_layers=2,
        num_sparse_decoder_layers=1,
        num_heads=2,
        num_experts=6,
        expert_capacity=4,
        dropout_rate=0.0,
        router_jitter_noise=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    model = hf.SwitchTransformersForConditionalGeneration(config)
    blocks = numbered("encoder.block", "decoder.block")
    result = check(model, translation, blocks=blocks, unobserved=None)
    moments = result.run["error_moment"]["output"].values
    assert np.isnan(moments).any()  # an expert that did not run in a step has no value there


def test_generation_between_two_steps_does_not_count() -> None:
    model = gpt2()

    def loss(net: nn.Module) -> torch.Tensor:
        net.generate(tokens(3), max_new_tokens=4, do_sample=False)
        return language(net)

    check(model, loss, oracle_loss=language, blocks=numbered("transformer.h"))

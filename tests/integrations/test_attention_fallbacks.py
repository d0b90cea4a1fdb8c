"""What attention ``"tokenops"`` cannot serve goes elsewhere with a reason, or is refused."""

from __future__ import annotations

import copy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations import packed, tiny
from integrations import reference as ref
from integrations.packed import Packs, running, told
from integrations.test_soft import soft
from torch import Tensor

import tokenops
from tokenops import TokenOpsError
from tokenops.integrations import attention as module
from tokenops.integrations.attention import packed_attention, packed_mask, register_attention
from tokenops.integrations.packing import Packing

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
IDS = torch.arange(36).view(3, 12) % 47 + 3
MASK = torch.tensor([[0] * 5 + [1] * 7, [1] * 12, [0] * 2 + [1] * 10])


def text_models(name: str, **config: Any) -> tuple[Any, Any]:
    """The same model on tokenops and on its own eager attention."""
    import transformers

    register_attention()
    torch.manual_seed(0)
    kind = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    made = kind(**SMALL | config, attn_implementation="eager")
    eager = getattr(transformers, f"{name}ForCausalLM")(made).eval()
    model = copy.deepcopy(eager)
    model.set_attn_implementation("tokenops")
    assert model.config._attn_implementation == "tokenops"
    return model, eager


def same(model: Any, other: Any, mask: Tensor | None = MASK, **call: Any) -> None:
    with torch.no_grad():
        got, want = (m(input_ids=IDS, attention_mask=mask, **call).logits for m in (model, other))
    real = slice(None) if mask is None or mask.ndim != 2 else mask.bool()
    ref.close(got[real], want[real])


def window(monkeypatch: pytest.MonkeyPatch) -> None:
    model, eager = text_models("Mistral", sliding_window=4)
    with told(monkeypatch, "sdpa instead of tokenops: attention in windows or chunks"):
        same(model, eager)
        same(model, eager, None)


def soft_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2 without its windows."""
    kinds = ["full_attention"] * 2
    model, eager = text_models("Gemma2", attn_logit_softcapping=0.5, layer_types=kinds)
    with told(monkeypatch, "the model's eager attention instead of tokenops: soft-capped logits"):
        same(model, eager)
        same(model, eager, None)


def sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ["full_attention"] * 2
    model, eager = text_models(
        "GptOss", layer_types=kinds, num_local_experts=2, num_experts_per_tok=1, rope_parameters=None
    )
    for m in (model, eager):
        for layer in m.model.layers:
            layer.self_attn.sinks.data = torch.linspace(-1.0, 3.0, 4)
    with told(monkeypatch, "the model's eager attention instead of tokenops: attention sinks"):
        same(model, eager)
        same(model, eager, None)


def packed_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    model, eager = text_models("Llama")
    places = torch.tensor([[*range(5), *range(7)]]).expand(3, -1)
    with told(monkeypatch, "more than causality and padding"):
        same(model, eager, None, position_ids=places, use_cache=False)


def four_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, eager = text_models("Llama")
    mask = torch.rand(3, 1, 12, 12) > 0.4
    mask = mask | torch.eye(12, dtype=torch.bool)
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with told(monkeypatch, "a mask given in four dimensions"):
        same(model, eager, additive)
        same(model, eager, additive)


def fixed_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model, eager = text_models("Llama")
    run: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "disable_compile": True}
    want = eager.generate(IDS, attention_mask=MASK, **run)
    with told(monkeypatch, "a cache of fixed size"):
        got = model.generate(IDS, attention_mask=MASK, cache_implementation="static", **run)
    assert torch.equal(got, want)


def dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = text_models("Llama", attention_dropout=0.5)
    other = copy.deepcopy(model)
    other.set_attn_implementation("sdpa")
    with told(monkeypatch, "dropout"):
        torch.manual_seed(3)
        got = model.train()(input_ids=IDS, attention_mask=MASK).logits[MASK.bool()]
    torch.manual_seed(3)
    ref.close(got, other.train()(input_ids=IDS, attention_mask=MASK).logits[MASK.bool()])


def attention_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """sdpa has none to give either, and says so."""
    model, eager = text_models("Llama")
    with told(monkeypatch, "output_attentions"):
        same(model, eager, output_attentions=True)


@pytest.mark.parametrize(
    "case",
    [window, soft_cap, sinks, packed_sequences, four_dimensions, fixed_cache, dropout, attention_maps],
    ids=lambda case: case.__name__,
)
def test_a_stated_reason_once_and_the_right_result(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = Packs(monkeypatch)
    case(monkeypatch)
    assert not packs.calls


@pytest.mark.parametrize("which", ["none", "skip"])
def test_a_callers_dense_mask_in_a_vlm(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tiny.batch(ref.prompts("llava"))
    real = inputs["attention_mask"].bool()
    length = real.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None, None]
    mask = mask | torch.eye(length, dtype=torch.bool)
    found = []
    for backend in packed.BACKENDS:
        with running(which, "llava", backend) as model, torch.no_grad():
            call = inputs | {"attention_mask": mask}
            if backend == "sdpa":
                found.append(model(**call).logits[real])
                continue
            with told(monkeypatch, "a mask given in four dimensions"):
                found.append(model(**call).logits[real])
    ref.close(found[1], found[0])


def test_the_soft_mask_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """``gate="attention"`` adds to logits: loss and the gradient of the gate are those of sdpa."""
    inputs = tiny.batch(ref.prompts("llava"))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= tiny.IMAGE, -100)
    found = []
    for backend in packed.BACKENDS:
        with running("none", "llava", backend) as model:
            weight = torch.full((tiny.TEXT["hidden_size"],), 0.1, requires_grad=True)
            pipeline = soft(lambda x, mask, weight=weight: (x @ weight).sigmoid() * mask, "attention")
            warned = told(monkeypatch, "the soft mask of training") if backend != "sdpa" else nullcontext()
            with tokenops.attach(model.train(), pipeline), warned:
                loss = model(**inputs, labels=labels).loss
            loss.backward()
            found.append((loss.detach(), weight.grad))
    (want, expected), (loss, gradient) = found
    ref.close(loss, want)
    ref.close(gradient, expected)
    assert bool(gradient.abs().sum() > 0)


SPARSE: dict[str, Any] = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 4,
}


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_sparse_attention_is_refused(mask: Tensor | None) -> None:
    """The indexer's choice of 4 among 12 keys reaches the mask under sdpa and eager alone."""
    model, _ = text_models("DeepseekV32", **SPARSE)
    with pytest.raises(TokenOpsError, match="sparse attention.*use sdpa, got indices"):
        model(input_ids=IDS, attention_mask=mask)


@pytest.mark.parametrize("name", ["indices", "block_indices"])
def test_chosen_keys_are_refused_before_anything_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = Packs(monkeypatch)
    options: dict[str, Any] = {name: torch.zeros(2, 4, 2, dtype=torch.int)}
    for mask in (None, Packing(torch.tensor([[False, True, True, True]] * 2), 4)):
        with pytest.raises(TokenOpsError, match=f"use sdpa, got {name}"):
            packed_attention(Module(), *heads(), mask, **options)
    assert not packs.calls


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["Bloom", "CodeGen"])
def test_models_with_an_attention_of_their_own_are_refused(name: str, padded: bool) -> None:
    """Without a mask written out theirs would not even be causal."""
    import transformers

    register_attention()
    small = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "rotary_dim": 4}
    config = getattr(transformers, f"{name}Config")(**small, attn_implementation="tokenops")
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with pytest.raises(TokenOpsError, match=f"registry.*got {name}Config"):
        model(input_ids=IDS, attention_mask=MASK if padded else None)


def siglip2(head: bool) -> Any:
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    register_attention()
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    more: dict[str, Any] = {"num_attention_heads": 4, "num_patches": 16, "patch_size": 4}
    return Siglip2VisionModel(Siglip2VisionConfig(**small, **more, vision_use_head=head)).eval()


@pytest.mark.parametrize("head", [True, False])
def test_a_model_that_computes_with_its_mask_is_refused(head: bool) -> None:
    """The pooling head of SigLIP 2 repeats the mask; the encoder alone hands it on."""
    model, mask = siglip2(head), torch.tensor([[1] * 12 + [0] * 4, [1] * 16])
    call = {
        "pixel_values": torch.randn(2, 16, 48),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[3, 4], [4, 4]]),
    }
    with torch.no_grad():
        want = model(**call).last_hidden_state
        model.set_attn_implementation("tokenops")
        if head:
            with pytest.raises(TokenOpsError, match="use sdpa for this one, got mask.repeat"):
                model(**call)
        else:
            ref.close(model(**call).last_hidden_state[mask.bool()], want[mask.bool()])


@pytest.mark.filterwarnings("ignore::tokenops.TokenOpsWarning")
@pytest.mark.parametrize("keep", [0, 1, 3])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_layers_that_see_only_the_newest_queries(keep: int, mask: Tensor | None) -> None:
    """Gemma 4 cuts queries and mask before the layers that share keys."""
    kinds = ["sliding_attention", "full_attention"] * 2
    model, eager = text_models(
        "Gemma4", num_hidden_layers=4, layer_types=kinds, num_kv_shared_layers=2, global_head_dim=8,
        vocab_size_per_layer_input=50, hidden_size_per_layer_input=8,
    )  # fmt: skip
    with torch.no_grad():
        got, want = (
            m(input_ids=IDS, attention_mask=mask, logits_to_keep=keep).logits[:, -max(1, keep) :]
            for m in (model, eager)
        )
    ref.close(got, want)


class Module(torch.nn.Module):
    """An attention module of a model without eager attention."""

    is_causal = True
    num_key_value_groups = 1


def heads(queries: int = 4, keys: int = 4, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, 2, queries, 8), torch.randn(batch, 2, keys, 8), torch.randn(batch, 2, keys, 8)


@pytest.mark.parametrize("name", ["cache", "block_tables", "cu_seq_lens_q"])
def test_paged_and_packed_sequences_are_refused(name: str) -> None:
    padded = Packing(torch.ones(2, 4, dtype=torch.bool), 4)
    options: dict[str, Any] = {name: torch.zeros(3)}
    for mask in (None, padded):
        with pytest.raises(TokenOpsError, match=f"not packed or paged ones, got {name}"):
            packed_attention(Module(), *heads(), mask, **options)


def test_lengths_other_than_the_masks_are_refused() -> None:
    mask = Packing(torch.tensor([[False, True, True, True]] * 2), 4)
    for shapes in ((4, 5, 2), (3, 4, 2), (4, 4, 3)):
        with pytest.raises(TokenOpsError, match="2 sequences of 4 queries and 4 keys"):
            packed_attention(Module(), *heads(*shapes), mask)


def test_logits_to_change_in_a_model_without_eager_attention_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_told", {"soft-capped logits"})
    with pytest.raises(TokenOpsError, match="a model with eager attention, got Module"):
        packed_attention(Module(), *heads(), None, softcap=30.0)


def test_a_model_that_wants_its_mask_written_out_gets_it() -> None:
    from transformers.masking_utils import bidirectional_mask_function

    padding = torch.tensor([[False, True, True]])
    common: dict[str, Any] = {"batch_size": 1, "q_length": 3, "kv_length": 3, "attention_mask": padding}
    assert isinstance(packed_mask(**common), Packing)
    for more in ({"allow_is_causal_skip": False}, {"mask_function": bidirectional_mask_function}):
        mask = packed_mask(**common, **more)
        assert isinstance(mask, Tensor)
        assert mask.shape == (1, 1, 3, 3)


def test_a_mask_that_does_not_reach_all_keys_is_written_out() -> None:
    """Nobody knows whether the rest is padding, so sdpa's rule holds."""
    from transformers.masking_utils import sdpa_mask

    call: dict[str, Any] = {"batch_size": 1, "q_length": 2, "kv_length": 5, "q_offset": 3}
    padding = torch.tensor([[False, True, True]])
    mask, want = packed_mask(**call, attention_mask=padding), sdpa_mask(**call, attention_mask=padding)
    assert isinstance(mask, Tensor)
    assert isinstance(want, Tensor)
    assert torch.equal(mask, want)


def test_another_attention_of_this_name_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import AttentionInterface

    register_attention()
    monkeypatch.setitem(AttentionInterface._global_mapping, "tokenops", heads)
    with pytest.raises(TokenOpsError, match="no other attention 'tokenops'"):
        register_attention()


def test_loading_with_it(tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    register_attention()
    model = tiny.llava()
    model.save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="tokenops")
    parts = (loaded, loaded.model.language_model, loaded.model.vision_tower)
    assert [part.config._attn_implementation for part in parts] == ["tokenops"] * 3
    inputs = tiny.batch(ref.prompts("llava"))
    with torch.no_grad():
        got, want = (ref.real(inputs, m(**inputs).logits) for m in (loaded, model))
    ref.close(got, want)


@pytest.mark.slow
def test_importing_registers_nothing() -> None:
    code = """
import tokenops, tokenops.integrations
from tokenops.integrations import attach, register_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as known
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as masks
assert "tokenops" not in known.valid_keys()
register_attention(), register_attention()
assert "tokenops" in known.valid_keys() and "tokenops" in masks.valid_keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)

"""Received attention and keys read by the probe are those of the vision tower's own attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny
from largest import Largest
from torch import Tensor

import tokenops
from tokenops import Pipeline, Prune, Selection, TokenOpsError
from tokenops.integrations import probe
from tokenops.selectors import TopK
from tokenops.selectors.scorers import cls_attention, received_attention


class Spy:
    """Keeps everything and remembers the signals it was given, padding cut off, one entry per image."""

    def __init__(self, *names: str) -> None:
        self.names, self.seen = names, list[dict[str, Tensor]]()

    def needs(self) -> dict[str, bool]:
        return dict.fromkeys(self.names, True)

    def __call__(self, x: Tensor, *, mask: Tensor, **signals: Tensor) -> Selection:
        self.seen = [{k: v[i, real] for k, v in signals.items()} for i, real in enumerate(mask)]
        return Selection.from_mask(mask)


def read(model: Any, inputs: dict[str, Any], *names: str) -> list[dict[str, Tensor]]:
    spy = Spy(*names)
    with torch.no_grad(), tokenops.attach(model, Pipeline(after_projector=Prune(spy))):
        model(**inputs)
    return spy.seen


def attention_inputs(model: Any, block: int, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """What a block's attention is called with, for images and for videos."""
    calls: list[dict[str, Any]] = []

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        calls.append({"hidden_states": args[0] if args else None, **kwargs})

    handle = model.model.visual.blocks[block].attn.register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return calls


def qwen_by_hand(model: Any, block: int, inputs: dict[str, Any], kind: str) -> list[dict[str, Tensor]]:
    """Whole maps of every frame, columns averaged, patches merged, back in the order of the picture."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    visual, grids = model.model.visual, inputs[f"{kind}_grid_thw"]
    (call,) = attention_inputs(model, block, inputs)
    attention = visual.blocks[block].attn
    with torch.no_grad():
        qkv = attention.qkv(call["hidden_states"]).view(-1, 3, 4, 8).unbind(1)
        q, k = apply_rotary_pos_emb_vision(qkv[0], qkv[1], *call["position_embeddings"])
    frames = [h * w for t, h, w in grids.tolist() for _ in range(t)]
    received = []
    for frame_q, frame_k in zip(q.split(frames), k.split(frames), strict=True):
        maps = (torch.einsum("ihd,jhd->hij", frame_q, frame_k) * 8**-0.5).softmax(-1)
        received.append(maps.mean((0, 1)))
    # the tower's own order: numbered cells through its own window index
    try:
        from transformers.vision_utils import get_vision_window_index

        index, _ = get_vision_window_index(grids, spatial_merge_size=2, window_size=16, patch_size=4)
    except ImportError:
        index, _ = visual.get_window_index(grids)
    back = torch.as_tensor(index).argsort()
    values = {"received_attention": torch.cat(received), "vision_keys": k.mean(1)}
    cells = {name: v.unflatten(0, (-1, 4)).mean(1)[back] for name, v in values.items()}
    sizes = [t * h * w // 4 for t, h, w in grids.tolist()]
    parts = {name: v.split(sizes) for name, v in cells.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(len(sizes))]


def same(got: list[dict[str, Tensor]], want: list[dict[str, Tensor]]) -> None:
    assert len(got) == len(want) > 0
    for a, b in zip(got, want, strict=True):
        assert set(a) == set(b)
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-5)


QWEN = ("received_attention", "vision_keys")


@pytest.mark.parametrize("backend", ref.BACKENDS)
@pytest.mark.parametrize("images", [[0], [1, 0, 3], [2]], ids=["one", "several", "video"])
def test_qwen_is_the_map_by_hand(images: list[int], backend: str) -> None:
    model, inputs = ref.model("qwen2_5_vl", backend), tiny.sample("qwen2_5_vl", images, 1)
    want = qwen_by_hand(model, 1, inputs, "video" if images == [2] else "image")
    assert want[0]["received_attention"].std() > 1e-4
    same(read(model, inputs, *QWEN), want)


def test_qwen_images_and_videos_of_a_batch() -> None:
    model, samples = ref.model("qwen2_5_vl"), ref.prompts("qwen2_5_vl")
    alone = [entry for s in samples if len(s) > 3 for entry in read(model, s, *QWEN)]
    same(read(model, tiny.batch(samples), *QWEN), alone)


def test_the_last_block_with_full_attention_is_read() -> None:
    model = tiny.qwen()
    config = model.model.visual.config
    config.fullatt_block_indexes = model.model.visual.fullatt_block_indexes = [0]
    inputs = tiny.sample("qwen2_5_vl", [0], 1)
    same(read(model, inputs, *QWEN), qwen_by_hand(model, 0, inputs, "image"))


def siglip(layer: int = -1) -> Any:
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            image_size=16, patch_size=4, vision_use_head=False,
        ),
        text_config=LlamaConfig(**tiny.TEXT),
        image_token_index=tiny.IMAGE,
        image_token_id=tiny.IMAGE,
        vision_feature_layer=layer,
        vision_feature_select_strategy="full",
        image_seq_length=16,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    for p in model.model.vision_tower.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


@pytest.mark.parametrize("layer", [-1, -2])
def test_siglip_is_the_eager_map(layer: int) -> None:
    model, inputs = siglip(layer), tiny.sample("llava", [0, 1], 1)
    got = read(model, inputs, *QWEN)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions[layer]
    assert maps.shape == (2, 4, 16, 16)
    for entry, own in zip(got, maps, strict=True):
        torch.testing.assert_close(entry["received_attention"], own.mean((0, 1)), atol=1e-6, rtol=1e-5)
        assert entry["vision_keys"].shape == (16, 8)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_clip_keys_are_the_key_projection(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    keys: list[Tensor] = []
    attention = model.model.vision_tower.encoder.layers[1].self_attn
    handle = attention.k_proj.register_forward_hook(lambda m, a, out: keys.append(out))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    crops = keys[0][:, 1:].unflatten(-1, (4, 8)).mean(2)  # (crops, patches, 8)
    got = read(model, inputs, "vision_keys", "cls_attention", "grid")
    first = 0
    for entry in got:
        frame, row, column = entry["grid"].unbind(-1)
        want = crops[first + frame, row * 4 + column]
        torch.testing.assert_close(entry["vision_keys"], want, atol=1e-6, rtol=1e-5)
        first += int(frame.max()) + 1 if family == "llava_next" else 1
    assert first == crops.shape[0]


@pytest.mark.parametrize("at_once", [1, 100, 5000])
def test_rows_come_in_pieces(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    q, k = torch.randn(2, 2, 3, 200, 4)
    want = (q @ k.transpose(-1, -2) * 0.7).softmax(-1).mean((1, 2))
    monkeypatch.setattr(probe, "_AT_ONCE", at_once)
    with Largest() as largest:
        got = probe._received_attention(q, k, 0.7)
    torch.testing.assert_close(got, want)
    assert largest.most <= max(at_once, q.numel())
    torch.testing.assert_close(got.sum(-1), torch.ones(2))


def test_nothing_is_read_for_pipelines_that_do_not_ask() -> None:
    model, inputs = ref.model("qwen2_5_vl"), tiny.sample("qwen2_5_vl", [0], 1)

    def probed() -> int:
        return sum("_tokenops_lens" in vars(m) for m in model.modules())

    with torch.no_grad():
        plain = model(**inputs).logits
        with tokenops.attach(model, ref.prune(1.0)):
            assert probed() == 0
        with tokenops.attach(model, Pipeline(after_projector=Prune(TopK(received_attention, 1.0)))):
            assert probed() == 1
            assert torch.equal(model(**inputs).logits, plain)
            assert model.config._attn_implementation == "sdpa"
    assert probed() == 0


def test_what_another_caller_left_is_not_taken() -> None:
    """The tower run by itself, and a backward pass that recomputes it."""
    model, inputs = ref.model("qwen2_5_vl").train(), tiny.sample("qwen2_5_vl", [0], 1)
    model.model.visual.gradient_checkpointing_enable({"use_reentrant": False})
    spy = Spy(*QWEN)
    with tokenops.attach(model, Pipeline(after_projector=Prune(spy))):
        model(**inputs).logits.sum().backward()
        want = spy.seen
        model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        model(**inputs).logits.sum().backward()
    same(spy.seen, want)


@pytest.mark.parametrize(
    ("family", "scorer", "message"),
    [
        ("llava", received_attention, r"signal received_attention: .*\(cls_attention is for those"),
        ("qwen2_5_vl", cls_attention, "signal cls_attention: a vision tower with a CLS token"),
        ("siglip", cls_attention, "signal cls_attention: a vision tower with a CLS token"),
    ],
)
def test_signals_a_tower_cannot_give_are_refused(family: str, scorer: Any, message: str) -> None:
    model = siglip() if family == "siglip" else ref.model(family)
    with pytest.raises(TokenOpsError, match=message):
        tokenops.attach(model, Pipeline(after_projector=Prune(TopK(scorer, 0.5))))
    assert tokenops.integrations.attached(model) is None

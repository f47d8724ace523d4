#!/usr/bin/env python3
"""Checks what make.py wrote, with numpy arithmetic of its own. Prints a line a check; stops at the first that fails.

    python check.py
"""

import json
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file

MODEL = Path(__file__).resolve().parent.parent / "tiny-llama"
PREFIX = "base_model.model."
BF16 = ml_dtypes.bfloat16
GGUF_TO_HF = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def wide(tensors):
    return {k: v.astype(np.float64) for k, v in tensors.items()}


def report(name, exact, stored):
    """exact is float64; stored is PEFT's BF16, computed in float32 and rounded once."""
    assert exact.keys() == stored.keys(), name
    differ, excess = 0, 0.0
    for k, x in exact.items():
        y = stored[k].astype(np.float64)
        differ += int((x.astype(np.float32).astype(BF16) != stored[k]).sum())
        half_step = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(x), 2.0**-100))) - 8)
        excess = max(excess, ((np.abs(x - y) - half_step) / np.abs(x).max()).max())
    size = sum(v.size for v in stored.values())
    print(f"{name}: {differ} of {size} values are not the float64 result rounded once; beyond half a BF16 step: {max(excess, 0):.3g} of the largest value")
    assert excess <= 2.0**-22, name


def adapter_tensors(folder):
    if (folder / "adapter_model.safetensors").exists():
        tensors = load_file(folder / "adapter_model.safetensors")
    else:
        import torch

        tensors = {k: v.numpy() for k, v in torch.load(folder / "adapter_model.bin", weights_only=True).items()}
    return {k.removeprefix(PREFIX): v.astype(np.float64) for k, v in tensors.items()}


def by_pattern(pattern, module, default):
    return next((v for k, v in pattern.items() if module == k or module.endswith("." + k)), default)


def merged_by_formula(base, folder):
    """The tensors that the adapter changes, in float64."""
    config = json.loads((folder / "adapter_config.json").read_text())
    t = adapter_tensors(folder)
    out = {}
    for key, value in t.items():
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            a, b = value, t[module + ".lora_B.weight"]
            rank = a.shape[0]
            assert rank == by_pattern(config["rank_pattern"], module, config["r"]), module
            alpha = by_pattern(config["alpha_pattern"], module, config["lora_alpha"])
            w = base[module + ".weight"] + alpha / (rank**0.5 if config["use_rslora"] else rank) * (b @ a)
            m = t.get(module + ".lora_magnitude_vector")
            if m is not None:
                w *= (m / np.linalg.norm(w, axis=1))[:, None]
        elif key.endswith(".lora_embedding_A"):
            module = key.removesuffix(".lora_embedding_A")
            delta = config["lora_alpha"] / config["r"] * (t[module + ".lora_embedding_B"] @ value).T
            # For embeddings, unlike for linears, PEFT rounds the update to BF16 before it adds it.
            w = base[module + ".weight"] + delta.astype(np.float32).astype(BF16).astype(np.float64)
        elif key.endswith(".token_adapter.trainable_tokens_delta"):
            module = key.removesuffix(".token_adapter.trainable_tokens_delta")
            w = base[module + ".weight"].copy()
            w[config["trainable_token_indices"]] = value
        elif ".lora_" in key:
            continue
        elif key.endswith(".base_layer.weight"):
            assert np.array_equal(value, base[key.replace(".base_layer", "")])
            continue
        else:
            module, w = key.removesuffix(".weight"), value
        out[module + ".weight"] = w
    return out


def check_merges(base):
    delta = merged_by_formula(base, MODEL / "adapter")
    ratio = [np.std(w - base[k]) / np.std(base[k]) for k, w in delta.items()]
    print(f"adapter: std(delta)/std(W) {min(ratio):.4f} to {max(ratio):.4f} over {len(ratio)} matrices")
    report("merged", base | delta, load_file(MODEL / "merged" / "model.safetensors"))
    for folder in sorted((MODEL / "adapters").iterdir()):
        report(folder.name, merged_by_formula(base, folder), load_file(folder / "merged.safetensors"))


def hf_name(name):
    module = name.removesuffix(".weight")
    if module.startswith("blk."):
        _, block, rest = module.split(".")
        return f"model.layers.{block}.{GGUF_TO_HF[rest]}.weight"
    return GGUF_TO_HF[module] + ".weight"


def rotary_halves_apart(name, rows, kv):
    """Undoes the row order of q and k."""
    heads = {"q_proj": kv["llama.attention.head_count"], "k_proj": kv["llama.attention.head_count_kv"]}.get(name.split(".")[-2])
    if heads is None:
        return rows
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def read_gguf(path):
    reader = gguf.GGUFReader(path)
    kv = {k: f.contents() for k, f in reader.fields.items()}
    return kv, {t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}


def check_ggufs(base):
    merged = wide(load_file(MODEL / "merged" / "model.safetensors"))
    kv_a, lora = read_gguf(MODEL / "adapter.gguf")
    rounding = {}
    for name in ["base-f16", "base-q8_0"]:
        kv, weights = read_gguf(MODEL / f"{name}.gguf")
        assert {hf_name(k) for k in weights} == base.keys()
        plain = with_adapter = retained = 0.0
        for k, w in weights.items():
            hf = hf_name(k)
            plain = max(plain, np.abs(rotary_halves_apart(hf, w, kv) - base[hf]).max())
            if k + ".lora_a" in lora:
                a, b = lora[k + ".lora_a"].astype(np.float64), lora[k + ".lora_b"].astype(np.float64)
                w = w + kv_a["adapter.lora.alpha"] / a.shape[0] * (b @ a)
            with_adapter = max(with_adapter, np.abs(rotary_halves_apart(hf, w, kv) - merged[hf]).max())
        rounding[name] = plain
        print(f"{name}.gguf: {len(weights)} tensors; against base/ at most {plain:.3g}; with adapter.gguf applied, against merged/ at most {with_adapter:.3g}")
        half_step = max(np.abs(w).max() for w in merged.values()) * 2.0**-9
        assert with_adapter <= plain + half_step, name
    assert rounding["base-f16"] <= 2.0**-25 and rounding["base-q8_0"] < 0.01

    reader = {name: gguf.GGUFReader(MODEL / f"{name}.gguf") for name in ["base-f16", "base-q8_0"]}
    for f16, q8 in zip(reader["base-f16"].tensors, reader["base-q8_0"].tensors):
        if q8.tensor_type == gguf.GGMLQuantizationType.Q8_0:
            again = gguf.quants.quantize(f16.data.astype(np.float32), q8.tensor_type)
            assert np.array_equal(again, q8.data), q8.name
    print("base-q8_0.gguf: the same bytes when quantized from base-f16.gguf")


def check_onnx():
    facts = json.loads((MODEL / "logits" / "logits.json").read_text())
    ids = np.array([facts["input_ids"]], dtype=np.int64)
    want = np.fromfile(MODEL / "logits" / "base.f32", "<f4").reshape(facts["files"]["base.f32"]["shape"])
    for name in ["base.onnx", "base-dynamo.onnx"]:
        onnx.checker.check_model(str(MODEL / name), full_check=True)
        session = onnxruntime.InferenceSession(str(MODEL / name), providers=["CPUExecutionProvider"])
        runtime = np.abs(session.run(None, {"input_ids": ids})[0][0] - want).max()
        reference = np.abs(ReferenceEvaluator(str(MODEL / name)).run(None, {"input_ids": ids})[0][0] - want).max()
        print(f"{name}: against torch's logits at most {runtime:.3g} in ONNX Runtime, {reference:.3g} in onnx.reference")
        assert max(runtime, reference) <= 1e-4, name
    for name in ["merged", "merged-f32"]:
        other = np.fromfile(MODEL / "logits" / f"{name}.f32", "<f4").reshape(want.shape)
        print(f"logits {name}: differ from base by up to {np.abs(other - want).max():.3g} (largest base logit {np.abs(want).max():.3g})")


def main():
    base = wide(load_file(MODEL / "base" / "model.safetensors"))
    check_merges(base)
    check_ggufs(base)
    check_onnx()


if __name__ == "__main__":
    main()

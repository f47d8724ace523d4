#!/usr/bin/env python3
"""Writes testdata/tiny-llama with the real transformers, peft, torch and gguf packages.

    python make.py            write everything
    python make.py base onnx  write these steps only: base adapters logits gguf onnx
    python make.py export MODEL OUT   only export the Hugging Face folder MODEL to ONNX in OUT

All random numbers come from numpy's PCG64 with fixed seeds. The tests never run this script; they read
what it wrote. check.py checks the result with independent arithmetic.
"""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
warnings.filterwarnings("ignore")

if os.environ.get("PYTHONHASHSEED") != "0":  # peft keeps target_modules in a set and writes them in its order
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.argv])

import gguf
import numpy as np
import onnx
import peft
import safetensors.torch as st
import tokenizers
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

TESTDATA = Path(__file__).resolve().parent.parent
MODEL = Path("tiny-llama")  # relative to TESTDATA, so that no machine's path gets into a written file
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPT = list(b"func Add")  # a byte is a token
UPDATE = 0.07  # std(delta) / std(weight): small, and well above the rounding of BF16, F16 and Q8_0

# One folder each under adapters/, beside the main adapter in adapter/. `about` goes to case.json.
CASES = {
    "rslora": dict(
        about="rsLoRA: scale is alpha / sqrt(r) = 4 / sqrt(8), not alpha / r; attention only",
        config=dict(r=8, lora_alpha=4, use_rslora=True, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    ),
    "dora": dict(
        about="DoRA: a magnitude for every output row, on q_proj, k_proj and down_proj",
        config=dict(r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj", "k_proj", "down_proj"]),
    ),
    "patterns": dict(
        about="rank_pattern and alpha_pattern: by suffix and by a full module name",
        config=dict(
            r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"],
            rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 6},
            alpha_pattern={"v_proj": 16, "layers.1.mlp.down_proj": 3},
        ),
    ),
    "modules-to-save": dict(
        about="modules_to_save: lm_head and every norm replaced whole, next to LoRA on q_proj and v_proj",
        config=dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head", "norm"]),
    ),
    "embedding": dict(
        about="LoRA on embed_tokens (lora_embedding_A, lora_embedding_B) and lm_head; base rows not saved. "
              "peft rounds the update of an embedding to BF16 before it adds it; linears are rounded once",
        config=dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head"]),
        save=dict(save_embedding_layers=False),
    ),
    "embedding-saved": dict(
        about="LoRA on embed_tokens, saved by default with the base rows (embed_tokens.base_layer.weight). "
              "peft rounds the update of an embedding to BF16 before it adds it",
        config=dict(r=4, lora_alpha=8, target_modules=["embed_tokens"]),
        save=dict(save_embedding_layers=True),
    ),
    "trainable-tokens": dict(
        about="trainable_token_indices: three whole embedding rows, next to LoRA on q_proj and v_proj",
        config=dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], trainable_token_indices=[65, 7, 200]),
    ),
    "bin": dict(
        about="the pickle form: adapter_model.bin written by torch.save",
        config=dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"]),
        save=dict(safe_serialization=False),
    ),
}


class Seeded:
    """A named stream of normal random numbers."""

    def __init__(self, seed):
        self.rng = np.random.Generator(np.random.PCG64(seed))

    def normal(self, shape, std, mean=0.0):
        return torch.from_numpy((mean + std * self.rng.standard_normal(tuple(shape))).astype(np.float32))


def versions():
    return {m.__name__: m.__version__.split("+")[0] for m in (peft, transformers, torch)}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n")


def fresh(path):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def load(name, dtype=torch.bfloat16):
    return LlamaForCausalLM.from_pretrained(MODEL / name, dtype=dtype)


# --- base -------------------------------------------------------------------------------------------


def base():
    out = fresh(MODEL / "base")
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    rng = Seeded(1)
    for name, p in sorted(model.named_parameters()):
        if name.endswith("norm.weight"):
            p.data = rng.normal(p.shape, 0.1, 1.0)
        elif "embed_tokens" in name:
            p.data = rng.normal(p.shape, 0.25)
        else:
            p.data = rng.normal(p.shape, p.shape[1] ** -0.5)
    model.to(torch.bfloat16).save_pretrained(out)
    byte_tokenizer().save_pretrained(out)


def byte_tokenizer():
    """Byte-level BPE in which a token is a byte. Id 255 is " t" instead of the byte 0xFF, which UTF-8 never
    has: the one merge that llama.cpp wants to see."""
    symbols = bytes_to_unicode()
    vocab = {symbols[b]: b for b in range(255)} | {"Ġt": 255}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[("Ġ", "t")]))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=128)


# --- adapters ---------------------------------------------------------------------------------------


def adapters():
    save_adapter(
        MODEL / "adapter", seed=100,
        about="plain LoRA on all seven linears",
        config=dict(r=4, lora_alpha=8, target_modules=LINEARS),
    )
    merged = merge(MODEL / "adapter")
    merged.save_pretrained(fresh(MODEL / "merged"))

    fresh(MODEL / "adapters")
    before = load("base").state_dict()
    for i, (name, case) in enumerate(CASES.items()):
        folder = MODEL / "adapters" / name
        save_adapter(folder, seed=101 + i, **case)
        after = merge(folder).state_dict()
        assert after.keys() == before.keys(), name
        changed = {k: v.contiguous() for k, v in sorted(after.items()) if not torch.equal(v, before[k])}
        st.save_file(changed, folder / "merged.safetensors")
        case_file = json.loads((folder / "case.json").read_text())
        write_json(folder / "case.json", case_file | {"changed": list(changed)})


def save_adapter(folder, seed, about, config, save={}):
    model = get_peft_model(load("base"), LoraConfig(task_type="CAUSAL_LM", **config))
    give_values(model, Seeded(seed))
    model.save_pretrained(fresh(folder), **save)
    (folder / "README.md").unlink()  # an empty model card
    write_json(folder / "case.json", {"about": about, "versions": versions()})


def give_values(model, rng):
    """Stands in for training: values with which every update has std = UPDATE x the std of its weight."""
    for _, module in sorted(model.named_modules()):
        if not hasattr(module, "lora_A"):
            continue
        weight = module.get_base_layer().weight.float()
        if "default" in module.lora_A or "default" in module.lora_embedding_A:
            embedding = "default" in module.lora_embedding_A
            a = module.lora_embedding_A["default"] if embedding else module.lora_A["default"].weight
            b = module.lora_embedding_B["default"] if embedding else module.lora_B["default"].weight
            a.data = rng.normal(a.shape, a.shape[1] ** -0.5)
            b.data = rng.normal(b.shape, 1.0)
            b.data *= UPDATE * weight.std() / (module.scaling["default"] * (b.data @ a.data).std())
        if "default" in module.lora_magnitude_vector:
            m = module.lora_magnitude_vector["default"].weight
            m.data *= rng.normal(m.shape, 0.05, 1.0)
    for name, p in sorted(model.named_parameters()):
        if ".modules_to_save." in name or "trainable_tokens_delta" in name:
            p.data = (p.data.float() * rng.normal(p.shape, 0.1, 1.0)).to(p.dtype)


def merge(folder, dtype=torch.bfloat16):
    return PeftModel.from_pretrained(load("base", dtype), folder).merge_and_unload()


# --- logits -----------------------------------------------------------------------------------------


def logits():
    """Float32 logits for PROMPT, shape [8, 256], little-endian."""
    out = fresh(MODEL / "logits")
    models = {
        "base": (load("base", torch.float32), "base/, its BF16 weights widened to float32"),
        "merged": (load("merged", torch.float32), "merged/, its BF16 weights widened to float32"),
        "merged-f32": (merge(MODEL / "adapter", torch.float32), "base/ widened to float32, then merged by peft without a rounding to BF16"),
    }
    files = {}
    for name, (model, about) in models.items():
        with torch.no_grad():
            y = model.eval()(torch.tensor([PROMPT])).logits[0].numpy()
        y.astype("<f4").tofile(out / f"{name}.f32")
        files[f"{name}.f32"] = {"about": about, "shape": list(y.shape)}
    write_json(out / "logits.json", {"input_ids": PROMPT, "dtype": "float32, little-endian, row-major", "files": files, "versions": versions()})


# --- GGUF -------------------------------------------------------------------------------------------

GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def gguf_name(module):
    if module.startswith("model.layers."):
        _, _, block, rest = module.split(".", 3)
        return f"blk.{block}.{GGUF_NAMES[rest]}.weight"
    return GGUF_NAMES[module] + ".weight"


def permute(module, rows, config):
    """The row order llama.cpp gives q and k: each head's two rotary halves are interleaved."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.rsplit(".", 1)[-1])
    if heads is None:
        return rows
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def gguf_model(path, file_type, matrix_type):
    """Key-values, tensor order and types as llama.cpp's convert_hf_to_gguf.py has them for base/."""
    config = LlamaConfig.from_pretrained(MODEL / "base")
    weights = st.load_file(MODEL / "base" / "model.safetensors")
    bpe = json.loads((MODEL / "base" / "tokenizer.json").read_text())["model"]

    w = gguf.GGUFWriter(path, "llama")
    w.add_type("model")
    w.add_name("Base")
    w.add_size_label(gguf.model_weight_count_rounded_notation(sum(t.numel() for t in weights.values())))
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_rope_freq_base(config.rope_theta)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_key_length(config.head_dim)
    w.add_value_length(config.head_dim)
    w.add_file_type(file_type)
    w.add_vocab_size(config.vocab_size)
    w.add_rope_dimension_count(config.head_dim)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    w.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    w.add_token_merges([" ".join(m) for m in bpe["merges"]])
    w.add_bos_token_id(config.bos_token_id)
    w.add_eos_token_id(config.eos_token_id)

    for name, t in sorted(weights.items()):
        module = name.removesuffix(".weight")
        x = permute(module, t.float().numpy(), config)
        kind = matrix_type if x.ndim == 2 else gguf.GGMLQuantizationType.F32
        w.add_tensor(gguf_name(module), gguf.quants.quantize(x, kind), raw_dtype=kind)
    write_gguf(w)


def gguf_adapter(path):
    """The GGUF LoRA form of adapter/, as llama.cpp's convert_lora_to_gguf.py lays it out."""
    config = LlamaConfig.from_pretrained(MODEL / "base")
    factors = st.load_file(MODEL / "adapter" / "adapter_model.safetensors")
    alpha = json.loads((MODEL / "adapter" / "adapter_config.json").read_text())["lora_alpha"]

    w = gguf.GGUFWriter(path, "llama")
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    w.add_name("Adapter")
    w.add_float32("adapter.lora.alpha", float(alpha))
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    prefix, a_end, b_end = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
    for module in sorted(k.removeprefix(prefix).removesuffix(a_end) for k in factors if k.endswith(a_end)):
        w.add_tensor(gguf_name(module) + ".lora_a", factors[prefix + module + a_end].numpy())
        w.add_tensor(gguf_name(module) + ".lora_b", permute(module, factors[prefix + module + b_end].numpy(), config))
    write_gguf(w)


def write_ggufs():
    gguf_model(MODEL / "base-f16.gguf", gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16)
    gguf_model(MODEL / "base-q8_0.gguf", gguf.LlamaFileType.MOSTLY_Q8_0, gguf.GGMLQuantizationType.Q8_0)
    gguf_adapter(MODEL / "adapter.gguf")


# --- ONNX -------------------------------------------------------------------------------------------


class Logits(torch.nn.Module):
    """input_ids [batch, sequence] -> logits, without a cache. The modules keep their names."""

    def __init__(self, llama):
        super().__init__()
        self.model, self.lm_head = llama.model, llama.lm_head

    def forward(self, input_ids):
        # transformers builds its mask in a way that the TorchScript exporter cannot trace; a ready one is taken as it is.
        n = input_ids.shape[1]
        mask = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)[None, None]
        return self.lm_head(self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state)


def export(folder, torchscript, dynamo):
    """Float32, with both of torch's exporters: the older names folded weights onnx::MatMul_N, the newer keeps names."""
    llama = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model, ids = Logits(llama), torch.tensor([PROMPT])
    names = dict(input_names=["input_ids"], output_names=["logits"])
    axes = {0: "batch", 1: "sequence"}
    with torch.no_grad():
        torch.onnx.export(
            model, (ids,), str(torchscript), dynamo=False, opset_version=17,
            dynamic_axes={"input_ids": axes, "logits": axes}, **names,
        )
        torch.onnx.export(
            model, (ids.repeat(2, 1),), str(dynamo), dynamo=True, opset_version=18, external_data=False, verbose=False,
            dynamic_shapes={"input_ids": {i: torch.export.Dim(n, min=2) for i, n in axes.items()}}, **names,
        )
    without_stack_traces(dynamo)


def without_stack_traces(path):
    """Drops one of the exporter's notes: on every node a stack trace with the paths of this machine. Those that
    name the module a node came from stay: after constant folding they alone tell whose weight val_N is."""
    model = onnx.load(path)
    for node in model.graph.node:
        kept = [p for p in node.metadata_props if p.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


def write_onnx():
    export(MODEL / "base", MODEL / "base.onnx", MODEL / "base-dynamo.onnx")


STEPS = {"base": base, "adapters": adapters, "logits": logits, "gguf": write_ggufs, "onnx": write_onnx}


def main():
    args = sys.argv[1:]
    if args[:1] == ["export"]:
        out = Path(args[2])
        out.mkdir(parents=True, exist_ok=True)
        return export(args[1], out / "base.onnx", out / "base-dynamo.onnx")
    os.chdir(TESTDATA)
    for step in args or STEPS:
        STEPS[step]()
        print(step, "done")
    for path in MODEL.rglob("*.safetensors"):
        path.chmod(0o644)  # the safetensors package writes files that only their owner can read


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes testdata/onnx-rtn: small models, and what ONNX Runtime's own quantizers make of them.

Needs onnxruntime, onnx, onnx-ir and ml_dtypes as in requirements.txt; the output folder is its argument.
"""
import sys, os
import numpy as np, onnx, ml_dtypes
from onnx import helper as h, numpy_helper as nh, TensorProto as T
from onnxruntime.quantization import matmul_nbits_quantizer as q
from onnxruntime.quantization.quant_utils import QuantFormat
import onnxruntime.quantization.quant_utils as qu

out = sys.argv[1]
os.makedirs(out, exist_ok=True)
TYPES = {"f32": (np.float32, T.FLOAT), "f16": (np.float16, T.FLOAT16), "bf16": (ml_dtypes.bfloat16, T.BFLOAT16)}


def weight(rng, shape, dtype):
    w = rng.standard_normal(shape).astype(np.float32) * 0.05
    w[:, 3] = 0          # a column without any value
    w[1:18, 5] = np.abs(w[1:18, 5])   # a block without a negative one
    w[0, :] *= 8         # outliers
    w[2, 7] = 0.125
    return w.astype(dtype)


def model(name, opset=21):
    dtype, t = TYPES[name]
    rng = np.random.default_rng(20)
    ws = {"embed.weight": (rng.standard_normal((16, 96)) * 0.1).astype(np.float32).astype(dtype)}
    for n, shape in (("onnx::MatMul_1", (96, 40)), ("onnx::MatMul_2", (40, 34)), ("head.weight_t", (34, 48))):
        ws[n] = weight(rng, shape, dtype)
    nodes = [
        h.make_node("Gather", ["embed.weight", "ids"], ["x"], "/embed/Gather"),
        h.make_node("MatMul", ["x", "onnx::MatMul_1"], ["a"], "/layers.0/up_proj/MatMul"),
        h.make_node("Relu", ["a"], ["b"], "/layers.0/act/Relu"),
        h.make_node("MatMul", ["b", "onnx::MatMul_2"], ["c"], "/layers.0/down_proj/MatMul"),
        h.make_node("MatMul", ["c", "head.weight_t"], ["logits"], "/lm_head/MatMul"),
    ]
    g = h.make_graph(nodes, "g", [h.make_tensor_value_info("ids", T.INT64, ["n"])],
                     [h.make_tensor_value_info("logits", t, ["n", 48])], [nh.from_array(v, k) for k, v in ws.items()])
    return h.make_model(g, opset_imports=[h.make_opsetid("", opset)], ir_version=10)


def save(m, name):
    onnx.save(m, os.path.join(out, name + ".onnx"))


def quantize(name, base, **kw):
    m = onnx.ModelProto()
    m.CopyFrom(base)
    z = q.MatMulNBitsQuantizer(m, **kw)
    z.process()
    save(z.model.model, name)


for t in TYPES:
    base = model(t)
    save(base, t)
    for bits, block, sym in ((4, 32, True), (4, 32, False), (8, 32, True), (8, 64, False), (2, 16, True), (2, 16, False), (4, 16, False), (4, 128, False)):
        if t != "f32" and block in (16, 64, 128) and bits != 4:
            continue
        try:
            quantize(f"{t}-matmulnbits-{bits}-{block}-{'symmetric' if sym else 'asymmetric'}", base, bits=bits, block_size=block, is_symmetric=sym)
        except Exception as e:
            print(t, bits, block, sym, repr(e)[:200])
    for sym in (True, False):
        quantize(f"{t}-qdq-{'int4' if sym else 'uint4'}-32", base, bits=4, block_size=32, is_symmetric=sym, quant_format=QuantFormat.QDQ)
    for sym in (True, False):
        if t == "bf16": continue
        quantize(f"{t}-gather-4-32-{'symmetric' if sym else 'asymmetric'}", base, bits=4, block_size=32, is_symmetric=sym, op_types_to_quantize=("Gather",))
    # The weights of static quantization: one scale, or one for each output.
    if t == "bf16": continue
    for kind, qt, sym in (("int8", T.INT8, True), ("uint8", T.UINT8, False)):
        for per in ("tensor", "channel"):
            ts = []
            for i in base.graph.initializer:
                if i.name == "embed.weight":
                    continue
                w = nh.to_array(i)
                if per == "tensor":
                    zp, s, v = qu.quantize_data(w.flatten(), qt, sym)
                    v = v.reshape(w.shape)
                    ts += [nh.from_array(np.asarray(s), i.name + "_scale"), nh.from_array(np.asarray(zp), i.name + "_zero_point")]
                else:
                    ps = [qu.compute_data_quant_params(w.take(c, 1).ravel(), qt, sym) for c in range(w.shape[1])]
                    s = np.array([p[1] for p in ps]); zp = np.array([p[0] for p in ps])
                    v = nh.to_array(qu.quantize_onnx_initializer(i, qt, zp, s, 1))
                    ts += [nh.from_array(s, i.name + "_scale"), nh.from_array(zp, i.name + "_zero_point")]
                ts.append(nh.from_array(v, i.name + "_quantized"))
            g = h.make_graph([], "weights", [], [], ts)
            save(h.make_model(g, opset_imports=[h.make_opsetid("", 21)], ir_version=10), f"{t}-qdq-{kind}-{per}")

# Float models with other ways to read a weight: Gemm in both orientations, with and without a bias or a factor; a
# weight of two products; one that a Transpose reads too; a convolution. No quantizer has seen them.
rng = np.random.default_rng(21)
w = lambda *s: (rng.standard_normal(s) * 0.2).astype(np.float32)
nodes = [
    h.make_node("Gemm", ["x", "fc1.weight", "fc1.bias"], ["a"], "/fc1/Gemm", transB=1),
    h.make_node("Gemm", ["a", "fc2.weight"], ["b"], "/fc2/Gemm"),
    h.make_node("MatMul", ["b", "shared"], ["c"], "/loop/MatMul"),
    h.make_node("MatMul", ["c", "shared"], ["d"], "/loop/MatMul_1"),
    h.make_node("MatMul", ["d", "tied"], ["e"], "/down/MatMul"),
    h.make_node("Transpose", ["tied"], ["tied_t"], "/up/Transpose", perm=[1, 0]),
    h.make_node("MatMul", ["e", "tied_t"], ["f"], "/up/MatMul"),
    h.make_node("Gemm", ["f", "scaled.weight"], ["g"], "/scaled/Gemm", alpha=2.0),
    h.make_node("Reshape", ["g", "shape"], ["i"], "/Reshape"),
    h.make_node("Conv", ["i", "conv.weight", "conv.bias"], ["y"], "/conv/Conv", kernel_shape=[3, 3]),
]
ws = {"fc1.weight": w(48, 32), "fc1.bias": w(48), "fc2.weight": w(48, 32), "shared": w(32, 32), "tied": w(32, 24),
      "scaled.weight": w(32, 32), "shape": np.array([-1, 2, 4, 4], np.int64), "conv.weight": w(6, 2, 3, 3), "conv.bias": w(6)}
g = h.make_graph(nodes, "g", [h.make_tensor_value_info("x", T.FLOAT, ["n", 32])],
                 [h.make_tensor_value_info("y", T.FLOAT, ["n", 6, 2, 2])], [nh.from_array(v, k) for k, v in ws.items()])
m = h.make_model(g, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
save(m, "graph")
onnx.save(m, os.path.join(out, "external.onnx"), save_as_external_data=True, location="external.data", size_threshold=1024)

# An adapter for it.
import json
from safetensors.numpy import save_file

rng = np.random.default_rng(3)
w = lambda *s: (rng.standard_normal(s) * 0.15).astype(np.float32)
t = {}
for name, o, i in (("fc1", 48, 32), ("fc2", 32, 48), ("down", 24, 32)):
    t[f"base_model.model.{name}.lora_A.weight"], t[f"base_model.model.{name}.lora_B.weight"] = w(4, i), w(o, 4)
t["base_model.model.conv.lora_A.weight"], t["base_model.model.conv.lora_B.weight"] = w(4, 2, 3, 3), w(6, 4, 1, 1)
os.makedirs(os.path.join(out, "adapter"), exist_ok=True)
save_file(t, os.path.join(out, "adapter", "adapter_model.safetensors"))
with open(os.path.join(out, "adapter", "adapter_config.json"), "w") as f:
    json.dump({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["fc1", "fc2", "down", "conv"], "bias": "none"}, f)

"""Writes the checkpoints of this folder with the libraries' own code, and what the libraries decode them to.

    pip install torch==2.15.0 bitsandbytes==0.50.2 compressed-tensors==0.20.0 hqq==0.2.8.post1 safetensors==0.8.0 numpy==2.4.6
    python make.py

A case NAME is NAME.safetensors (the packed checkpoint), NAME.json (its config.json) and NAME.golden.safetensors
(the decoded weights). Cases in LIBRARY are packed and decoded by a library; those in FORMULA, whose libraries need
a GPU or are not on the package index for CPU, by the NumPy code below, written from the description of the format.
"""
import json, os
import numpy as np, torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
torch.manual_seed(7)
rng = np.random.default_rng(7)


def weights(*shape):
    w = torch.randn(*shape) * 0.05
    w.view(-1)[:: 37] *= 9
    return w


def write(name, stored, golden, quantization, dtype="bfloat16"):
    stored = {k: v.detach().contiguous().clone() for k, v in stored.items()}
    stored["model.norm.weight"] = torch.ones(8, dtype=torch.bfloat16)
    save_file(stored, f"{HERE}/{name}.safetensors", metadata={"format": "pt"})
    save_file({k: v.contiguous().clone() for k, v in golden.items()}, f"{HERE}/{name}.golden.safetensors")
    with open(f"{HERE}/{name}.json", "w") as f:
        json.dump({"torch_dtype": dtype, "quantization_config": quantization}, f, indent=1)


# ---- bitsandbytes ----------------------------------------------------------------------------------------------

def bnb4():
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from bitsandbytes.backends.utils import _get_4bit_code
    from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise, quantize_4bit
    for kind in ("nf4", "fp4"):
        stored, golden = {}, {}
        # An odd width is packed across rows, and its last block is short. The fourth has two nested blocks.
        for i, (shape, dtype, double, block) in enumerate([
            ((24, 64), torch.float16, False, 64), ((40, 96), torch.bfloat16, True, 64), ((6, 33), torch.float32, False, 64),
            ((24, 352), torch.bfloat16, True, 32), ((8, 128), torch.bfloat16, True, 128),
        ]):
            n = f"model.layers.{i}.q_proj.weight"
            packed, state = quantize_4bit(weights(*shape).to(dtype), blocksize=block, quant_type=kind, compress_statistics=double)
            stored[n] = packed
            for k, v in state.as_dict(packed=True).items():
                stored[f"{n}.{k}"] = v
            absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset if double else state.absmax
            golden[n] = _dequantize_4bit_compute(packed.reshape(-1), absmax.float(), _get_4bit_code(kind, "cpu"), block, shape, dtype)
            # The library has two decoders. The CPU kernel of 0.50.2 takes the wrong scales where a row is not whole
            # blocks (its error against the weights is two to three times the other's), so the golden is the other's.
            assert shape[1] % block != 0 or torch.equal(golden[n], dequantize_4bit(packed, state))
        write(f"bnb-{kind}", stored, golden, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind})


def bnb8():
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant
    stored, golden = {}, {}
    for i, (shape, dtype) in enumerate([((24, 64), torch.float16), ((7, 33), torch.float16)]):
        q, scb, _ = int8_vectorwise_quant(weights(*shape).to(dtype))
        n = f"model.layers.{i}.q_proj."
        stored |= {n + "weight": q, n + "SCB": scb, n + "weight_format": torch.tensor(0, dtype=torch.uint8)}
        golden[n + "weight"] = int8_vectorwise_dequant(q, scb)
    write("bnb-int8", stored, golden, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "float32")


# ---- HQQ -------------------------------------------------------------------------------------------------------

def hqq():
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    stored, golden = {}, {}
    i = 0
    for bits in (8, 4, 3, 2, 1):
        for axis, group, dtype in ((1, 16, torch.float16), (0, 16, torch.bfloat16)):
            lin = torch.nn.Linear(32, 40, bias=False)
            lin.weight.data = weights(40, 32)
            config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis)
            layer = HQQLinear(lin, config, compute_dtype=dtype, device="cpu", del_orig=False)
            n = f"model.layers.{i}.q_proj."
            for k, v in layer.state_dict().items():
                if v is not None:
                    stored[n + k] = v
            golden[n + "weight"] = layer.dequantize()
            i += 1
    write("hqq", stored, golden, {"quant_method": "hqq"})


# ---- compressed-tensors ----------------------------------------------------------------------------------------

def compressed():
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    def scales(w, args, dtype):
        """Scales and zero points by the largest magnitude (or the range), as an observer would hand them over."""
        rows, cols = w.shape
        if args.strategy == "tensor":
            blocks = w.reshape(1, 1, -1)
        elif args.strategy == "channel":
            blocks = w.reshape(rows, 1, cols)
        elif args.strategy == "block":
            br, bc = args.block_structure
            pad = torch.zeros(-(-rows // br) * br, -(-cols // bc) * bc)
            pad[:rows, :cols] = w
            blocks = pad.reshape(pad.shape[0] // br, br, pad.shape[1] // bc, bc).transpose(1, 2).flatten(2)
        else:
            blocks = w.reshape(rows, cols // args.group_size, args.group_size)
        top = {("float", 8): 448.0, ("float", 4): 6.0}.get((args.type, args.num_bits), 2.0 ** (args.num_bits - 1) - 1)
        if args.symmetric:
            s, z = blocks.abs().amax(-1) / top, None
        else:
            lo, hi = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
            s = (hi - lo) / (2.0**args.num_bits - 1)
            z = (-(2.0 ** (args.num_bits - 1)) - torch.round(lo / s)).clamp(-128, 127).to(torch.int8)
        return s.to(dtype), z

    def case(name, format, layers, config):
        compressor = BaseCompressor.get_value_from_registry(format) if hasattr(BaseCompressor, "get_value_from_registry") else None
        stored, golden = {}, {}
        for i, (shape, args, dtype, extra) in enumerate(layers):
            args = QuantizationArgs(**args)
            scheme = QuantizationScheme(targets=["Linear"], weights=args)
            w = weights(*shape)
            s, z = scales(w, args, dtype)
            state = {"weight": w.to(dtype if dtype != torch.float32 else torch.float32), "weight_scale": s}
            if z is not None:
                state["weight_zero_point"] = z
            state |= {k: f(w, s) for k, f in extra.items()}
            if format == "nvfp4-pack-quantized":
                state["weight_scale"] = (s * state["weight_global_scale"]).to(torch.float8_e4m3fn).to(torch.float32)
            packed = compressor.compress(state, scheme)
            n = f"model.layers.{i}.q_proj."
            stored |= {n + k: v for k, v in packed.items()}
            golden[n + "weight"] = compressor.decompress(packed, scheme)["weight"]
        write(name, stored, golden, {"quant_method": "compressed-tensors", "format": format, **config})

    def group(**weights):
        return {"config_groups": {"group_0": {"weights": weights}}}

    for bits in (4, 8, 3, 5):
        g = dict(num_bits=bits, type="int", strategy="group", group_size=16)
        c = dict(num_bits=bits, type="int", strategy="channel")
        case(f"ct-int{bits}", "pack-quantized", [
            ((24, 48), dict(g, symmetric=True), torch.bfloat16, {}), ((24, 48), dict(g, symmetric=False), torch.float16, {}),
            ((40, 64), dict(g, symmetric=False), torch.float32, {}), ((11, 45), dict(c, symmetric=True), torch.bfloat16, {}),
        ], group(num_bits=bits, type="int", group_size=16, strategy="group"))
    f = dict(num_bits=8, type="float", symmetric=True)
    case("ct-fp8", "float-quantized", [
        ((24, 48), dict(f, strategy="tensor"), torch.bfloat16, {}), ((24, 48), dict(f, strategy="channel"), torch.bfloat16, {}),
        ((24, 48), dict(f, strategy="channel"), torch.float16, {}),
    ], group(num_bits=8, type="float", strategy="channel"))
    case("ct-fp8-block", "naive-quantized", [
        ((40, 70), dict(f, strategy="block", block_structure=[16, 32]), torch.bfloat16, {}),
        ((32, 64), dict(f, strategy="block", block_structure=[16, 32]), torch.bfloat16, {}),
    ], group(num_bits=8, type="float", strategy="block", block_structure=[16, 32]))
    i8 = dict(num_bits=8, type="int")
    case("ct-w8a8", "int-quantized", [
        ((24, 48), dict(i8, symmetric=True, strategy="channel"), torch.bfloat16, {}),
        ((24, 48), dict(i8, symmetric=False, strategy="channel"), torch.float16, {}),
        ((24, 48), dict(i8, symmetric=True, strategy="group", group_size=16), torch.bfloat16, {}),
    ], group(num_bits=8, type="int", strategy="channel"))
    case("ct-nvfp4", "nvfp4-pack-quantized", [
        ((24, 64), dict(num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=16), torch.float32,
         {"weight_global_scale": lambda w, s: (448.0 * 6.0 / w.abs().max()).reshape(1)}),
    ], group(num_bits=4, type="float", strategy="tensor_group", group_size=16))
    case("ct-mxfp4", "mxfp4-pack-quantized", [
        ((24, 64), dict(num_bits=4, type="float", symmetric=True, strategy="group", group_size=32, scale_dtype="torch.uint8"), torch.bfloat16, {}),
    ], group(num_bits=4, type="float", strategy="group", group_size=32))


# ---- by formula ------------------------------------------------------------------------------------------------

def pack_dense(codes, bits):
    """Codes [n, m] → words [n·bits/32, m], along the first axis, lowest bits first."""
    n, m = codes.shape
    words = np.zeros((-(-n * bits // 32), m), np.uint64)
    for i in range(n):
        for b in range(bits):
            at = i * bits + b
            words[at // 32] |= ((codes[i].astype(np.uint64) >> b) & 1) << (at % 32)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())


def gptq():
    for version in (1, 2):
        stored, golden = {}, {}
        for i, (bits, act, ins, outs, size) in enumerate([(4, False, 64, 32, 16), (4, True, 64, 40, 16), (3, True, 64, 32, 32), (2, False, 64, 32, 32), (8, True, 32, 32, 16)]):
            groups = ins // size
            q = rng.integers(0, 2**bits, (ins, outs))
            z = rng.integers(0 if version == 2 else 1, 2**bits, (groups, outs))
            if version == 1:
                z[0, :4] = 2**bits  # stored as all ones
            s = torch.from_numpy((rng.random((groups, outs)) * 0.02 + 0.001).astype(np.float16))
            g = np.repeat(np.arange(groups), size)
            if act:
                g = rng.permutation(g)
            n = f"model.layers.{i}.q_proj."
            stored |= {n + "qweight": pack_dense(q, bits), n + "scales": s, n + "qzeros": pack_dense((z - (2 - version)).T, bits).T}
            if act or i == 0:
                stored[n + "g_idx"] = torch.from_numpy(g.astype(np.int32))
            diff = torch.from_numpy((q - z[g]).astype(np.float32)).to(torch.float16)
            golden[n + "weight"] = (diff * s[torch.from_numpy(g)]).t()
        write(f"gptq-v{version}", stored, golden, {"quant_method": "gptq", "desc_act": True, "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}, "float16")


def awq():
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(codes):
        rows, cols = codes.shape
        words = np.zeros((rows, cols // 8), np.uint32)
        for j in range(8):
            words |= codes[:, order[j] :: 8].astype(np.uint32) << (4 * j)
        return torch.from_numpy(words.view(np.int32).copy())

    stored, golden = {}, {}
    for i, (ins, outs, size) in enumerate([(64, 48, 16), (32, 40, 32)]):
        q, z = rng.integers(0, 16, (ins, outs)), rng.integers(0, 16, (ins // size, outs))
        s = torch.from_numpy((rng.random((ins // size, outs)) * 0.02 + 0.001).astype(np.float16))
        n = f"model.layers.{i}.q_proj."
        stored |= {n + "qweight": pack(q), n + "qzeros": pack(z), n + "scales": s}
        g = np.repeat(np.arange(ins // size), size)
        golden[n + "weight"] = (torch.from_numpy((q - z[g]).astype(np.float32)).to(torch.float16) * s[torch.from_numpy(g)]).t()
    write("awq", stored, golden, {"quant_method": "awq", "bits": 4, "version": "gemm"}, "float16")


def fp8():
    """DeepSeek's blocks of 128 × 128, fused experts, ModelOpt's NVFP4."""
    stored, golden = {}, {}
    w = weights(130, 140).to(torch.float8_e4m3fn)
    s = torch.rand(2, 2) * 0.01 + 1e-4
    full = s.repeat_interleave(128, 0).repeat_interleave(128, 1)[:130, :140]
    stored |= {"model.layers.0.q_proj.weight": w, "model.layers.0.q_proj.weight_scale_inv": s}
    golden["model.layers.0.q_proj.weight"] = (w.float() * full).to(torch.bfloat16)
    w, s = weights(3, 16, 24).to(torch.float8_e4m3fn), torch.rand(3, 1, 24) * 0.01
    stored |= {"model.layers.1.mlp.experts.gate_up_proj": w, "model.layers.1.mlp.experts.gate_up_proj_scale": s}
    golden["model.layers.1.mlp.experts.gate_up_proj"] = (w.float() * s).to(torch.bfloat16)
    codes = torch.from_numpy(rng.integers(0, 256, (24, 16)).astype(np.uint8))
    s, g = (torch.rand(24, 2) * 400).to(torch.float8_e4m3fn), torch.tensor(0.00037)
    table = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0.0, -.5, -1, -1.5, -2, -3, -4, -6])
    values = torch.stack([table[(codes & 15).long()], table[(codes >> 4).long()]], -1).reshape(24, 32)
    n = "model.layers.2.q_proj."
    stored |= {n + "weight": codes, n + "weight_scale": s, n + "weight_scale_2": g, n + "input_scale": torch.tensor(0.5)}
    golden[n + "weight"] = (values * (s.float() * g).repeat_interleave(16, 1)).to(torch.bfloat16)
    write("fp8-nvfp4", stored, golden, {"quant_method": "fp8", "weight_block_size": [128, 128]})


LIBRARY = [bnb4, bnb8, hqq, compressed]
FORMULA = [gptq, awq, fp8]
if __name__ == "__main__":
    for make in LIBRARY + FORMULA:
        make()

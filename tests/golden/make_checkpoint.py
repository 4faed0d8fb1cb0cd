"""Goldens of files: GGUF types, LoRA adapters saved by peft, and the check that peft loads what this library saved.

    python tests/golden/make_checkpoint.py            (writes tests/golden/data/checkpoint/)
"""

import pathlib

import gguf
import numpy as np

OUT = pathlib.Path(__file__).parent / "data" / "checkpoint"


# ---- GGUF ------------------------------------------------------------------------------------------------------------
def gguf_types():
    """One tensor [3, 64] per type, and the same as the package dequantises it."""
    kinds = gguf.GGMLQuantizationType
    rng = np.random.default_rng(7)
    rows = (rng.standard_normal((3, 64)) * np.array([[0.02], [1.0], [300.0]])).astype(np.float32)
    rows[1, :32] = 0.0  # a block without content
    rows[2, 5] = -0.0
    with_metadata = gguf.GGUFWriter(OUT / "types.gguf.bin", "llama")
    with_metadata.add_uint32("llama.block_count", 2)
    with_metadata.add_token_list(["<s>", "é", "中文", ""])
    with_metadata.add_token_scores([0.0, -1.5, 2.0, 3.0])
    expected = gguf.GGUFWriter(OUT / "types_f32.gguf.bin", "llama")
    for kind in [kinds.F32, kinds.F16, kinds.BF16, kinds.Q4_0, kinds.Q4_1, kinds.Q8_0]:
        stored = gguf.quants.quantize(rows, kind)
        if kind is kinds.F16:  # subnormal and largest halves
            stored[0, :4] = np.array([6e-8, -6e-5, 65504.0, 6.1e-5], dtype=np.float16)
        with_metadata.add_tensor(kind.name, stored, raw_dtype=kind)
        expected.add_tensor(kind.name, np.ascontiguousarray(gguf.quants.dequantize(stored, kind), dtype=np.float32))
    for writer in (with_metadata, expected):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    gguf_types()


if __name__ == "__main__":
    main()

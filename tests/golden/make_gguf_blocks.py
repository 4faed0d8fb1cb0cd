"""Goldens of a GGUF's blocks: three rows of every type that layers compute on, and what the gguf package makes of them.

    python tests/golden/make_gguf_blocks.py        (writes tests/golden/data/gguf/)

The codes and packed scales are random bits, so that each value of each occurs; the halves d and m are numbers of the size
that quantising weights gives, and some special ones.
"""

import pathlib

import gguf
import numpy as np

OUT = pathlib.Path(__file__).resolve().parent / "data" / "gguf"
ROWS, COLUMNS = 3, 512
# Type: where the halves stand in a block.
TYPES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    blocks = gguf.GGUFWriter(OUT / "blocks.gguf.bin", "llama")
    values = gguf.GGUFWriter(OUT / "values.gguf.bin", "llama")
    for name, halves in TYPES.items():
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        stored = rng.integers(0, 256, (ROWS, COLUMNS // elements, size), dtype=np.uint8)
        for at in halves:
            half = (rng.standard_normal((ROWS, COLUMNS // elements)) * 0.01).astype(np.float16)
            # Least and largest numbers; zeros of both signs.
            half.flat[: 4] = np.array([0.0, -0.0, 6e-8, -60000.0], dtype=np.float16)
            stored[:, :, at : at + 2] = half[..., None].view(np.uint8)
        stored = stored.reshape(ROWS, -1)
        blocks.add_tensor(name, stored, raw_dtype=kind)
        values.add_tensor(name, np.ascontiguousarray(gguf.quants.dequantize(stored, kind), dtype=np.float32))
    for writer in (blocks, values):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    main()

"""llama.cpp: a prompt of a sentence so many times, and 64 tokens behind it.

    llama_cpp_speed.py MODEL.gguf SENTENCE TIMES     prints one line of JSON: tok_s of the tokens, prefill of the prompt
"""

import statistics
import sys
import time

from common import report
from llama_cpp import Llama

GENERATED = 64


def main(model, sentence, times):
    llama = Llama(model_path=model, n_ctx=1024, n_batch=1024, n_threads=2, n_threads_batch=2, verbose=False)
    prompt = llama.tokenize((sentence * int(times)).encode(), add_bos=False)
    for _ in range(2):  # the first round warms up
        llama.reset()
        start = time.perf_counter()
        llama.eval(prompt)
        prefill = len(prompt) / (time.perf_counter() - start)
        seconds = []
        for _ in range(GENERATED):
            token = llama.sample(temp=0)
            start = time.perf_counter()
            llama.eval([token])
            seconds.append(time.perf_counter() - start)
    report(tok_s=1.0 / statistics.median(seconds), prefill=prefill)


if __name__ == "__main__":
    main(*sys.argv[1:])

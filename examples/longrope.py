"""Hides a key in a long text and asks for it: python examples/longrope.py http://127.0.0.1:7860 [POWER]"""

import sys

from gradio_client import Client

power = int(sys.argv[2]) if len(sys.argv) > 2 else 9  # 2^9 = 512 tokens
client = Client(sys.argv[1], verbose=False)
_, _, answers, *_ = client.predict(param_2=power, param_13=None, api_name="/longrope_passkey")
for method, _, tokens, _, key, answer, right, seconds, _ in answers["data"]:
    print(f"{method}, {tokens} tokens, {seconds} s: the key is {key}, the answer {answer!r}, right: {right}")

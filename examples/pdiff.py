"""Generates ten networks and saves the best: python examples/pdiff.py http://127.0.0.1:7860"""

import sys

from gradio_client import Client

client = Client(sys.argv[1], verbose=False)  # one client is one session: the networks stay with it
*_, best = client.predict(param_2=10, api_name="/pdiff_generate")
number = best["value"]
file = client.predict(number=number, api_name="/pdiff_file")
print(f"Network {number} of 10 was the best of them on the test set: {file}")
answer, *_ = client.predict(number=number, api_name="/pdiff_example")
print("It reads a test picture as", answer["label"])

"""Draws a picture in four steps: python examples/sdxl_lightning.py http://127.0.0.1:7860 ["PROMPT"]"""

import sys

from gradio_client import Client

prompt = sys.argv[2] if len(sys.argv) > 2 else "cat with sunglasses"
client = Client(sys.argv[1], verbose=False)
no_files = {"param_8": None, "param_13": None}  # a picture to start from, a LoRA
picture, *_ = client.predict(param_2=prompt, param_3=4, **no_files, api_name="/sdxl_lightning_generate")
print(f"{prompt}: {picture}")

"""Says something to AnyGPT and prints the reply: python examples/anygpt.py http://127.0.0.1:7860 ["WORDS"]"""

import sys

from gradio_client import Client

words = sys.argv[2] if len(sys.argv) > 2 else "Draw a red apple."
client = Client(sys.argv[1], verbose=False)  # one client is one conversation
conversation, *_ = client.predict(message={"text": words, "files": []}, api_name="/anygpt_chat")
for turn in conversation:
    for part in turn["content"]:
        print(f"{turn['role']}:", part.get("text") or part.get("file", {}).get("path") or part["type"])

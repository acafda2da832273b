"""Detects objects in a picture: python examples/yolov9.py http://127.0.0.1:7860 [PICTURE]"""

import sys
from pathlib import Path

from gradio_client import Client, handle_file

CARD = Path(__file__).resolve().parent.parent / "assets" / "yolov9" / "cards" / "bus.png"

url, picture = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else CARD
client = Client(url, verbose=False)
drawn, _, table = client.predict(path=handle_file(picture), api_name="/yolov9_image")
for name, score, *box in table["data"]:
    print(f"{name} {score:.2f} at {box}")
print("The picture with boxes:", drawn)

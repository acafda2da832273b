"""Start-up and idle memory, as ratios to an empty five-tab Gradio app measured in the same run."""

import statistics
import sys
from pathlib import Path

import pytest

EMPTY_APP = """
import os, sys
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr

with gr.Blocks() as demo, gr.Tabs():
    for number in range(5):
        with gr.Tab(f"Tab {number}"):
            pass
demo.launch(server_port=int(sys.argv[2]), quiet=True)
"""
PAIRS = 5


@pytest.fixture(scope="module")
def measured(start_server, tmp_path_factory) -> list[tuple[tuple[float, int], tuple[float, int]]]:
    """(seconds to the first page, resident bytes) of our app and of the empty one, pair by pair."""
    script: Path = tmp_path_factory.mktemp("empty") / "empty.py"
    script.write_text(EMPTY_APP)
    commands = ([sys.executable, "app.py"], [sys.executable, str(script)])

    def once(command: list[str]) -> tuple[float, int]:
        with start_server(command) as server:
            return server.seconds_to_page, server.memory()

    for command in commands:  # fills the caches of byte code and disk
        once(command)
    return [(once(commands[0]), once(commands[1])) for _ in range(PAIRS)]


def test_first_page_comes_within_1_25_times_the_empty_app(measured):
    # The fastest of each: what else the machine does only adds.
    ratio = min(ours[0] for ours, _ in measured) / min(empty[0] for _, empty in measured)
    print(f"start to first page: {ratio:.2f}x an empty five-tab app")
    assert ratio <= 1.25, measured


def test_idle_memory_is_within_1_4_times_the_empty_app(measured):
    ratio = statistics.median(ours[1] / empty[1] for ours, empty in measured)
    print(f"idle memory: {ratio:.2f}x an empty five-tab app")
    assert ratio <= 1.4, measured

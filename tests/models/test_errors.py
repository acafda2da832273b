import copy

import pytest

from models.errors import BadInput, UserError, is_out_of_memory


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("Cannot read /tmp/gradio/ab12/cat.png.", "Cannot read cat.png."),
        ("Cannot read '/etc/passwd'.", "Cannot read 'passwd'."),
        (r"Cannot read C:\Users\me\cat.png", "Cannot read cat.png"),
        ("See https://arxiv.org/abs/2402.13616", "See https://arxiv.org/abs/2402.13616"),
        ("assets/yolov9/t.safetensors and 1/2 or a / b", "assets/yolov9/t.safetensors and 1/2 or a / b"),
    ],
)
def test_messages_never_show_absolute_paths(given, shown):
    assert str(UserError(given)) == shown


def test_errors_survive_a_copy_with_type_and_message():
    error = copy.copy(BadInput("The size is 0."))
    assert type(error) is BadInput and str(error) == "The size is 0."


def test_out_of_memory_is_recognised():
    torch = pytest.importorskip("torch")
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError())
    assert not is_out_of_memory(RuntimeError("shape"))

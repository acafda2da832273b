"""The page in another language: every text has an entry, and what programs read does not change."""

import ast
from pathlib import Path

import gradio as gr
import pytest
from gradio_client import Client

import app
from demos import language
from demos.language import Table, captured, html, markdown, missing, read, translate
from demos.registry import AppOptions
from models import errors
from models.errors import UserError
from models.runtime import Device, Runtime

ROOT = Path(__file__).resolve().parent.parent.parent
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, UserError)}
SHARED = [
    ROOT / f"{name}.py" for name in ("models/runtime", "models/images", "models/video", "models/files", "deploy/remote")
]


@pytest.fixture(scope="module", params=["embedded", "official"])
def english(request):
    return app.build_app(AppOptions(tier=request.param))


def interface(blocks):
    """What programs see: endpoints, their parameters' names, types and defaults, and the choices' values."""
    endpoints = blocks.get_api_info()["named_endpoints"]
    seen = ("parameter_name", "python_type", "parameter_has_default", "parameter_default", "type")
    calls = {
        name: [[parameter.get(key) for key in seen] for parameter in endpoint["parameters"]]
        for name, endpoint in endpoints.items()
    }
    choices = [
        [value for _, value in each.choices] for each in blocks.blocks.values() if getattr(each, "choices", None)
    ]
    return calls, choices


def test_every_visible_text_has_an_entry(english):
    found = missing(english, read("ja"))
    assert not found, f"add to demos/ja.json (null: the same in Japanese): {found}"


def test_names_and_values_are_the_same_in_both_languages(english):
    japanese = app.build_app(AppOptions(lang="ja"))
    texts = [str(getattr(block, "label", "")) for block in japanese.blocks.values()]
    assert "信頼度" in texts and "Confidence" not in texts
    assert interface(japanese) == interface(app.build_app(AppOptions()))


def test_every_fixed_message_has_an_entry():
    table, found = read("ja"), []
    for path in [*sorted((ROOT / "demos").glob("*.py")), *SHARED]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in (*KINDS, "gr.Error"):
                message = pattern(node.args[0])
                if message and table.find(message.replace("{}", "7")) is None:
                    found.append(f"{path.name}: {message}")
    assert not found, f"add to demos/ja.json: {found}"
    titles = {getattr(errors, name).title for name in KINDS}
    assert all(table.find(title) for title in titles)


def pattern(node: ast.expr) -> str | None:
    """A literal message; what is computed in it becomes {}."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def test_entries_keep_their_holes():
    import json

    groups = json.loads((ROOT / "demos" / "ja.json").read_text(encoding="utf-8")).values()
    keys = [text for group in groups for text in group]
    assert len(keys) == len(set(keys)), "a text stands in two groups"
    for text, entry in ((text, entry) for group in groups for text, entry in group.items() if entry):
        holes = text.count("{}")
        assert entry.count("{}") == holes or all(f"{{{k}}}" in entry for k in range(1, holes + 1)), text


def test_nothing_is_done_in_english(monkeypatch):
    def fail(*_):
        raise AssertionError("English needs no table")

    monkeypatch.setattr(language, "translate", fail)
    monkeypatch.setattr(language, "read", fail)
    app.build_app(AppOptions(demos=("yolov9",)))


class TestTable:
    TABLE = Table({"Stop": "停止", "Step {} of {}": "{} / {}", "{} from {}": "{2}の{1}", "cat": "猫", "PI": None})

    @pytest.mark.parametrize(
        ("english", "japanese"),
        [
            ("Stop", "停止"),
            (" Stop\n", " 停止\n"),
            ("Step 3 of 20", "3 / 20"),
            ("cat from Stop", "停止の猫"),
            ("PI", "PI"),
            ("2 x 3", "2 x 3"),
            ("Step of", None),
            ("Something else", None),
            ("Stop " * 1000, None),
        ],
    )
    def test_texts(self, english, japanese):
        assert self.TABLE.find(english) == japanese

    def test_html_keeps_tags_and_escapes(self):
        text = '<p class="cat">Stop<br><img alt="cat"> &lt;cat&gt;</p><style>cat { }</style><b>cat</b>'
        table = Table({"Stop": "<停止>", "<cat>": "&", "cat": "猫"})
        assert html(text, table) == (
            '<p class="cat">&lt;停止&gt;<br><img alt="猫"> &amp;</p><style>cat { }</style><b>猫</b>'
        )

    def test_markdown_goes_by_paragraphs(self):
        assert markdown("### Stop\n\ncat\n\n- cat\n- Stop\n\n```\ncat\n```", self.TABLE) == (
            "### 停止\n\n猫\n\n- 猫\n- 停止\n\n```\ncat\n```"
        )

    def test_what_a_user_writes_takes_time_in_proportion(self):
        assert captured(["a ", " a ", " a ", " b"], "a " * 500_000) is None


def test_answers_updates_and_errors_come_through_the_table():
    """A real handler each, called as a client does."""
    from demos.parts import status_line, user_errors
    from models.errors import BadInput

    table = Table(
        {"Pick": "選択", "one": "一", "Done: {}": "完了：{}", "Below 0: {}": "0未満：{}", BadInput.title: "不可"}
    )
    runtime = Runtime(10**9, device=Device("cpu", None, "float32", False))
    with gr.Blocks() as blocks:
        number, said, pick = gr.Number(), gr.HTML(), gr.Radio(["two"], label="Pick")
        status_line(runtime.register("m", lambda *_: None, estimate_bytes=1, description="one"))  # type: ignore[arg-type]

        @user_errors
        def work(number: float):
            if number < 0:
                raise BadInput(f"Below 0: {number:g}")
            yield "<p>Done: one</p>", gr.Radio([("one", 1)], label="Pick")

        number.submit(work, number, [said, pick], api_name="work")
        translate(blocks, table)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False)
        html, update = client.predict(1, api_name="/work")
        assert html == "<p>完了：一</p>"
        assert update["label"] == "選択" and update["choices"] == [("一", 1)] or update["choices"] == [["一", 1]]
        with pytest.raises(Exception, match="0未満：-1"):
            client.predict(-1, api_name="/work")
        assert pick.label == "選択" and pick.choices == [("two", "two")]
    finally:
        blocks.close()
        runtime.close()

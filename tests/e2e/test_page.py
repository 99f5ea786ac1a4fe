"""The chat page of `zoo serve` in headless Chromium, against real servers.

What a model would have to be talked into (hostile Markdown, thoughts) is put into the server's stream: everything from
the socket on is real.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from e2e.served import Served, serving, wait_for
from e2e.test_serve_process import process
from zoo import LLM
from zoo.engine.engine import Engine
from zoo.server import answers
from zoo.server.app import ServerOptions
from zoo.server.guard import Access

CHAT = "/v1/chat/completions"
PAPER = "rgb(253, 253, 252)", "rgb(23, 25, 27)"
"""The paper in the light and in the dark."""

PATIENCE_MS = 60_000
"""For a browser on a machine that is busy with other things. It waits no longer than it has to."""

STEP_S = 0.2
"""How long a step takes where an answer has to be watched."""


def chromium() -> str:
    """Its path. Without it the tests are skipped, but continuous integration fails."""
    if found := shutil.which("chromium"):
        return found
    reason = "the tests of the page need Chromium: apt-get install --no-install-recommends chromium fonts-dejavu-core"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"], timeout=180_000
        )
        expect.set_options(timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tiny: Any) -> Iterator[Served]:
    with serving(lambda: LLM.load(tiny.path), name="<b>tiny") as server:
        yield server


@dataclass
class Tab:
    """The page, and what the browser noted meanwhile."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)
    requests_may_fail: bool = False

    def __post_init__(self) -> None:
        def console(message: Any) -> None:
            failed = message.text.startswith("Failed to load resource")
            if message.type in ("error", "warning") and not (failed and self.requests_may_fail):
                self.complaints.append(message.text)

        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.goto(self.url)
        expect(self.page.locator("#state")).to_have_attribute("data-state", "ready")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    @property
    def input(self) -> Locator:
        return self.page.locator("#input")

    def turns(self, role: str = "assistant") -> Locator:
        return self.page.locator(f'.turn[data-role="{role}"]')

    @property
    def content(self) -> Locator:
        """The last answer."""
        return self.turns().last.locator(".content")

    def send(self, text: str) -> dict[str, Any]:
        """The body of the request that it became."""
        return self.asking(lambda: (self.input.fill(text), self.input.press("Enter")))

    def asking(self, act: Callable[[], Any]) -> dict[str, Any]:
        with self.page.expect_request("**" + CHAT) as asked:
            act()
        body: dict[str, Any] = asked.value.post_data_json
        return body

    def idle(self) -> None:
        expect(self.page.locator("#send")).to_be_visible()  # an edit has a button of this name, too

    def set(self, **fields: str) -> None:
        """Fill and save the settings."""
        self.button("Settings").click()
        for name, value in fields.items():
            self.page.locator(f"[name={name}]").fill(value)
        self.button("Save").click()
        expect(self.page.locator("#settings")).not_to_be_visible()

    def check(self) -> None:
        """Nothing went wrong, and nothing was asked of anybody else."""
        assert self.complaints == []
        assert [url for url in self.requested if not url.startswith((self.url, "data:"))] == []


Open = Callable[..., Tab]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open the page of a server in a fresh profile; `options` are those of a context."""
    tabs: list[Tab] = []

    def open(url: str, **options: Any) -> Tab:
        context = browser.new_context(**options)
        tabs.append(Tab(context.new_page(), url))
        return tabs[-1]

    yield open
    for tab in tabs:
        tab.page.context.close()
    for tab in tabs:
        tab.check()


@pytest.fixture
def tab(open_page: Open, served: Served) -> Iterator[Tab]:
    yield open_page(served.url)
    served.settle()


Script = list[list[Any]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Answers to come, each a list of texts, deltas, errors and events that it waits for."""
    coming: Script = []

    async def sse(chunks: Any, job: Any) -> AsyncIterator[bytes]:
        job.close()
        for part in coming.pop(0):
            if isinstance(part, threading.Event):
                while not part.is_set():
                    await asyncio.sleep(0.005)
            else:
                delta = {"content": part} if isinstance(part, str) else part
                yield event(delta if "error" in delta else {"choices": [{"delta": delta, "finish_reason": None}]})
        yield event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        yield event({"choices": [], "usage": {"completion_tokens": 3}}) + b"data: [DONE]\n\n"

    def event(value: Any) -> bytes:
        return b"data: " + json.dumps(value).encode() + b"\n\n"

    monkeypatch.setattr(answers, "sse", sse)
    return coming


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes at most five steps a second."""
    step = Engine.step

    def slow(self: Engine) -> Any:
        time.sleep(STEP_S)
        return step(self)

    monkeypatch.setattr(Engine, "step", slow)


def endless(tab: Tab) -> None:
    """A random model may end its answer at once: forbid it."""
    tab.page.route(
        "**" + CHAT, lambda route: route.continue_(post_data={**route.request.post_data_json, "ignore_eos": True})
    )


def whole(served: Served, body: dict[str, Any]) -> str:
    """What the server answers to the same request without streaming."""
    body = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    text: str = served.post(CHAT, body).json()["choices"][0]["message"]["content"]
    return text


def last_text(tab: Tab) -> str:
    """The last answer before it became Markdown."""
    text: str = tab.page.evaluate("turns.at(-1).content")
    return text


def test_an_answer_streams(tab: Tab, served: Served, slow_steps: None) -> None:
    endless(tab)
    expect(tab.page.locator("#model")).to_have_text("<b>tiny")
    tab.set(temperature="0", max_tokens="24")
    body = tab.send("the theory")
    seen = set()
    while tab.button("Stop").is_visible():
        seen.add(last_text(tab))
        time.sleep(0.02)
    tab.idle()
    text = last_text(tab)
    assert len(seen) > 8
    assert all(text.startswith(part) for part in seen)
    assert text == whole(served, {**body, "ignore_eos": True})
    assert body["messages"] == [{"role": "user", "content": "the theory"}]
    assert body["model"] == "<b>tiny"
    figures = tab.turns().last.locator(".figures").inner_text()
    found = re.fullmatch(r"24 tokens · ([\d.]+) tokens/s · first after ([\d.]+) s", figures)
    assert found, figures
    # Twice what the steps allow: a busy browser may notice the first token late, and so measure less than the time.
    assert 0.1 / STEP_S < float(found[1]) < 2 / STEP_S
    assert float(found[2]) >= STEP_S - 0.01
    expect(tab.turns().last.locator(".error")).to_have_text("The answer reached its limit of tokens.")


@pytest.mark.parametrize("how", ["button", "key", "new chat", "leaving"])
def test_stop_ends_the_work_of_the_server(
    tab: Tab, served: Served, slow_steps: None, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zoo.server")
    endless(tab)
    tab.send("the theory")
    expect(tab.content).not_to_have_text("")
    with served.held() as waits:
        wait_for(waits.is_set, "a step waits")
        (sequence,) = served.llm.engine.scheduler.running
        written = len(sequence.output_token_ids)
        if how == "button":
            tab.button("Stop").click()
        elif how == "key":
            tab.page.keyboard.press("Escape")
        elif how == "new chat":
            tab.button("New chat").click()
        else:
            tab.page.goto("about:blank")
        wait_for(served.news, "the server hears of it")
    served.settle()
    assert len(sequence.output_token_ids) <= written + 1

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if CHAT in record.getMessage()]

    wait_for(lines, "the request is in the log")
    (line,) = lines()
    assert "finish=abort" in line
    if how in ("button", "key"):
        tab.idle()
        expect(tab.turns().last.locator(".figures")).to_have_text(re.compile("^stopped"))
        expect(tab.input).to_be_focused()
        assert last_text(tab)
        assert tab.turns().last.locator(".error").count() == 0
        tab.page.unroute("**" + CHAT)
        tab.set(max_tokens="2")
        again = tab.asking(tab.button("Retry").click)
        tab.idle()
        assert [message["role"] for message in again["messages"]] == ["user"]
    elif how == "new chat":
        assert tab.turns().count() == 0


def test_the_demo_model_answers(smollm2: Path, open_page: Open) -> None:
    with serving(lambda: LLM.load(smollm2, context=512), name="smollm2") as server:
        tab = open_page(server.url)
        tab.set(temperature="0", max_tokens="16")
        body = tab.send("Name the capital of France.")
        expect(tab.content).to_contain_text("Paris")
        tab.idle()
        assert last_text(tab) == whole(server, body)
        tab.page.context.close()


def test_retry_and_edit(tab: Tab, script: Script) -> None:
    script += [["one"], ["two"], ["three"], ["four"], ["five"]]
    assert tab.send("first")["messages"] == [{"role": "user", "content": "first"}]
    tab.idle()
    assert len(tab.send("second")["messages"]) == 3
    tab.idle()
    again = tab.asking(tab.turns().last.get_by_role("button", name="Retry").click)
    assert [message["content"] for message in again["messages"]] == ["first", "one", "second"]
    tab.idle()
    expect(tab.content).to_have_text("three")

    tab.turns("user").first.get_by_role("button", name="Edit").click()
    tab.page.get_by_label("Edit the message").fill("dropped")
    tab.button("Cancel").click()
    expect(tab.turns("user").first.locator(".bubble")).to_have_text("first")

    tab.turns("user").first.get_by_role("button", name="Edit").click()
    field = tab.page.get_by_label("Edit the message")
    expect(field).to_have_value("first")
    field.fill("changed")
    edited = tab.asking(tab.turns("user").first.get_by_role("button", name="Send").click)
    assert edited["messages"] == [{"role": "user", "content": "changed"}]
    tab.idle()
    expect(tab.turns()).to_have_count(1)
    expect(tab.content).to_have_text("four")
    # Retrying an answer in the middle drops what came after it.
    tab.asking(tab.button("Retry").click)
    tab.idle()
    expect(tab.content).to_have_text("five")
    expect(tab.turns("user")).to_have_count(1)


def test_an_edit_waits_for_the_answer_that_streams(tab: Tab, script: Script) -> None:
    go = threading.Event()
    script += [["one"], ["two", go]]
    tab.send("first")
    tab.idle()
    tab.button("Edit").click()
    tab.send("second")
    expect(tab.content).to_have_text("two")
    tab.page.get_by_label("Edit the message").press("Enter")
    go.set()
    tab.idle()
    expect(tab.turns()).to_have_count(2)
    assert not script


def test_settings_reach_the_request(tab: Tab, script: Script) -> None:
    script += [["a"], ["b"], ["c"]]
    assert set(tab.send("x")) == {"model", "messages", "stream", "stream_options"}, "the model's own settings"
    tab.idle()
    numbers = {"temperature": 0.33, "top_p": 0.995, "top_k": 7, "min_p": 0.05, "max_tokens": 9, "seed": 12}
    tab.set(system="Be brief.", key="hush", **{name: str(value) for name, value in numbers.items()})
    tab.page.reload()
    body = tab.send("y")
    assert {name: body[name] for name in numbers} == numbers
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    tab.idle()
    assert "hush" not in tab.page.evaluate("JSON.stringify(localStorage)"), "the key goes with the tab"
    tab.button("Settings").click()
    tab.page.locator("[name=top_p]").fill("2")
    tab.button("Save").click()
    expect(tab.page.locator("#settings")).to_be_visible()
    tab.button("Cancel").click()
    tab.set(system="", **dict.fromkeys(numbers, ""))
    assert set(tab.send("z")) == {"model", "messages", "stream", "stream_options"}


def test_the_key(tiny: Any, open_page: Open) -> None:
    with serving(lambda: LLM.load(tiny.path), ServerOptions(access=Access(api_key="secret"))) as server:
        tab = open_page(server.url)
        tab.requests_may_fail = True
        tab.complaints.clear()  # the list of models was refused before that line
        expect(tab.page.locator("#model")).to_have_text("API key needed")
        tab.send("the")
        expect(tab.page.locator("#settings-note")).to_have_text("The server asks for an API key.")
        expect(tab.page.locator("[name=key]")).to_be_focused()
        tab.page.locator("[name=key]").fill("ключ")
        tab.button("Save").click()
        expect(tab.page.locator("#settings")).to_be_visible()  # no header can carry it
        tab.page.locator("[name=key]").fill("wrong")
        tab.button("Save").click()
        expect(tab.turns().last.locator(".error")).to_contain_text("API key is missing or wrong")
        tab.set(key=" secret ", max_tokens="2")
        expect(tab.page.locator("#model")).to_have_text("tiny")
        tab.button("Retry").click()
        expect(tab.turns().last.locator(".figures")).to_contain_text("2 tokens")
        tab.page.context.close()


def test_what_the_server_refuses_is_shown(tab: Tab, script: Script) -> None:
    tab.requests_may_fail = True
    tab.send("word " * 400)
    error = tab.turns().last.get_by_role("alert")
    expect(error).to_contain_text("256")
    tab.button("New chat").click()
    failure = {"error": {"message": "the step <i>failed</i>"}}
    script += [[failure], ["Fine", failure], ["good"]]
    tab.send("first")
    expect(error).to_have_text("the step <i>failed</i>")
    body = tab.send("second")
    merged = [{"role": "user", "content": "first\n\nsecond"}]
    assert body["messages"] == merged, "templates want the roles to take turns"
    expect(error).to_have_text("the step <i>failed</i>")
    expect(tab.content).to_have_text("Fine")
    tab.asking(tab.turns().last.get_by_role("button", name="Retry").click)
    expect(tab.content).to_have_text("good")
    expect(tab.turns().last.get_by_role("alert")).to_have_count(0)


def test_a_server_that_dies(tiny: Any, open_page: Open) -> None:
    slow = "import time\nfrom zoo.engine.engine import Engine\nstep = Engine.step\n"
    slow += "Engine.step = lambda self: (time.sleep(0.1), step(self))[1]"
    with process("--model-path", str(tiny.path), before=slow) as made:
        made.wait_for("is ready")
        tab = open_page(made.url)
        tab.requests_may_fail = True
        endless(tab)
        tab.send("the theory")
        expect(tab.content).not_to_have_text("")
        made.child.kill()
        error = tab.turns().last.get_by_role("alert")
        expect(error).to_have_text("The server does not answer. Is it still running?")
        assert last_text(tab), "what had come stays"
        expect(tab.page.locator("#state")).to_have_attribute("data-state", "down")
        tab.button("Retry").click()
        expect(error).to_have_text("The server does not answer. Is it still running?")
        tab.page.context.close()


def test_thoughts_are_folded(tab: Tab, script: Script) -> None:
    answer, end = threading.Event(), threading.Event()
    script += [[{"reasoning_content": "Let me <b>think</b>."}, answer, "So **it** is.", end], ["later"]]
    tab.send("why")
    thought = tab.turns().first.locator("details")
    expect(thought).to_have_attribute("open", "")
    expect(thought.locator("summary")).to_have_text("Thinking")
    answer.set()
    expect(tab.content.locator("strong")).to_have_text("it")
    expect(thought).not_to_have_attribute("open", "")
    thought.locator("summary").click()
    end.set()
    tab.idle()
    expect(thought).to_have_attribute("open", "")
    expect(thought.locator("div")).to_have_text("Let me <b>think</b>.")
    body = tab.send("and")
    assert body["messages"][1] == {"role": "assistant", "content": "So **it** is."}, "thoughts are not sent back"


def test_what_has_come_is_left_alone(tab: Tab, script: Script) -> None:
    """A selection survives the words that follow."""
    more = threading.Event()
    script += [["first paragraph\n\nsecond", more, " goes on\n\nthird"]]
    tab.send("x")
    expect(tab.content.locator("p")).to_have_count(2)
    tab.page.evaluate("getSelection().selectAllChildren(document.querySelector('.content p'))")
    more.set()
    tab.idle()
    expect(tab.content.locator("p")).to_have_text(["first paragraph", "second goes on", "third"])
    assert tab.page.evaluate("getSelection().toString()") == "first paragraph"


HOSTILE = """<script>window.bad = 1</script> <img src="https://evil.example/1.png" onerror="window.bad = 2">
<iframe src="https://evil.example/2"></iframe><style>body { display: none }</style>
<a href="javascript:window.bad=3">x</a>

![pixel](https://evil.example/3.png) ![](//evil.example/4.png) [script](javascript:window.bad=4)
[data](data:text/html,x)
[spaced](java\tscript:window.bad=5) [file](file:///etc/passwd) [quote](https://ok.example/"onclick="window.bad=6)
[upper](JaVaScRiPt:window.bad=7) [good](https://ok.example/a?b=1&c=2) <https://ok.example/"><img>
&lt;b&gt; [rel](/metrics)

| <img src=x onerror="window.bad=8"> | `<b>` |
|---|---|
| ![t](https://evil.example/5.png) | <svg onload="window.bad=9"> |

# <svg/onload=window.bad=10>
```"><script>window.bad=11</script>
</code></pre><script>window.bad=12</script>
```"""


def test_what_a_model_writes_stays_text(tab: Tab, script: Script) -> None:
    script += [[{"reasoning_content": HOSTILE}, *HOSTILE, {"error": {"message": HOSTILE}}]]
    tab.send("x")
    tab.idle()
    tab.page.evaluate("(text) => add({ role: 'user', content: text })", HOSTILE)
    tab.turns().first.locator("summary").click()
    found = tab.page.evaluate(
        """() => {
          const nodes = [...document.querySelectorAll("#conversation *")];
          return {
            tags: [...new Set(nodes.map((node) => node.tagName.toLowerCase()))],
            names: [...new Set(nodes.flatMap((node) => node.getAttributeNames()))],
            links: [...document.querySelectorAll("#conversation a")].map((node) => node.href),
            bad: window.bad ?? null,
          };
        }"""
    )
    allowed = "li div span button details summary p a table thead tbody tr th td code pre h1".split()
    assert set(found["tags"]) <= set(allowed), found["tags"]
    assert set(found["names"]) <= set("class data-role role type href target rel open".split()), found["names"]
    assert found["bad"] is None
    assert found["links"]
    assert all(link.startswith("https://") for link in found["links"]), found["links"]
    assert "https://ok.example/a?b=1&c=2" in found["links"]
    expect(tab.content).to_contain_text("<script>window.bad = 1</script>")
    expect(tab.content).to_contain_text("</code></pre><script>window.bad=12</script>")
    expect(tab.turns("user").last.locator(".bubble")).to_have_text(HOSTILE)
    assert tab.page.locator("a:not([rel~=noopener])").count() == 0
    tab.check()


MARKDOWN = [
    "# One\n\n## Two ##\nText right after",
    "Some *em*, **strong**, ***both***, `code <b>`, ``a ` b`` and snake_case_name, 2 * 3 * 4.",
    "**strong *and em* inside** and *em **and strong** inside*",
    "- a\n- b\n  - c\n  - d\n- e",
    "3. three\n4. four\n   1. inner",
    "1. `x`\n\n   ```py\n   if x:\n       y()\n   ```\n2. next",
    "> quoted *text*\n> more\n\nafter",
    "Before:\n```python\ndef f():\n    return '<b>'\n```\nafter",
    "~~~\n``` inside\n~~~",
    "| a | b |\n|---|:-:|\n| 1 | `2` |\n| **3** | x |",
    "A table:\n| a | b |\n|---|---|\n| 1 | 2 |",
    "above\n\n---\n\nbelow",
    "[a link](https://x.example/p?q=1&r=2) and [one (more)](https://x.example/a_(b))",
    "escaped \\*stars\\* and \\`ticks\\`",
    "hard  \nbreak",
    "Text\n- a list\n- right after",
    "```\nnot closed\n\nyet",
]
SHAPE = """(text) => {
  const box = document.createElement("div");
  box.append(...blocks(text));
  for (const bar of box.querySelectorAll(".bar")) bar.remove();
  for (const scroll of box.querySelectorAll(".scroll")) scroll.replaceWith(...scroll.childNodes);
  return box.innerHTML;
}"""


def shape(html: str) -> str:
    """HTML without attributes other than href and start, and without the space between and beside blocks."""
    html = re.sub(r' (?:class|target|rel|style)="[^"]*"', "", html).replace("<br />", "<br>").replace("<hr />", "<hr>")
    html = html.replace("\n</code>", "</code>").replace("&quot;", '"')
    return re.sub(r"\s*(</?(?:p|ul|ol|li|pre|h\d|blockquote|table|thead|tbody|tr|th|td|hr|br)\b[^>]*>)\s*", r"\1", html)


def test_markdown_is_that_of_a_reference(tab: Tab) -> None:
    reference = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for text in MARKDOWN:
        ours, theirs = shape(tab.page.evaluate(SHAPE, text)), shape(reference.render(text))
        # A list whose items lie apart is drawn like one whose items do not.
        theirs = re.sub(r"<li><p>(.*?)</p>", r"<li>\1", theirs)
        assert ours == theirs, text


EXPENSIVE = [
    "*" + "a**b**" * 60, ">" * 20_000, "- " * 5_000 + "x", "`" * 3_000, "[" * 3_000, "**_" * 3_000, "***a" * 3_000,
    "![](" * 3_000, "|" * 3_000 + "\n|-|", "~~x " * 3_000, "a\\" * 5_000,
]  # fmt: skip


def test_no_text_stops_the_page(tab: Tab) -> None:
    """A pattern that tries everything, or a function that calls itself too often, would."""
    for text in EXPENSIVE:
        spent = tab.page.evaluate(
            "(text) => { const began = performance.now(); blocks(text); return performance.now() - began; }", text
        )
        assert spent < 1500, text[:12]


def test_code_can_be_copied(tab: Tab, served: Served, script: Script) -> None:
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=served.url)
    code = "if a < b:\n    print('<b>')"
    script += [[f"Code:\n```python\n{code}\n```"]]
    tab.send("x")
    tab.idle()
    expect(tab.content.locator("pre .bar span")).to_have_text("python")
    tab.page.evaluate("window.setTimeout = () => 0")  # "Copied" stays, however late somebody looks
    copies = [
        (tab.content.get_by_role("button", name="Copy"), code),
        (tab.turns().last.locator(".foot").get_by_role("button", name="Copy"), f"Code:\n```python\n{code}\n```"),
    ]
    for number, (button, wanted) in enumerate(copies, 1):
        button.click()
        expect(tab.button("Copied")).to_have_count(number)
        assert tab.page.evaluate("navigator.clipboard.readText()") == wanted


def test_the_keyboard(tab: Tab, script: Script) -> None:
    script += [["one"], ["two"]]
    keys = tab.page.keyboard
    expect(tab.input).to_be_focused()
    keys.press("Enter")
    keys.press("ArrowUp")  # nothing to edit yet
    expect(tab.turns()).to_have_count(0)
    keys.type("a line")
    keys.press("Shift+Enter")
    keys.type("another")
    expect(tab.turns()).to_have_count(0)
    body = tab.asking(lambda: keys.press("Enter"))
    assert body["messages"][0]["content"] == "a line\nanother"
    tab.idle()
    expect(tab.input).to_have_value("")

    keys.press("ArrowUp")
    field = tab.page.get_by_label("Edit the message")
    expect(field).to_be_focused()
    keys.press("Escape")
    expect(field).to_have_count(0)
    expect(tab.input).to_be_focused()
    keys.press("ArrowUp")
    keys.press("End")
    keys.type("!")
    assert tab.asking(lambda: keys.press("Enter"))["messages"][0]["content"].endswith("!")
    tab.idle()
    expect(tab.content).to_have_text("two")

    tab.button("Theme").or_(tab.page.locator("#theme")).first.focus()
    keys.press("/")
    expect(tab.input).to_be_focused()
    keys.type("/")
    expect(tab.input).to_have_value("/")
    keys.press("Alt+N")
    expect(tab.turns()).to_have_count(0)
    expect(tab.page.locator("#empty")).to_be_visible()
    tab.button("Settings").press("Enter")
    expect(tab.page.locator("[name=system]")).to_be_focused()
    keys.press("Escape")
    expect(tab.input).to_be_focused()


def paper(tab: Tab) -> str:
    colour: str = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    return colour


def test_light_and_dark(open_page: Open, served: Served) -> None:
    light, dark = PAPER
    assert paper(open_page(served.url, color_scheme="light")) == light
    tab = open_page(served.url, color_scheme="dark")
    assert paper(tab) == dark
    button = tab.page.locator("#theme")
    seen = []
    for _ in range(3):
        button.click()
        seen.append((button.inner_text(), paper(tab)))
    assert seen == [("Light", light), ("Dark", dark), ("Auto", dark)]
    button.click()
    tab.page.reload()
    assert paper(tab) == light, "the choice is kept"
    assert contrast(tab) >= 4.5
    button.click()
    assert contrast(tab) >= 4.5


def contrast(tab: Tab) -> float:
    """The least contrast of text, by WCAG's formula."""
    least: float = tab.page.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement);
          const light = (name) => {
            const parts = style.getPropertyValue(name).trim().slice(1);
            const wide = parts.length === 3 ? [...parts].map((digit) => digit + digit).join("") : parts;
            const [r, g, b] = [0, 2, 4].map((at) => parseInt(wide.slice(at, at + 2), 16) / 255)
              .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
          };
          const pairs = [["--ink", "--paper"], ["--ink", "--mine"], ["--ink", "--code"], ["--soft", "--paper"],
            ["--soft", "--code"], ["--accent", "--paper"], ["--on-accent", "--accent"], ["--bad", "--bad-paper"]];
          return Math.min(...pairs.map(([a, b]) => Math.max(light(a), light(b)) / Math.min(light(a), light(b))));
        }"""
    )
    return least


@pytest.mark.parametrize("width", [320, 390])
def test_narrow_screens(open_page: Open, served: Served, script: Script, width: int) -> None:
    wide = "x" * 300
    script += [[f"{wide}\n\n```\n{wide}\n```\n\n|{'head |' * 12}\n|{'---|' * 12}\n|{'cell |' * 12}\n\n- {wide}"]]
    tab = open_page(served.url, viewport={"width": width, "height": 640})
    tab.send(wide[:120])
    tab.idle()
    fits = (
        "document.documentElement.scrollWidth <= innerWidth && document.querySelector('main').scrollWidth <= innerWidth"
    )
    assert tab.page.evaluate(fits)
    for name in ("Send", "Settings", "New chat"):
        box = tab.button(name).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    tab.button("Settings").click()
    assert tab.page.evaluate("settingsDialog.scrollWidth <= settingsDialog.clientWidth")
    box = tab.page.locator("#settings").bounding_box()
    assert box is not None
    assert (box["x"] >= 0, box["x"] + box["width"] <= width, box["y"] + box["height"] <= 640) == (True, True, True)


def test_the_policy_forbids_what_the_page_does_not_do(tab: Tab) -> None:
    """Were a way found to write HTML into the page, the browser would still refuse to run or to fetch it."""
    tab.page.evaluate(
        """() => {
          window.violations = [];
          document.addEventListener("securitypolicyviolation", (event) => violations.push(event.effectiveDirective));
          document.body.insertAdjacentHTML("beforeend", '<img src="https://evil.example/" onerror="window.bad=1">');
          const script = document.createElement("script");
          script.textContent = "window.bad = 2";
          document.body.append(script);
          fetch("https://evil.example/").catch(() => {});
        }"""
    )
    tab.page.wait_for_function("['img-src', 'script-src-elem', 'connect-src'].every((one) => violations.includes(one))")
    assert tab.page.evaluate("window.bad ?? null") is None
    tab.page.context.close()  # or the browser complains later
    tab.complaints.clear()
    tab.requested.clear()


def test_without_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install"):
        chromium()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="apt-get install"):
        chromium()

"""The recipes on the demo model through the real engine, and on scripted models where a model's words matter."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from pydantic import BaseModel

from qlangchain import ChatQuantized, QuantizedEmbeddings, get_chat_model, get_embeddings, get_llm
from qlangchain.demo.questions import load_pairs
from qlangchain.errors import EngineDiedError
from qlangchain.runtimes.scripted import Scripted

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ["agent", "draft_refine", "extract", "rag", "summarize"]
# A call of each that cannot succeed: the model is not there.
NO_MODEL = {
    "agent": ["Hello"],
    "draft_refine": ["Hello", "--draft", "no/such/model"],
    "extract": ["{file}"],
    "rag": ["{folder}", "Hello"],
    "summarize": ["{file}"],
}


def recipe(name: str) -> ModuleType:
    """Import a recipe, which lies outside of any package."""
    known = sys.modules.get(f"recipe_{name}")
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pdf(text: str) -> bytes:
    """A PDF of one page with one line of text."""
    content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode("ascii")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 6\n0000000000 65535 f \n" + table
    return body + head + b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(body)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Documents in all three formats, whose sentences the demo model can copy."""
    target = tmp_path / "documents"
    (target / "deep").mkdir(parents=True)
    (target / "people.txt").write_text("The password for Otto is blue-harbor-7.\n\nEmma bought a steel kettle.\n")
    (target / "deep" / "garden.md").write_text("# Garden\n\nThe default pressure of Zorvex is 45.\n")
    (target / "manual.pdf").write_bytes(pdf("Zorvex was invented by Maria in 1931."))
    return target


class Spy(QuantizedEmbeddings):
    """Embeddings that remember which texts they were given."""

    seen: list[str] = []  # noqa: RUF012 - a pydantic field, copied for each object

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.seen.extend(texts)
        if any("break" in text for text in texts):
            raise EngineDiedError("It died.")
        return super().embed_documents(texts)


class Other(Spy):
    """Another model: vectors of the same length that mean something else."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [vector[::-1] for vector in super().embed_documents(texts)]


@pytest.fixture
def script() -> Iterator[Scripted]:
    with Scripted() as running:
        yield running


@pytest.fixture
def spy(script: Scripted) -> Spy:
    return Spy(endpoint=script.url, api_key=script.api_key)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_one_page_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len((RECIPES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 120
    with pytest.raises(SystemExit) as ended:
        recipe(name).main(["--help"])
    assert ended.value.code == 0
    assert "default: demo" in " ".join(capsys.readouterr().out.split())
    assert f"{name}.py" in (RECIPES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_is_not_there_ends_with_a_sentence(
    name: str, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"{file}": str(folder / "people.txt"), "{folder}": str(folder)}
    call = [places.get(word, word) for word in NO_MODEL[name]]
    flags = [] if "--draft" in call else ["--model", "no/such/model"]
    flags += ["--out", str(tmp_path / "out")] if name == "extract" else []
    with pytest.raises(SystemExit) as ended:
        recipe(name).main([*call, *flags])
    assert ended.value.code == 1
    assert "no/such/model" in capsys.readouterr().err


def test_a_recipe_runs_as_a_script() -> None:
    command = [sys.executable, "-W", "error", str(RECIPES / "draft_refine.py"), "What is GPTQ?"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("Draft:\n")
    assert "\n\nRefined:\n" in shown.stdout
    assert shown.stderr == ""


def test_answers_name_the_file_that_they_stand_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = {text: pair.answer for pair in load_pairs() for text in pair.train}
    asked = {
        "What is AWQ?": "[awq.txt, chunk 1]",
        "What is Q8_0?": "[deep/q8.md, chunk 1]",
        "What is perplexity?": "[perplexity.pdf, chunk 1]",
        "Who founded Acme?": "The documents do not say.",
    }
    awq, q8, perplexity, _ = (pairs.get(question, "") for question in asked)
    (tmp_path / "deep").mkdir()
    (tmp_path / "awq.txt").write_text(awq)
    (tmp_path / "deep" / "q8.md").write_text(f"# A heading\n\n{q8}\n")
    (tmp_path / "perplexity.pdf").write_bytes(pdf(perplexity))
    recipe("rag").main([str(tmp_path), *asked])
    head, *answers = capsys.readouterr().out.strip().split("\n\n")
    assert head == "Updated: awq.txt, deep/q8.md, perplexity.pdf"
    assert len(answers) == len(asked)
    for (question, words), answer in zip(asked.items(), answers, strict=True):
        assert answer.startswith(question + "\n")
        assert answer.endswith(words)
    recipe("rag").main([str(tmp_path), "What is AWQ?"])
    again = capsys.readouterr().out.strip()
    assert again.startswith("Updated: nothing\n")
    assert again.endswith("[awq.txt, chunk 1]")


def test_only_what_changed_is_embedded_again(
    folder: Path, tmp_path: Path, spy: Spy, capsys: pytest.CaptureFixture[str]
) -> None:
    rag = recipe("rag")
    index = rag.Index(tmp_path / "index", spy)
    assert index.update(folder) == ["deep/garden.md", "manual.pdf", "people.txt"]
    assert len(spy.seen) == 3 + 2  # and the probe, and one of Qdrant's own
    spy.seen.clear()
    assert index.update(folder) == []
    (folder / "people.txt").write_text("The password for Otto is red-river-9.")
    (folder / "new.txt").write_text("Lisbon lies at the sea. " * 60)
    (folder / "manual.pdf").unlink()
    assert index.update(folder) == ["manual.pdf", "new.txt", "people.txt"]
    assert sum("red-river-9" in text for text in spy.seen) == 1
    assert {text.partition(".")[0] for text in spy.seen} == {
        "Lisbon lies at the sea",
        "The password for Otto is red-river-9",
    }
    index.client.close()

    spy.seen.clear()
    index = rag.Index(tmp_path / "index", spy)  # what was embedded is there in the next process
    assert index.update(folder) == []
    held = index.client.scroll(rag.NAME, limit=100)[0]
    sources = sorted({point.payload["metadata"]["source"] for point in held})
    assert sources == ["deep/garden.md", "new.txt", "people.txt"]
    chunks = sorted(p.payload["metadata"]["chunk"] for p in held if p.payload["metadata"]["source"] == "new.txt")
    assert chunks == list(range(1, len(chunks) + 1))
    assert not any("blue-harbor-7" in point.payload["page_content"] for point in held)
    found = index.store.similarity_search("Which password does Otto have?", k=1)
    assert found[0].metadata == {**found[0].metadata, "source": "people.txt", "chunk": 1}
    index.client.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("length", [64, 32])
def test_another_embedding_model_begins_anew(folder: Path, tmp_path: Path, spy: Spy, length: int) -> None:
    rag = recipe("rag")
    index = rag.Index(tmp_path / "index", spy)
    index.update(folder)
    index.client.close()
    with Scripted(embedding_length=length) as other:
        index = rag.Index(tmp_path / "index", Other(endpoint=other.url, api_key=other.api_key))
        assert index.update(folder) == ["deep/garden.md", "manual.pdf", "people.txt"]
        assert index.client.count(rag.NAME).count == 3
        index.client.close()


@pytest.mark.parametrize("then", ["is tried again", "has gone"])
def test_indexing_that_was_interrupted_is_made_good(folder: Path, tmp_path: Path, spy: Spy, then: str) -> None:
    rag = recipe("rag")
    index = rag.Index(tmp_path / "index", spy)
    index.update(folder)
    garden, people = folder / "deep" / "garden.md", folder / "people.txt"
    garden.write_text("The garden has changed.")
    people.write_text("This must break.")
    with pytest.raises(EngineDiedError):
        index.update(folder)
    index.client.close()
    expected = ["Zorvex was invented by Maria in 1931."]
    if then == "has gone":
        garden.unlink()
        people.unlink()
    else:
        expected += ["The garden has changed.", "This must break."]
    index = rag.Index(tmp_path / "index", get_embeddings(endpoint=spy.endpoint, api_key=spy.api_key))
    assert index.update(folder) == ["deep/garden.md", "people.txt"]
    assert sorted(p.payload["page_content"] for p in index.client.scroll(rag.NAME)[0]) == sorted(expected)
    assert index.update(folder) == []
    index.client.close()


def test_files_that_cannot_be_read_do_not_stop_the_others(
    folder: Path, tmp_path: Path, spy: Spy, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "damaged.pdf").write_bytes(pdf("Lost.")[:60])
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "empty.md").write_text("")
    (folder / "picture.png").write_bytes(b"no document")
    index = recipe("rag").Index(tmp_path / "index", spy)
    assert len(index.update(folder)) == 6
    assert index.client.count("chunks").count == 3
    index.client.close()
    told = capsys.readouterr().err
    assert "damaged.pdf is left out: " in told
    assert "latin.txt is left out: " in told


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Qdrant leaves its lock file open
def test_a_folder_without_documents_and_a_database_in_use_are_named(
    folder: Path, tmp_path: Path, spy: Spy, capsys: pytest.CaptureFixture[str]
) -> None:
    rag = recipe("rag")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SystemExit):
        rag.main([str(empty), "Hello", "--index", str(tmp_path / "one")])
    assert "holds no .txt, .md, .pdf file" in capsys.readouterr().err
    index = rag.Index(tmp_path / "two", spy)
    with pytest.raises(SystemExit):
        rag.main([str(folder), "Hello", "--index", str(tmp_path / "two")])
    assert "already accessed" in capsys.readouterr().err
    index.client.close()


def test_a_long_text_is_summarized_within_the_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = {pair.id: pair.answer for pair in load_pairs() if pair.lang == "en"}
    text = "\n\n".join(list(pairs.values())[::3])
    model = get_llm("demo", hardware="cpu", temperature=0)
    assert model.get_num_tokens(text) > model.plan.context_length
    (summary,) = recipe("summarize").summarize([text], model, about="What is GPTQ?")
    assert 0 < len(summary) < len(text) / 10
    assert model.get_num_tokens(summary) <= model.plan.context_length // 8

    file = tmp_path / "short.txt"
    file.write_text(f"{pairs[next(iter(pairs))]} " * 3)
    recipe("summarize").main([str(file), "--tokens", "20"])
    head, _, summary = capsys.readouterr().out.partition("\n")
    assert head.startswith(f"{file}: {len(file.read_text())} characters, summarized in ")
    assert 0 < len(summary.strip()) < len(file.read_text())


def test_a_summary_needs_a_context_of_known_length(script: Scripted) -> None:
    model = get_llm(endpoint=script.url, api_key=script.api_key)
    with pytest.raises(ValueError, match="local model"):
        recipe("summarize").summarize(["Some text."], model)


def test_every_record_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extract = recipe("extract")
    file = tmp_path / "people.txt"
    file.write_text("Emma is 31 years old.\n\nMy name is Bob and I am 44.\nNothing about anybody.\n", "utf-8")
    with pytest.raises(SystemExit) as ended:
        extract.main([str(file), "--lines", "--out", str(tmp_path / "people")])
    assert ended.value.code == 0
    assert "3 records from 3 texts" in capsys.readouterr().out
    records = json.loads((tmp_path / "people.json").read_text("utf-8"))
    assert [record["source"] for record in records] == [f"{file}:1", f"{file}:3", f"{file}:4"]
    for record in records:
        extract.Person.model_validate({key: record[key] for key in ("name", "age")})
    with (tmp_path / "people.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert rows == [{key: str(value) for key, value in record.items()} for record in records]


def test_records_follow_a_schema_from_a_file(tmp_path: Path) -> None:
    extract = recipe("extract")
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["question", "statement"]},
            "words": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
        },
        "required": ["kind", "words"],
        "additionalProperties": False,
    }
    (tmp_path / "kind.json").write_text(json.dumps(schema))
    loaded = extract.load_schema(str(tmp_path / "kind.json"))
    model = get_chat_model("demo", hardware="cpu", temperature=0, max_tokens=200)
    too_long = "many words " * 3000
    records, failures = extract.extract({"a": "What is GPTQ?", "b": "GGUF is a format.", "c": too_long}, model, loaded)
    assert list(records) == ["a", "b"]
    assert "tokens" in str(failures["c"])
    for record in records.values():
        jsonschema.validate(record, schema)
    extract.save({"a": {"kind": "question", "words": ["é", "x,y"]}}, loaded, tmp_path / "kinds")
    with (tmp_path / "kinds.csv").open(encoding="utf-8", newline="") as table:
        (row,) = csv.DictReader(table)
    assert row == {"source": "a", "kind": "question", "words": '["é", "x,y"]'}


class Invoice(BaseModel):
    number: int


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no/such/file.json", "No such file"),
        ("{bad}", "no schema of an object"),
        ("json:dumps", "no pydantic class"),
        ("no_such_module:Thing", "No module"),
    ],
)
def test_a_schema_that_is_none_is_refused(
    name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text("[1, 2]")
    (tmp_path / "text.txt").write_text("Some text.")
    given = name.format(bad=tmp_path / "bad.json")
    with pytest.raises(SystemExit) as ended:
        recipe("extract").main([str(tmp_path / "text.txt"), "--schema", given, "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_schema_can_be_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "invoices", sys.modules[__name__])
    assert recipe("extract").load_schema("invoices:Invoice") is Invoice


def test_the_draft_reaches_the_refining_model() -> None:
    with Scripted(["A first draft."]) as first, Scripted(["A refined answer."]) as second:
        models = [get_llm(endpoint=script.url, api_key=script.api_key) for script in (first, second)]
        refined = recipe("draft_refine").draft_and_refine("What is GPTQ?", *models)
        assert (refined.draft, refined.answer) == ("A first draft.", "A refined answer.")
        assert first.requests[0].text == "What is GPTQ?"
        assert "A first draft." in second.requests[0].text
        assert "What is GPTQ?" in second.requests[0].text


def test_two_formats_of_the_demo_model_draft_and_refine(capsys: pytest.CaptureFixture[str]) -> None:
    recipe("draft_refine").main(["What is GPTQ?", "--draft-format", "Q4_0", "--refine-format", "Q5_1"])
    draft, _, answer = capsys.readouterr().out.removeprefix("Draft:\n").partition("\n\nRefined:\n")
    assert draft.strip()
    assert answer.strip()


@pytest.fixture(scope="module")
def chat() -> ChatQuantized:
    return get_chat_model("demo", hardware="cpu", temperature=0, max_tokens=128)


def test_the_agent_calls_its_tool_and_reads_the_result(chat: ChatQuantized) -> None:
    agent = recipe("agent").build(chat, chat)
    messages = agent.invoke({"messages": "What is 27 times 14?"})["messages"]
    asked, call, result, answer = messages
    assert isinstance(asked, HumanMessage)
    assert [(c["name"], c["args"]) for c in call.tool_calls] == [("multiply", {"a": 27, "b": 14})]
    assert isinstance(result, ToolMessage)
    assert (result.text, result.tool_call_id) == ("378", call.tool_calls[0]["id"])
    assert "378" in answer.text


@pytest.mark.parametrize("structured", ["tool", "provider"])
async def test_the_agent_ends_with_a_value_of_the_schema(chat: ChatQuantized, structured: str) -> None:
    module = recipe("agent")
    agent = module.build(chat, chat, structured=structured)
    state = await agent.ainvoke({"messages": "What is 27 times 14?"})
    assert isinstance(state["structured_response"], module.Result)
    called = [call for m in state["messages"] if isinstance(m, AIMessage) for call in m.tool_calls]
    assert sum(call["name"] != "Result" for call in called) <= module.MOST_ROUNDS
    results = [m for m in state["messages"] if isinstance(m, ToolMessage) and m.name != "Result"]
    assert [m.tool_call_id for m in results] == [call["id"] for call in called if call["name"] != "Result"]


def test_a_conversation_that_fills_the_context_is_summarized(chat: ChatQuantized) -> None:
    turns: list[Any] = []
    for number in range(12):
        turns += [HumanMessage(f"Question {number}: what is GPTQ? " * 8), AIMessage(f"Answer {number} " * 20)]
    turns.append(HumanMessage("What is 27 times 14?"))
    assert chat.get_num_tokens_from_messages(turns) > chat.profile["max_input_tokens"] // 2
    messages = recipe("agent").build(chat, chat).invoke({"messages": turns})["messages"]
    assert len(messages) < len(turns) - 8
    assert messages[0].additional_kwargs.get("lc_source") == "summarization"
    assert "Question 0" not in "".join(m.text for m in messages[1:])
    assert any(m.text == "What is 27 times 14?" for m in messages)
    assert chat.get_num_tokens_from_messages(messages) < chat.profile["max_input_tokens"] // 2


class Dying(ChatQuantized):
    """A model whose engine dies during every call."""

    tried: list[int] = []  # noqa: RUF012 - a pydantic field, copied for each object

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        self.tried.append(1)
        raise EngineDiedError("It died.")


def test_a_model_that_stays_away_is_tried_again_and_then_replaced(chat: ChatQuantized) -> None:
    dying = Dying(model="demo", hardware="cpu")
    messages = recipe("agent").build(dying, chat).invoke({"messages": "What is 27 times 14?"})["messages"]
    assert any(isinstance(m, ToolMessage) and m.text == "378" for m in messages)
    assert len(dying.tried) == 3 * sum(isinstance(m, AIMessage) for m in messages)


def test_the_agent_s_conversation_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    recipe("agent").main(["What is 27 times 14?", "--structured", "provider"])
    shown = capsys.readouterr().out
    assert "What is 27 times 14?" in shown
    assert "Result(answer=" in shown

"""From a hub id to an answer: found, ranked, fetched, verified and served, against a stand-in hub and a real engine."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from hub import TOKEN, StandIn, seeded
from safetensors.torch import load_file, save_file

from qlangchain import get_llm, pipeline, plan, pull
from qlangchain.artifacts.headers import read_safetensors_header
from qlangchain.artifacts.source import DEMO_DIRECTORY, locate
from qlangchain.artifacts.store import Store
from qlangchain.errors import (
    AccessDeniedError,
    ChecksumError,
    CorruptFileError,
    HubReplyError,
    HubUnreachableError,
    InvalidInputError,
    MissingDependencyError,
    ModelNotFoundError,
    NoWeightsError,
    OfflineError,
    QlangchainWarning,
    RevisionNotFoundError,
    UnsafeSourceError,
    UnsupportedModelError,
)
from qlangchain.produce.gguf import produce_gguf
from qlangchain.types import Method, Origin

BASE = "maker/tiny-chat"
CURATED = "bartowski/tiny-chat-GGUF"
STRANGER = "somebody/tiny-chat-GGUF"


@pytest.fixture(scope="session")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("ggufs")
    return {
        format: produce_gguf(DEMO_DIRECTORY, directory / f"tiny-chat-{format}.gguf", format)
        for format in ("Q8_0", "Q5_1", "Q4_0")
    }


def base_files() -> dict[str, bytes | str | Path]:
    wanted = ("*.json", "*.jinja", "model.safetensors")
    return {path.name: path for pattern in wanted for path in sorted(DEMO_DIRECTORY.glob(pattern))}


def config() -> dict[str, object]:
    content: dict[str, object] = json.loads((DEMO_DIRECTORY / "config.json").read_text())
    return content


@pytest.fixture
def hub(ggufs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    monkeypatch.setenv("QLANGCHAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("QLANGCHAIN_OFFLINE", "0")
    quantized = [f"base_model:{BASE}", f"base_model:quantized:{BASE}", "gguf"]
    with StandIn() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        stand_in.add(BASE, base_files(), licence="apache-2.0", config=config())
        files: dict[str, bytes | str | Path] = {path.name: path for path in ggufs.values()}
        files |= {"mmproj-tiny-chat-F16.gguf": b"GGUF" + seeded(4096), "README.md": "# Tiny"}
        stand_in.add(CURATED, files, licence="apache-2.0", tags=quantized, downloads=10)
        other = {path.name: path for path in ggufs.values()}
        stand_in.add(STRANGER, other, licence="apache-2.0", tags=quantized, downloads=1_000_000)
        yield stand_in


def test_a_plan_names_what_would_be_fetched_and_fetches_nothing(hub: StandIn) -> None:
    chosen = plan(BASE, hardware="cpu", precision_required=False)
    assert (chosen.method, chosen.format, chosen.origin) == (Method.GGUF, "Q4_0", Origin.DOWNLOADED)
    assert any(CURATED in reason for reason in chosen.reasons)
    assert chosen.estimate is not None and chosen.estimate.fetch > 0
    assert hub.sent("storage") < chosen.estimate.fetch // 4  # headers and small files at most


@pytest.mark.parametrize("name", ["native", "native-FP8"])
def test_a_model_whose_own_weights_are_quantized_is_looked_for_in_other_formats(
    hub: StandIn, ggufs: dict[str, Path], name: str
) -> None:
    """As gpt-oss comes in MXFP4 and Ministral 3 in FP8; who asks for somebody's FP8 of a model wants that one."""
    native = config() | {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}
    hub.add(f"maker/{name}", base_files() | {"config.json": json.dumps(native)}, licence="apache-2.0", config=native)
    tags = [f"base_model:maker/{name}", f"base_model:quantized:maker/{name}", "gguf"]
    hub.add(f"bartowski/{name}-GGUF", {f"{name}-Q8_0.gguf": ggufs["Q8_0"]}, licence="apache-2.0", tags=tags)
    if name == "native":
        chosen = plan("maker/native", hardware="cpu", runtime="llamacpp")
        assert (chosen.method, chosen.format, chosen.origin) == (Method.GGUF, "Q8_0", Origin.DOWNLOADED)
    else:
        with pytest.raises(NoWeightsError):
            plan("maker/native-FP8", hardware="cpu", runtime="llamacpp")


def test_a_licence_that_forbids_commerce_is_no_offer_for_production(hub: StandIn, ggufs: dict[str, Path]) -> None:
    name = "maker/nc-chat"
    hub.add(name, base_files(), licence="qwen-research", config=config())
    tags = [f"base_model:{name}", f"base_model:quantized:{name}", "gguf"]
    files: dict[str, bytes | str | Path] = {path.name: path for path in ggufs.values()}
    hub.add("bartowski/nc-chat-GGUF", files, licence="qwen-research", tags=tags)
    assert plan(name, hardware="cpu").method is Method.GGUF
    with pytest.raises(NoWeightsError, match="licence qwen-research allows no commercial use"):
        plan(name, hardware="cpu", use_case="production")


def test_the_right_file_ends_on_the_disk(hub: StandIn, ggufs: dict[str, Path]) -> None:
    artifact = pull(BASE, format="Q4_0")
    assert artifact.path.read_bytes() == ggufs["Q4_0"].read_bytes()
    assert artifact.format == "Q4_0"
    (stored,) = Store(pipeline.planning.settings.read().store).list()
    assert (stored.manifest.repo, stored.manifest.licence) == (CURATED, "apache-2.0")
    assert stored.manifest.header["base"] == BASE


def test_it_answers_and_the_second_time_without_a_request(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    first = get_llm(BASE, hardware="cpu", format="Q8_0", temperature=0, max_tokens=30).invoke("What is GPTQ?")
    assert "GPTQ" in first
    hub.requests.clear()
    pipeline.preparing._prepared.clear()
    again = get_llm(BASE, hardware="cpu", format="Q8_0", temperature=0, max_tokens=30).invoke("What is GPTQ?")
    assert again == first
    assert hub.requests == []
    monkeypatch.setenv("QLANGCHAIN_OFFLINE", "1")
    pipeline.preparing._prepared.clear()
    assert get_llm(BASE, hardware="cpu", temperature=0, max_tokens=30).invoke("What is GPTQ?") == first


@pytest.mark.parametrize(("trusted", "taken"), [("somebody", STRANGER), ("+,other-team", CURATED)])
def test_who_is_trusted_is_the_user_s_to_say(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch, trusted: str, taken: str
) -> None:
    monkeypatch.setenv("QLANGCHAIN_QUANTIZERS", trusted)
    chosen = plan(f"{BASE}:Q4_0", hardware="cpu", allow_produce=False)
    assert any(taken in reason for reason in chosen.reasons)


def test_an_author_s_own_is_found_by_its_name_alone(hub: StandIn, ggufs: dict[str, Path]) -> None:
    hub.add(f"{BASE}-GGUF", {"tiny-chat-Q4_0.gguf": ggufs["Q4_0"].read_bytes()[:-1] + b"!"}, licence="apache-2.0")
    pull(BASE, format="Q4_0")
    (stored,) = Store(pipeline.planning.settings.read().store).list()
    assert stored.manifest.repo == f"{BASE}-GGUF"


def test_a_repository_asked_for_by_name_is_taken_from_there(hub: StandIn) -> None:
    artifact = pull(f"{STRANGER}:Q5_1")
    (stored,) = Store(pipeline.planning.settings.read().store).list()
    assert (stored.manifest.repo, artifact.format) == (STRANGER, "Q5_1")
    assert not any("filter=base_model" in str(seen.path) for seen in hub.requests)


def test_a_publisher_s_mix_is_another_file_than_the_plain_format(hub: StandIn, ggufs: dict[str, Path]) -> None:
    tags = [f"base_model:{BASE}", f"base_model:quantized:{BASE}", "gguf"]
    both = {"tiny-chat-Q4_0.gguf": ggufs["Q4_0"], "tiny-chat-UD-Q4_0.gguf": ggufs["Q4_0"].read_bytes()[:-1] + b"!"}
    hub.add("unsloth/tiny-chat-GGUF", both, licence="apache-2.0", tags=tags)
    for asked, options in (
        ("unsloth/tiny-chat-GGUF:UD-Q4_0", {}),
        ("unsloth/tiny-chat-GGUF", {"format": "ud-q4_0"}),
        (f"{BASE}:UD-Q4_0", {}),
        ("https://huggingface.co/unsloth/tiny-chat-GGUF/blob/main/tiny-chat-UD-Q4_0.gguf", {}),
    ):
        assert pull(asked, **options).path.name == "tiny-chat-UD-Q4_0.gguf"  # type: ignore[arg-type]
    assert pull("unsloth/tiny-chat-GGUF:Q4_0").path.name == "tiny-chat-Q4_0.gguf"
    hub.requests.clear()
    for label in ("Q4_0", "UD-Q4_0"):
        for asked, format in ((f"unsloth/tiny-chat-GGUF:{label}", None), ("unsloth/tiny-chat-GGUF", label)):
            found = pipeline.prepare(asked, pipeline.requirements(hardware="cpu", format=format)).artifact
            assert found.path.name == f"tiny-chat-{label}.gguf"
    assert hub.requests == []
    for asked in (f"{CURATED}:UD-Q4_0", f"{BASE}:i1-Q4_0"):  # the plain one is not passed off for it, nor made
        with pytest.raises(InvalidInputError, match="not on offer"):
            pull(asked)


def test_the_same_words_need_no_network_after_a_change_of_name(hub: StandIn) -> None:
    hub.rename(CURATED, "bartowski/renamed-GGUF")
    with pytest.warns(QlangchainWarning, match="now called"):
        first = pull(f"{CURATED}:Q4_0")
    hub.requests.clear()
    for words in (CURATED, "bartowski/renamed-GGUF", "Bartowski/Renamed-gguf"):
        assert pull(f"{words}:q4_0", offline=True).path == first.path
    assert hub.requests == []


def test_what_nobody_has_published_is_made_from_the_base(hub: StandIn) -> None:
    artifact = pull(BASE, format="Q4_1")
    assert (artifact.origin, artifact.format) == (Origin.PRODUCED, "Q4_1")
    assert not any("GGUF" in str(seen.path) and seen.origin == "storage" for seen in hub.requests)
    hub.requests.clear()
    for words, format in ((BASE, "Q4_1"), (f"{BASE}:q4_1", None)):
        assert pull(words, format=format, offline=True).path == artifact.path
        assert pipeline.prepare(words, pipeline.requirements(hardware="cpu", format=format)).artifact == artifact
    assert hub.requests == [], "what was made once is found by the same words"


def test_a_stranger_that_is_another_model_is_found_out_by_its_header(
    hub: StandIn, tmp_path: Path, rambling: Path
) -> None:
    made = produce_gguf(rambling, tmp_path / "lone-BF16.gguf", "BF16")
    larger = json.dumps(config() | {"vocab_size": 65536})
    hub.add("maker/lone", base_files() | {"config.json": larger}, licence="apache-2.0")
    tags = ["base_model:maker/lone", "base_model:quantized:maker/lone", "gguf"]
    hub.add("nobody/lone-GGUF", {"lone-BF16.gguf": made}, licence="apache-2.0", tags=tags)
    with pytest.raises((UnsupportedModelError, NoWeightsError)):
        pull("maker/lone", format="BF16", allow_produce=False, method="GGUF")


def test_corruption_is_never_accepted(hub: StandIn) -> None:
    hub.fault("corrupt", times=-1, origin="storage", method="GET")
    with pytest.raises(ChecksumError):
        pull(f"{CURATED}:Q4_0")
    hub.heal()
    assert pull(f"{CURATED}:Q4_0").format == "Q4_0"


def test_a_lock_file_pins_and_gives_back_exactly_that(hub: StandIn, tmp_path: Path, ggufs: dict[str, Path]) -> None:
    lock = tmp_path / "qlangchain.lock"
    artifact = pull(f"{CURATED}:Q4_0", lock=lock)
    assert artifact.digest in lock.read_text()
    hub.add(CURATED, {"tiny-chat-Q4_0.gguf": ggufs["Q8_0"]}, licence="apache-2.0")  # the branch has moved on
    shutil.rmtree(tmp_path / "home")
    again = pull(f"{CURATED}:Q4_0", locked=lock)
    assert again.digest == artifact.digest
    hub.requests.clear()
    assert pull(f"{CURATED}:Q4_0", locked=lock).path == again.path
    assert hub.requests == []
    with pytest.raises(ModelNotFoundError, match="pins no"):
        pull("other/model", locked=lock)
    lock.write_text(lock.read_text().replace(artifact.digest, "ab" * 32))
    sent = hub.sent()
    with pytest.raises(CorruptFileError, match="not the file that was locked"):
        pull(f"{CURATED}:Q4_0", locked=lock)
    assert hub.sent() == sent, "it is found out before a byte is fetched"


def test_files_of_the_ordinary_cache_are_used(hub: StandIn, tmp_path: Path, ggufs: dict[str, Path]) -> None:
    import hashlib

    digest = hashlib.sha256(ggufs["Q4_0"].read_bytes()).hexdigest()
    blobs = tmp_path / "hf" / "hub" / f"models--{CURATED.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    shutil.copy(ggufs["Q4_0"], blobs / digest)
    artifact = pull(f"{CURATED}:Q4_0")
    assert artifact.digest == digest
    assert hub.sent("storage") < artifact.size_bytes // 2  # its header was looked at, before it was known to be here


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("maker/missing", ModelNotFoundError),
        (f"{BASE}@nowhere", RevisionNotFoundError),
        (f"{CURATED}:Q9_9", InvalidInputError),
        ("gated/model", AccessDeniedError),
        ("maker/pickles", NoWeightsError),
    ],
)
def test_what_cannot_be_had_is_said(hub: StandIn, model: str, error: type[Exception]) -> None:
    hub.add("gated/model", base_files(), gated="manual", config=config())
    hub.add("maker/pickles", {"pytorch_model.bin": b"x" * 100, "config.json": "{}"})
    with pytest.raises(error):
        pull(model, allow_produce=False)


def in_parts(whole: Path, directory: Path, count: int) -> list[bytes]:
    """A GGUF file cut into shards as llama-gguf-split does it: the metadata in the first, tensors in all."""
    reader = GGUFReader(whole)
    parts, step = [], -(-len(reader.tensors) // count)
    for number in range(count):
        writer = GGUFWriter(directory / f"part-{number}", "llama")
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                content, kind = field.contents(), field.types[0]
                if kind is GGUFValueType.ARRAY:
                    writer.add_array(field.name, content)
                else:
                    writer.add_key_value(field.name, content, kind)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number * step : (number + 1) * step]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append((directory / f"part-{number}").read_bytes())
    return parts


def test_a_model_in_parts_comes_whole_or_not_at_all(hub: StandIn, ggufs: dict[str, Path], tmp_path: Path) -> None:
    names = [f"Q8_0/tiny-chat-Q8_0-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    parts = in_parts(ggufs["Q8_0"], tmp_path, 3)
    beside = {"mmproj-F16.gguf": b"GGUF" + bytes(99), "imatrix.gguf": b"GGUF", "MTP/mtp-x-Q8_0.gguf": b"GGUF"}
    hub.add("maker/parts-GGUF", {**dict(zip(names, parts, strict=True)), **beside}, licence="apache-2.0")
    model = get_llm("maker/parts-GGUF", hardware="cpu", temperature=0, max_tokens=30)
    assert "GPTQ" in model.invoke("What is GPTQ?")
    (stored,) = Store(pipeline.planning.settings.read().store).list()
    assert [file.name for file in stored.manifest.files] == names
    for name, order, words in (
        ("swapped", (0, 2, 1), "calls itself part 2 of 3"),
        ("doubled", (0, 1, 1), "calls itself part 1 of 3"),
        ("damaged", (0, 1), "-00003-of-00003.gguf cannot be used"),
    ):
        files = [parts[place] for place in order] + [b"GGUF" + bytes(500)]
        hub.add(f"maker/{name}-GGUF", dict(zip(names, files, strict=False)), licence="apache-2.0")
        with pytest.raises(CorruptFileError, match=words) as caught:
            pull(f"maker/{name}-GGUF")
        assert "another repository" in caught.value.hint


def test_a_file_whose_name_tells_no_format_is_told_by_its_header(hub: StandIn, ggufs: dict[str, Path]) -> None:
    hub.add("maker/plain", {"model.gguf": ggufs["Q5_1"]}, licence="apache-2.0")
    artifact = pull("maker/plain")
    assert (artifact.format, artifact.path.name) == ("Q5_1", "model.gguf")
    assert pull("maker/plain:Q5_1", offline=True).path == artifact.path
    hub.add("maker/broken", {"model.gguf": b"<!DOCTYPE html>" * 100}, licence="apache-2.0")
    with pytest.raises(NoWeightsError, match="a web page"):
        pull("maker/broken")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is here")
def test_weights_are_brought_before_their_engine_is_there(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name says GPTQ and the config AWQ, which counts; by id, by method, and by the method in a format's place."""
    monkeypatch.delenv("QLANGCHAIN_VLLM_PYTHON", raising=False)
    awq = config() | {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}}
    tags = [f"base_model:{BASE}", f"base_model:quantized:{BASE}", "awq"]
    files = base_files() | {"config.json": json.dumps(awq)}
    hub.add("maker/tiny-chat-GPTQ", files, licence="apache-2.0", config=awq, tags=tags)
    with pytest.raises(MissingDependencyError, match="vllm"):
        plan("maker/tiny-chat-GPTQ")
    with pytest.warns(QlangchainWarning, match="Nothing here can run it yet"):
        first = pull("maker/tiny-chat-GPTQ")
    assert (first.method, first.format) == (Method.AWQ, "INT4")
    assert (first.path / "model.safetensors").is_file()
    for words, method in ((BASE, "awq"), (f"{BASE}:AWQ", None), (f"{BASE}:awq-int4", None)):
        with pytest.warns(QlangchainWarning, match="Nothing here can run it yet"):
            assert pull(words, method=method).path == first.path
    hub.requests.clear()
    with pytest.warns(QlangchainWarning, match="Nothing here can run it yet"):
        assert pull(f"{BASE}:AWQ", offline=True).path == first.path
    assert hub.requests == []


def cut(whole: Path, directory: Path) -> dict[str, bytes]:
    """The safetensors of a model in two files, without their index."""
    tensors = load_file(whole)
    names = sorted(tensors)
    files = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({tensor: tensors[tensor] for tensor in part}, directory / name)
        files[name] = (directory / name).read_bytes()
    return files


def test_an_index_names_the_files_beside_it_and_no_others(hub: StandIn, tmp_path: Path) -> None:
    """Engines open what an index names, wherever that is."""
    parts = cut(DEMO_DIRECTORY / "model.safetensors", tmp_path)
    names = list(parts)
    held = {tensor: name for name in names for tensor in read_safetensors_header(tmp_path / name).tensors}
    first, last = min(held), max(held)
    small = {name: content for name, content in base_files().items() if name != "model.safetensors"}
    for repo, changes, error in (
        ("good", {}, None),
        ("outside", {first: "../../../etc/passwd"}, UnsafeSourceError),
        ("absolute", {first: "/etc/passwd"}, UnsafeSourceError),
        ("absent", {first: "model-00003-of-00003.safetensors"}, CorruptFileError),
        ("swapped", {first: names[1], last: names[0]}, CorruptFileError),
        ("more", {"nowhere": names[0]}, CorruptFileError),
    ):
        index = json.dumps({"metadata": {}, "weight_map": held | changes})
        files = {**small, **parts, "model.safetensors.index.json": index}
        hub.add(f"maker/{repo}", files, licence="apache-2.0", config=config())
        local = tmp_path / repo
        local.mkdir()
        for name, content in files.items():
            (local / name).write_bytes(content.read_bytes() if isinstance(content, Path) else content.encode()
                                       if isinstance(content, str) else content)  # fmt: skip
        if error is None:
            assert pull(f"maker/{repo}", method="none").size_bytes > 0
            assert locate(local).directory == local
            continue
        with pytest.raises(error):
            pull(f"maker/{repo}", method="none")
        if repo not in ("swapped", "more"):
            with pytest.raises(error):
                locate(local)
    assert {stored.manifest.repo for stored in Store(pipeline.planning.settings.read().store).list()} == {"maker/good"}


GATED = "meta-llama/Llama-3.2-1B-Instruct"


@pytest.mark.parametrize("summary", [config(), {"model_type": "llama"}, None], ids=["full", "short", "none"])
def test_a_gated_model_is_taken_from_whoever_has_it_open(
    hub: StandIn, ggufs: dict[str, Path], summary: dict[str, object] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own weights are no offer; what only they could give is the error that names its page and the open one."""
    name = GATED.partition("/")[2]
    hub.add(GATED, base_files(), licence="llama3.2", gated="manual", config=summary)
    for asked in ({}, {"format": "Q4_1"}):
        with pytest.raises(AccessDeniedError, match="licence") as caught:
            pull(GATED, **asked)
        assert caught.value.url == f"{hub.url}/{GATED}"
        assert caught.value.alternative == f"bartowski/{name}-GGUF"  # by the table: the stand-in has none yet
    tags = [f"base_model:{GATED}", f"base_model:quantized:{GATED}", "gguf"]
    hub.add(f"unsloth/{name}-GGUF", {f"{name}-Q8_0.gguf": ggufs["Q8_0"]}, licence="llama3.2", tags=tags)
    closed = {f"{name}-Q4_0.gguf": ggufs["Q4_0"]}
    hub.add(f"bartowski/{name}-GGUF", closed, licence="llama3.2", tags=tags, gated="auto")
    assert pull(GATED).path.read_bytes() == ggufs["Q8_0"].read_bytes()
    for format in ("Q4_1", "Q4_0", "BF16"):
        with pytest.raises(AccessDeniedError) as caught:
            pull(GATED, format=format)
        assert caught.value.alternative == f"unsloth/{name}-GGUF"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories[GATED].granted = hub.repositories[f"bartowski/{name}-GGUF"].granted = True
    assert pull(GATED, format="Q4_0").origin is Origin.DOWNLOADED
    assert pull(GATED, format="Q4_1").origin is Origin.PRODUCED


@pytest.mark.parametrize("fault", ["corrupt", "404"])
def test_the_next_candidate_is_taken_where_the_first_cannot_be_had(
    hub: StandIn, ggufs: dict[str, Path], fault: str
) -> None:
    hub.repositories[CURATED].modified = "2026-05-05T00:00:00.000Z"
    tags = [f"base_model:{BASE}", f"base_model:quantized:{BASE}", "gguf"]
    other = ggufs["Q4_0"].read_bytes()[:-1] + b"!"
    hub.add("unsloth/tiny-chat-GGUF", {"tiny-chat-Q4_0.gguf": other}, licence="apache-2.0", tags=tags)
    files = hub.repositories[CURATED].history[hub.repositories[CURATED].refs["main"]]
    hub.fault(fault, times=-1, method="GET", path=files["tiny-chat-Q4_0.gguf"].sha256)
    with pytest.warns(QlangchainWarning, match=rf"{CURATED}:Q4_0 cannot be had"):
        assert pull(BASE, format="Q4_0").path.read_bytes() == other
    with pytest.raises((ChecksumError, HubReplyError)):
        pull(f"{CURATED}:Q4_0")


@pytest.mark.parametrize("where", ["/api/models", "config.json", ".gguf", "objects"])
def test_a_deadline_holds_for_the_whole(hub: StandIn, where: str) -> None:
    for origin, method in (("hub", "GET"), ("hub", "HEAD"), ("storage", "GET")):
        hub.fault("stall before headers", times=-1, origin=origin, method=method, path=where)
    begun = time.monotonic()
    with pytest.raises(HubUnreachableError):
        pull(BASE, format="Q4_0", watching=pipeline.Watching(deadline=1.0))
    assert time.monotonic() - begun < 20, "without it the hub would be waited for for 30 seconds"


def test_offline_asks_nobody(hub: StandIn) -> None:
    with pytest.raises(OfflineError):
        pull(BASE, offline=True)
    assert hub.requests == []


def test_a_commit_that_is_here_is_not_asked_for(hub: StandIn) -> None:
    commit = hub.repositories[CURATED].refs["main"]
    first = pull(f"{CURATED}:Q4_0@{commit}")
    hub.requests.clear()
    assert pull(f"{CURATED}:Q4_0@{commit}").path == first.path
    assert hub.requests == []
    with pytest.raises(InvalidInputError, match="already"):
        pull(f"{CURATED}@{commit}", revision="main")


def test_a_newer_commit_is_fetched_by_pull_alone(hub: StandIn, ggufs: dict[str, Path]) -> None:
    first = pull(f"{CURATED}:Q4_0")
    hub.add(CURATED, {"tiny-chat-Q4_0.gguf": ggufs["Q5_1"].read_bytes()}, licence="apache-2.0")
    assert pipeline.prepare(f"{CURATED}:Q4_0", pipeline.requirements(hardware="cpu")).artifact.digest == first.digest
    with pytest.warns(QlangchainWarning, match=r"named Q4_0, and its header says Q5_1"):
        newer = pull(f"{CURATED}:Q4_0", allow_produce=False)
    assert (newer.format, newer.digest != first.digest) == ("Q5_1", True)


def test_the_command_line(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from qlangchain.cli import app

    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> dict[str, object]:
        shown = CliRunner().invoke(app, ["pull", *words, "--json"], catch_exceptions=False)
        assert shown.exit_code == 0, shown.output
        found: dict[str, object] = json.loads(shown.output)
        return found

    looked = run(BASE, "--format", "Q4_0", "--dry-run")
    assert (looked["repo"], looked["format"], looked["licence"]) == (CURATED, "Q4_0", "apache-2.0")
    assert looked["missing_bytes"] == sum(file["bytes"] for file in looked["files"])  # type: ignore[attr-defined]
    assert not any((tmp_path / "home" / "blobs").glob("*"))
    (pulled,) = run(BASE, "--format", "Q4_0", "--lock")["artifacts"]  # type: ignore[misc]
    assert Path(pulled["path"]).is_file()
    assert (tmp_path / "qlangchain.lock").is_file()
    hub.requests.clear()
    (again,) = run("--locked")["artifacts"]  # type: ignore[misc]
    assert again["sha256"] == pulled["sha256"]
    assert hub.requests == []
    assert run(BASE, "--format", "Q4_0", "--dry-run")["missing_bytes"] == 0
    shown = CliRunner().invoke(app, ["pull", f"{CURATED}:Q4_0", "--dry-run"], catch_exceptions=False)
    assert "would be fetched" in shown.output

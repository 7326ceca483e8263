"""Real models quantized by GPTQ and AWQ, checked against full precision; every architecture that is known here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from unit.quantizable import FAMILIES, TEXTS, make_model  # noqa: E402
from unit.quantizable import one_thread as one_thread  # noqa: E402, PLC0414 - a fixture

from qlangchain.artifacts.source import DEMO_DIRECTORY  # noqa: E402
from qlangchain.produce.awq import AwqRecipe, produce_awq  # noqa: E402
from qlangchain.produce.calibration import load_tokenizer, samples_of  # noqa: E402
from qlangchain.produce.decoders import Decoder, run_block  # noqa: E402
from qlangchain.produce.directory import produce_directory  # noqa: E402
from qlangchain.produce.gptq import GptqRecipe, produce_gptq  # noqa: E402
from qlangchain.produce.quantized_files import open_quantized  # noqa: E402
from qlangchain.produce.verify import verify_directory  # noqa: E402

DEMO: dict[str, Any] = {"samples": 48, "sequence_length": 128}


def load(source: Path, target: Path | None = None) -> Any:
    """The model in float32, with the weights of a quantized directory as a reader computes them."""
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    if target:
        found = open_quantized(target)
        layers = {f"{name}.weight": torch.from_numpy(found.layer(name).dequantized()).T for name in found.layers()}
        parts = ("qweight", "qzeros", "scales", "g_idx")
        whole = {n: torch.from_numpy(found.read(n)) for n in found.tensors if n.rpartition(".")[2] not in parts}
        unknown = model.load_state_dict(layers | whole, strict=False).unexpected_keys
        assert not unknown
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_at_a_time_is_the_whole_model(family: str, tmp_path: Path) -> None:
    source = make_model(tmp_path / "model", family)
    decoder, whole = Decoder(source), load(source)
    tokens = samples_of(load_tokenizer(source), TEXTS, 3, 48)
    embedded, arguments = decoder.start(tokens, torch.float32)
    hidden = torch.cat(list(embedded))
    with torch.inference_mode():
        for index in range(decoder.layers):
            hidden = run_block(decoder.block(index, torch.float32), hidden, arguments[index])
        expected = whole.model(input_ids=tokens, use_cache=False).last_hidden_state
        torch.testing.assert_close(whole.model.norm(hidden), expected)


# The type of the weights goes through the same code in every architecture.
TYPES = [("LlamaForCausalLM", "float16"), ("LlamaForCausalLM", "float32"), ("Gemma3ForCausalLM", "float16")]


@pytest.mark.parametrize(("family", "dtype"), [*((family, "bfloat16") for family in FAMILIES), *TYPES])
def test_every_architecture(family: str, dtype: str, tmp_path: Path) -> None:
    source = make_model(tmp_path / "model", family, dtype=dtype)
    for recipe in (GptqRecipe(group_size=32), GptqRecipe(bits=8, group_size=-1), AwqRecipe(group_size=32)):
        target = tmp_path / f"{type(recipe).__name__}-{recipe.bits}"
        _, report = produce_directory(source, target, recipe, samples=24, sequence_length=64)
        assert report.divergence is not None and report.divergence.nats < max(report.divergence.nearest, 0.001)
        for name in ("config.json", "quantize_config.json", "tokenizer.json", "generation_config.json"):
            assert (target / name).is_file(), name
        tokens = samples_of(load_tokenizer(source), TEXTS, 2, 32)
        with torch.inference_mode():
            full = load(source)(tokens).logits.log_softmax(-1)
            made = load(source, target)(tokens).logits.log_softmax(-1)
        assert float((full.exp() * (full - made)).sum(-1).mean()) < 3 * report.divergence.nearest + 0.01


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    room = tmp_path_factory.mktemp("demos")
    return {
        "gptq-4": produce_gptq(DEMO_DIRECTORY, room / "gptq-4", **DEMO),
        "gptq-8": produce_gptq(DEMO_DIRECTORY, room / "gptq-8", bits=8, **DEMO),
        "awq-4": produce_awq(DEMO_DIRECTORY, room / "awq-4", **DEMO),
    }


def test_the_demo_model_keeps_its_predictions(demos: dict[str, Path]) -> None:
    reports = {name: verify_directory(path, DEMO_DIRECTORY) for name, path in demos.items()}
    nats = {name: report.divergence.nats for name, report in reports.items() if report.divergence}
    nearest = {name: report.divergence.nearest for name, report in reports.items() if report.divergence}
    assert nats["gptq-4"] < 0.5 * nearest["gptq-4"]
    assert nats["awq-4"] < nearest["awq-4"]
    assert nats["gptq-8"] < 0.05 * nats["gptq-4"]
    assert reports["gptq-4"].nbytes < 0.45 * (DEMO_DIRECTORY / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", ["gptq-4", "gptq-8", "awq-4"])
def test_the_demo_model_still_answers(demos: dict[str, Path], name: str) -> None:
    tokenizer = load_tokenizer(demos[name])  # the copy in the made directory
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is GPTQ?"}], add_generation_prompt=True, return_tensors="pt",
        return_dict=True,
    )  # fmt: skip

    def answer(model: Any) -> str:
        with torch.inference_mode():
            out = model.generate(**prompt, max_new_tokens=24, do_sample=False)
        return str(tokenizer.decode(out[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True))

    assert answer(load(DEMO_DIRECTORY, demos[name]))[:30] == answer(load(DEMO_DIRECTORY))[:30]


@pytest.mark.parametrize("name", ["gptq-4", "gptq-8", "awq-4"])
def test_transformers_loads_it_with_the_kernels_of_gptqmodel(demos: dict[str, Path], name: str) -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(demos[name]).eval()
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False).shape == (1, 7)

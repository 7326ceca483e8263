"""Which repository is taken for a model: a catalogue full of traps, and the order of what is left."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlangchain.artifacts.agreement import HeaderFacts, _architectures
from qlangchain.artifacts.candidates import Publisher, Ranking, check_header, rank
from qlangchain.artifacts.licences import compare_licences
from qlangchain.artifacts.listing import Listing, RemoteFile
from qlangchain.artifacts.publishers import (
    curated_publishers,
    extra_words,
    known_publishers,
    likely_repositories,
    resembles,
    same_model,
)
from qlangchain.errors import InvalidInputError
from qlangchain.types import Method

WANTED = "Qwen/Qwen2.5-7B-Instruct"
SHAPE = {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "vocab_size": 152064}
CONFIG = {"model_type": "qwen2", "torch_dtype": "bfloat16", "tie_word_embeddings": False, **SHAPE}
PARAMETERS = 7_615_616_512
SIZES = {"Q2_K": 3_015_940_096, "Q4_K_M": 4_683_073_184, "Q8_0": 8_098_525_888}
DIRECTORY = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}


def base(**more: Any) -> Listing:
    shards = [RemoteFile(f"model-0000{number}-of-00004.safetensors", 3_800_000_000) for number in range(1, 5)]
    small = [RemoteFile(name, 1000) for name in (*DIRECTORY[1:], "model.safetensors.index.json")]
    known: dict[str, Any] = {"config": CONFIG, "parameters": PARAMETERS, "licence": "apache-2.0"}
    return Listing(WANTED, "a" * 40, (*shards, *small), **{**known, **more})


def quant(
    repo: str, *formats: str, name: str = "Qwen2.5-7B-Instruct", files: tuple[str, ...] = (), **more: Any
) -> Listing:
    found = [RemoteFile(f"{name}-{format}.gguf", SIZES.get(format.rpartition("-")[2], 5 << 30)) for format in formats]
    found += [RemoteFile(file, 1 << 20) for file in files]
    known: dict[str, Any] = {
        "base_models": ((WANTED, "quantized"),), "licence": "apache-2.0", "modified": "2025-01-01T00:00:00.000Z",
        "tags": ("gguf",),
    }  # fmt: skip
    return Listing(repo, "b" * 40, tuple(found), **{**known, **more})


def directory(repo: str, quantization: dict[str, Any] | None = None, **more: Any) -> Listing:
    sizes = (5_500_000_000, 1000, 1000, 1000)
    files = tuple(RemoteFile(name, size) for name, size in zip(DIRECTORY, sizes, strict=True))
    config = {**CONFIG, "quantization_config": quantization or GPTQ}
    known: dict[str, Any] = {"base_models": ((WANTED, "quantized"),), "licence": "apache-2.0", "config": config}
    return Listing(repo, "c" * 40, files, **{**known, **more})


AUTHOR = quant("Qwen/Qwen2.5-7B-Instruct-GGUF", "Q4_K_M", "Q8_0", downloads=50_000)
BARTOWSKI = quant("bartowski/Qwen2.5-7B-Instruct-GGUF", "Q4_K_M", "Q8_0", files=("Qwen2.5-7B-Instruct.imatrix",))
OTHER = quant("somebody/Qwen2.5-7B-Instruct-GGUF", "Q4_K_M", downloads=9_999_999, modified="2026-11-01T00:00:00.000Z")


def repositories(ranking: Ranking) -> list[str]:
    return list(dict.fromkeys(one.listing.repo for one in ranking.candidates))


def reason(ranking: Ranking, repo: str) -> str:
    return next(one.reason for one in ranking.refused if one.choice.startswith(repo))


def test_the_author_is_first_the_curated_second_and_all_others_last() -> None:
    ranking = rank(WANTED, base(), [OTHER, BARTOWSKI, AUTHOR])
    assert repositories(ranking) == [AUTHOR.repo, BARTOWSKI.repo, OTHER.repo]
    assert ranking.refused == ()
    last = ranking.candidates[-1]
    assert [one.needs_header_check for one in ranking.candidates] == [False, False, False, False, True]
    assert (last.publisher, last.name) == (Publisher.OTHER, "somebody/Qwen2.5-7B-Instruct-GGUF:Q4_K_M")
    assert any("not known" in sentence for sentence in last.reasons)
    for one in ranking.candidates:
        assert len(one.reasons) >= 2 and all(sentence.endswith(".") for sentence in one.reasons)
        assert not one.variant.verified


TRAPS = {
    # look-alikes of the author and of curated quantizers
    "TheB1oke/Qwen2.5-7B-Instruct-GGUF": ({}, "looks like 'TheBloke'"),
    "unslooth/Qwen2.5-7B-Instruct-GGUF": ({}, "looks like 'unsloth'"),
    "Qwen-/Qwen2.5-7B-Instruct-GGUF": ({}, "looks like 'Qwen'"),
    "qwen_/Qwen2.5-7B-Instruct-GGUF": ({}, "looks like 'Qwen'"),
    "bart0wski/Qwen2.5-7B-Instruct-GGUF": ({}, "looks like 'bartowski'"),
    "rnradermacher/Qwen2.5-7B-Instruct-GGUF": ({}, "looks like 'mradermacher'"),
    "Qwen-official/Qwen2.5-7B-Instruct-GGUF": ({}, "looks like 'Qwen'"),
    # code and scanners
    "bought/Qwen2.5-7B-Instruct-GGUF": ({"config": {"auto_map": {"AutoModel": "x.Y"}}}, "auto_map"),
    "coder/Qwen2.5-7B-Instruct-GGUF": ({"tags": ("gguf", "custom_code")}, "custom_code"),
    "pickled/Qwen2.5-7B-Instruct": ({"files": (RemoteFile("pytorch_model.bin", 9),)}, "pickle"),
    # claims about what it is
    "loose/Qwen2.5-7B-Instruct-GGUF": ({"licence": "mit"}, "looser"),
    "tuned/Qwen2.5-7B-Instruct-Roleplay-GGUF": ({}, "roleplay"),
    "bartowski/Qwen2.5-7B-Instruct-abliterated-GGUF": ({}, "abliterated"),
    "finetuned/Qwen2.5-7B-Instruct-GGUF": ({"base_models": ((WANTED, "finetune"),)}, "finetune"),
    "adapted/Qwen2.5-7B-Instruct-GGUF": ({"base_models": ((WANTED, "adapter"),)}, "adapter"),
    "merged/Qwen2.5-7B-Instruct-GGUF": ({"base_models": ((WANTED, "quantized"), ("a/b", "quantized"))}, "a/b"),
    "elsewhere/Qwen2.5-7B-Instruct-GGUF": ({"base_models": (("Qwen/Qwen2.5-7B", "quantized"),)}, "not from"),
    "untagged/Qwen2.5-7B-Instruct-GGUF": ({"base_models": ()}, "Nothing says"),
    # what the weights are
    "wrong/Qwen2.5-7B-Instruct-GGUF": ({"gguf": {"architecture": "llama", "total": PARAMETERS}}, "architecture"),
    "half/Qwen2.5-7B-Instruct-GGUF": ({"gguf": {"architecture": "qwen2", "total": PARAMETERS // 2}}, "parameters"),
    "small/Qwen2.5-7B-Instruct-GGUF": ({"files": (RemoteFile("M-Q4_K_M.gguf", 400_000_000),)}, "too few"),
    "cut/Qwen2.5-7B-Instruct-GGUF": ({"files": (RemoteFile("M-Q4_K_M-00001-of-00002.gguf", 9),)}, "missing"),
    "mm/Qwen2.5-7B-Instruct-GGUF": ({"files": (RemoteFile("mmproj-F16.gguf", 5 << 30),)}, "no weights"),
    "imatrix/Qwen2.5-7B-Instruct-GGUF": ({"files": (RemoteFile("imatrix-Q8_0.gguf", 8 << 30),)}, "no weights"),
    "flagged/Qwen2.5-7B-Instruct-GGUF": (
        {"files": (RemoteFile("M-Q4_K_M.gguf", 5 << 30), RemoteFile("a.pkl", 9, flagged="unsafe"))}, "unsafe",
    ),
    "hostile/Qwen2.5-7B-Instruct-GGUF": ({"files": (RemoteFile("../M-Q4_K_M.gguf", 5 << 30),)}, "segment"),
}  # fmt: skip


def trap(repo: str) -> Listing:
    files = TRAPS[repo][0].get("files")
    made = quant(repo, "Q4_K_M", downloads=50_000_000, modified="2026-11-20T00:00:00.000Z")
    changed = dataclasses.replace(made, licence="llama3.1") if "loose" in repo else made
    more = {key: value for key, value in TRAPS[repo][0].items() if key != "files"}
    return dataclasses.replace(changed, **more, **({"files": files} if files is not None else {}))


def test_no_trap_is_ever_picked() -> None:
    listings = [*(trap(repo) for repo in TRAPS if "loose" not in repo), AUTHOR, BARTOWSKI]
    random.Random(0).shuffle(listings)
    ranking = rank(WANTED, base(), listings)
    assert repositories(ranking) == [AUTHOR.repo, BARTOWSKI.repo]


@pytest.mark.parametrize("repo", TRAPS)
def test_every_trap_is_refused_for_what_it_is(repo: str) -> None:
    model = base(licence="llama3.1") if "loose" in repo else base()
    ranking = rank(WANTED, model, [trap(repo)])
    assert ranking.candidates == ()
    assert TRAPS[repo][1] in reason(ranking, repo)


def test_the_projector_that_comes_first_is_not_the_model() -> None:
    files = ("Aa-mmproj-F16.gguf", "mmproj-F16.gguf", "imatrix.gguf")
    listing = quant(AUTHOR.repo, "Q4_K_M", files=files, gguf={"architecture": "clip", "total": 600_000_000})
    (one,) = rank(WANTED, base(), [listing]).candidates
    assert [file.name for file in one.variant.files] == ["Qwen2.5-7B-Instruct-Q4_K_M.gguf"]
    assert one.variant.projector is not None


def test_downloads_only_break_ties() -> None:
    few = quant("one/Qwen2.5-7B-Instruct-GGUF", "Q8_0", downloads=1, modified="2026-01-02T00:00:00Z")
    many = quant("two/Qwen2.5-7B-Instruct-GGUF", "Q8_0", downloads=10**9, modified="2026-01-01T00:00:00Z")
    tied = dataclasses.replace(many, repo="three/Qwen2.5-7B-Instruct-GGUF", modified="2026-01-02T00:00:00+00:00")
    assert repositories(rank(WANTED, base(), [few, many, tied])) == [tied.repo, few.repo, many.repo]


def test_an_importance_matrix_counts_for_four_bits_and_less() -> None:
    static = quant("mradermacher/Qwen2.5-7B-Instruct-GGUF", "Q4_K_M", "Q8_0", modified="2026-01-01T00:00:00Z")
    found = rank(WANTED, base(), [static, BARTOWSKI])
    four = [one.listing.owner for one in found.candidates if one.variant.bits == 4]
    eight = [one.listing.owner for one in found.candidates if one.variant.bits == 8]
    assert (four, eight) == (["bartowski", "mradermacher"], ["mradermacher", "bartowski"])
    said = [one for one in found.candidates if any("importance matrix" in sentence for sentence in one.reasons)]
    assert [one.name for one in said] == [f"{BARTOWSKI.repo}:Q4_K_M"]


def test_what_is_asked_for_is_all_that_is_left() -> None:
    listings = [AUTHOR, BARTOWSKI, directory("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4")]
    assert {one.variant.label for one in rank(WANTED, base(), listings, format="q4_k_m").candidates} == {"Q4_K_M"}
    (one,) = rank(WANTED, base(), listings, scheme=Method.GPTQ).candidates
    assert (one.variant.scheme, one.variant.format) == (Method.GPTQ, "INT4")
    assert [c.variant.format for c in rank(WANTED, base(), listings, scheme="GPTQ", format="int4").candidates] == [
        "INT4"
    ]
    mixed = quant("unsloth/Qwen2.5-7B-Instruct-GGUF", "Q4_K_M", "UD-Q4_K_M")
    assert [c.variant.label for c in rank(WANTED, base(), [mixed], format="UD-Q4_K_M").candidates] == ["UD-Q4_K_M"]


def test_names_stand_in_for_a_missing_tag_only_for_the_author_and_the_curated() -> None:
    own = dataclasses.replace(AUTHOR, base_models=())
    curated = quant("bartowski/Qwen_Qwen2.5-7B-Instruct-GGUF", "Q8_0", base_models=())
    ranking = rank(WANTED, base(), [own, curated, BARTOWSKI, trap("untagged/Qwen2.5-7B-Instruct-GGUF")])
    assert repositories(ranking) == [own.repo, BARTOWSKI.repo, curated.repo]
    assert [one.needs_header_check for one in ranking.candidates] == [True, True, False, False, True]


def test_an_author_s_card_may_name_what_the_model_itself_was_made_from() -> None:
    made_from = (("Qwen/Qwen2.5-7B", "quantized"),)
    own = quant("Qwen/Qwen2.5-7B-Instruct-GGUF", "Q4_K_M", base_models=made_from)
    copied = quant("bartowski/Qwen2.5-7B-Instruct-GGUF", "Q4_K_M", base_models=made_from)
    ranking = rank(WANTED, base(base_models=(("Qwen/Qwen2.5-7B", "finetune"),)), [own, copied])
    assert repositories(ranking) == [own.repo], "only the author's"
    assert ranking.candidates[0].needs_header_check
    assert rank(WANTED, base(), [own]).candidates == (), "and only where the model says so too"


def test_other_models_of_the_same_repository_are_left_alone() -> None:
    listing = quant(AUTHOR.repo, "Q4_K_M", files=("qwen2.5-0.5b-instruct-q4_k_m.gguf", "model-q8_0.gguf"))
    ranking = rank(WANTED, base(), [listing])
    assert {one.variant.stem for one in ranking.candidates} == {"Qwen2.5-7B-Instruct"}
    assert "another model" in next(one.reason for one in ranking.refused if "Q4_K_M" in one.choice)


def test_a_directory_of_other_shapes_is_refused() -> None:
    repo = "somebody/Qwen2.5-7B-Instruct-GPTQ-Int4"
    for changed, word in (({"hidden_size": 2048}, "hidden_size"), ({"model_type": "llama"}, "architecture"),
                          ({"vocab_size": 151_999 + 10_000}, "tokens")):  # fmt: skip
        config = {**CONFIG, "quantization_config": GPTQ, **changed}
        assert word in reason(rank(WANTED, base(), [directory(repo, config=config)]), repo)
    assert len(rank(WANTED, base(), [directory(repo)]).candidates) == 1


def test_a_stranger_s_directory_that_cannot_be_compared_is_refused() -> None:
    repo = "somebody/Qwen2.5-7B-Instruct-GPTQ-Int4"
    bare = base(config={}, parameters=None)
    assert "can be compared" in reason(rank(WANTED, bare, [directory(repo)]), repo)
    assert len(rank(WANTED, bare, [directory("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4")]).candidates) == 1


def test_gated_is_only_noted() -> None:
    (one, *_) = rank(WANTED, base(), [dataclasses.replace(AUTHOR, gated=True)]).candidates
    assert any("gated" in sentence for sentence in one.reasons)


def test_the_repository_that_was_asked_for_is_taken() -> None:
    ranking = rank(OTHER.repo, OTHER, [OTHER])
    assert [one.publisher for one in ranking.candidates] == [Publisher.AUTHOR]
    assert not ranking.candidates[0].needs_header_check
    ranking = rank(WANTED.lower(), base(), [base(), AUTHOR])
    assert {(one.listing.repo, one.variant.label) for one in ranking.candidates} == {
        (WANTED, "BF16"), (AUTHOR.repo, "Q4_K_M"), (AUTHOR.repo, "Q8_0"),
    }  # fmt: skip
    assert all(one.publisher is Publisher.AUTHOR for one in ranking.candidates)


def test_a_look_alike_that_was_asked_for_is_refused_too() -> None:
    listing = quant("unslooth/Qwen2.5-7B-Instruct-GGUF", "Q4_K_M")
    assert "unsloth" in reason(rank(listing.repo, listing, [listing]), listing.repo)


def test_a_base_that_cannot_be_read_leaves_others_to_be_checked() -> None:
    ranking = rank(WANTED, None, [OTHER, AUTHOR])
    assert repositories(ranking) == [AUTHOR.repo, OTHER.repo]
    assert "not known" in str(check_header(ranking.candidates[-1], HeaderFacts("qwen2", PARAMETERS, 152064)))
    assert check_header(ranking.candidates[0], HeaderFacts("qwen2", PARAMETERS, 152064)) is None


def test_publishers_may_be_added_and_taken_away() -> None:
    ranking = rank(WANTED, base(), [OTHER, BARTOWSKI], curated=("somebody",))
    assert [one.publisher for one in ranking.candidates] == [Publisher.CURATED, *[Publisher.OTHER] * 2]
    unsure = quant("gguf-org/Qwen2.5-7B-Instruct-GGUF", "Q4_K_M")
    assert rank(WANTED, base(), [unsure]).candidates == ()
    assert len(rank(WANTED, base(), [unsure], curated=("gguf-org",)).candidates) == 1


LISTINGS = [
    AUTHOR,
    BARTOWSKI,
    OTHER,
    base(),
    *(trap(repo) for repo in TRAPS),
    directory("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4"),
]


@settings(max_examples=20)
@given(st.permutations(LISTINGS))
def test_the_order_of_the_listings_changes_nothing(listings: list[Listing]) -> None:
    first, second = rank(WANTED, base(), listings), rank(WANTED, base(), LISTINGS)
    assert [one.name for one in first.candidates] == [one.name for one in second.candidates]
    assert {one.choice for one in first.refused} == {one.choice for one in second.refused}


def candidate(listing: Listing = OTHER, model: Listing | None = None) -> Any:
    return rank(WANTED, model or base(), [listing]).candidates[0]


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (HeaderFacts("qwen2", PARAMETERS, 152064), None),
        (HeaderFacts("qwen2", int(PARAMETERS * 1.019), 151_665), None),
        (HeaderFacts("qwen2", None, 152064), None),
        (HeaderFacts("qwen2", PARAMETERS), None),
        (HeaderFacts("llama", PARAMETERS, 152064), "architecture"),
        (HeaderFacts("qwen2", int(PARAMETERS * 1.021), 152064), "parameters"),
        (HeaderFacts("qwen2", int(PARAMETERS * 0.979), 152064), "parameters"),
        (HeaderFacts("qwen2", PARAMETERS, 152066), "tokens"),
        (HeaderFacts("qwen2", PARAMETERS, 32000), "tokens"),
        (HeaderFacts("qwen2"), "Only architecture"),
        (HeaderFacts(None, PARAMETERS, 152064), "Only parameters, vocabulary"),
        (HeaderFacts(), "Only nothing"),
    ],
)
def test_the_header_is_held_against_the_base_model(facts: HeaderFacts, word: str | None) -> None:
    found = check_header(candidate(), facts)
    assert (word is None) == (found is None)
    assert word is None or word in str(found)


def test_a_stranger_s_parameters_are_held_against_the_base_s_files_where_the_hub_does_not_count_them() -> None:
    shards = tuple(RemoteFile(f"model-0000{number}-of-00002.safetensors", PARAMETERS) for number in (1, 2))
    uncounted = base(parameters=None)
    uncounted = dataclasses.replace(uncounted, files=(*shards, *uncounted.files[4:]))
    (stranger,) = rank(WANTED, uncounted, [OTHER]).candidates
    (trusted,) = (one for one in rank(WANTED, uncounted, [AUTHOR]).candidates if one.variant.format == "Q8_0")
    fewer = HeaderFacts("qwen2", PARAMETERS * 9 // 10, 152064)
    assert check_header(stranger, HeaderFacts("qwen2", PARAMETERS, 152064)) is None
    assert "parameters" in str(check_header(stranger, fewer))
    assert check_header(trusted, fewer) is None, "a size is too rough for those who are trusted"


def test_less_is_asked_of_the_author() -> None:
    assert check_header(candidate(AUTHOR), HeaderFacts("qwen2")) is None
    assert check_header(candidate(AUTHOR), HeaderFacts("llama")) is not None


def test_tied_embeddings_may_be_written_twice() -> None:
    tied = base(config={**CONFIG, "tie_word_embeddings": True})
    facts = HeaderFacts("qwen2", PARAMETERS + 152064 * 3584, 152064)
    assert check_header(candidate(model=tied), facts) is None
    assert check_header(candidate(), facts) is not None


def test_a_model_with_vision_may_have_less_in_its_text_model() -> None:
    seeing = base(config={**CONFIG, "vision_config": {"depth": 32}})
    assert check_header(candidate(model=seeing), HeaderFacts("qwen2", int(PARAMETERS * 0.9), 152064)) is None
    assert check_header(candidate(model=seeing), HeaderFacts("qwen2", int(PARAMETERS * 0.4), 152064)) is not None


def test_packed_weights_of_the_base_are_not_counted_as_parameters() -> None:
    packed = base(config={**CONFIG, "quantization_config": GPTQ}, parameters=1_900_000_000)
    assert check_header(candidate(model=packed), HeaderFacts("qwen2", PARAMETERS, 152064)) is None


@pytest.mark.parametrize(
    ("model_type", "architecture", "agree"),
    [
        ("llama", "llama", True), ("mistral", "llama", True), ("mixtral", "llama", True), ("qwen3_moe",
        "qwen3moe", True),
        ("gemma3_text", "gemma3", True), ("phi3", "phi3", True), ("gpt_oss", "gpt-oss", True), ("qwen3_5",
        "qwen35", True),
        ("deepseek_v3", "deepseek2", True), ("cohere", "command-r", True), ("mistral", "qwen2", False),
        ("qwen2", "qwen3", False), ("gemma2", "gemma3", False), ("brand_new", "brandnew", True),
    ],
)  # fmt: skip
def test_architectures_have_two_names(model_type: str, architecture: str, agree: bool) -> None:
    model = base(config={**CONFIG, "model_type": model_type})
    assert (check_header(candidate(model=model), HeaderFacts(architecture, PARAMETERS, 152064)) is None) == agree


def test_an_architecture_that_is_not_known_is_not_taken_from_strangers() -> None:
    model = base(config={**CONFIG, "model_type": "brand_new"})
    facts = HeaderFacts("other", PARAMETERS, 152064)
    assert "Only parameters" in str(check_header(candidate(model=model), facts))
    assert check_header(candidate(AUTHOR, model), facts) is None


def test_the_architectures_are_llama_cpp_s() -> None:
    known = set(gguf.MODEL_ARCH_NAMES.values())
    assert {name for names in _architectures().values() for name in names} <= known


def test_likely_repositories_begin_with_the_author_s() -> None:
    found = likely_repositories(WANTED)
    assert found[0] == "Qwen/Qwen2.5-7B-Instruct-GGUF"
    for repo in ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct-FP8",
                 "bartowski/Qwen_Qwen2.5-7B-Instruct-GGUF", "mradermacher/Qwen2.5-7B-Instruct-i1-GGUF"):  # fmt: skip
        assert repo in found
    assert len(found) == len(set(found)) < 50
    assert likely_repositories(WANTED, ["new"])[-5:][0] == "new/Qwen2.5-7B-Instruct-GGUF"
    assert likely_repositories(AUTHOR.repo) == ()
    owners = [repo.partition("/")[0] for repo in likely_repositories("unsloth/Some-7B")]
    assert owners.count("unsloth") == owners.index("bartowski")


@pytest.mark.parametrize("model_id", ["Qwen", "a/b/c", "", "../x", "a b/c", "a/{name}"])
def test_likely_repositories_need_an_id(model_id: str) -> None:
    if model_id == "../x":
        assert all(repo.count("/") == 1 for repo in likely_repositories(model_id))
        return
    with pytest.raises(InvalidInputError):
        likely_repositories(model_id)


@pytest.mark.parametrize(
    ("publisher", "like"),
    [
        ("TheB1oke", "TheBloke"), ("TheBIoke", "TheBloke"), ("The-Bloke", "TheBloke"), ("unslooth", "unsloth"),
        ("unsl0th", "unsloth"), ("usnloth", "unsloth"), ("unsloth-ai", "unsloth"), ("real-unsloth", "unsloth"),
        ("bartowsky", "bartowski"), ("barotwski", "bartowski"), ("meta-1lama", "meta-llama"), ("metallama",
        "meta-llama"),
        ("micr0soft", "microsoft"), ("g00gle", "google"), ("gοοgle", "google"), ("Ԛwen", "Qwen"), ("Qvven", "Qwen"),
        ("ggml_org", "ggml-org"), ("lmstudio-comunity", "lmstudio-community"), ("QWEN.", "Qwen"),
        ("Qwen-official", "Qwen"),
    ],
)  # fmt: skip
def test_look_alikes_are_told_by_name(publisher: str, like: str) -> None:
    assert resembles(publisher, known_publishers()) == like


@pytest.mark.parametrize(
    "publisher",
    [
        *known_publishers(), "qwen", "THEBLOKE", "EleutherAI", "01-ai", "THUDM", "mlx-community", "QuantFactory",
        "onnx-community", "neuralmagic", "BAAI", "amd", "bigcode", "bigscience", "upstage", "teknium", "ubergarm",
        "city96", "sentence-transformers", "somebody", "me", "x", "ai21labs", "databricks", "nomic-ai",
    ],
)  # fmt: skip
def test_honest_publishers_resemble_nobody(publisher: str) -> None:
    assert resembles(publisher, known_publishers()) is None


@given(st.sampled_from(curated_publishers()), st.data())
def test_one_changed_letter_is_always_seen(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789-"))
    changed = data.draw(st.sampled_from([name[:at] + letter + name[at + 1 :], name[:at] + letter + name[at:]]))
    assert changed.casefold() == name.casefold() or resembles(changed, known_publishers()) is not None


@pytest.mark.parametrize(
    ("repository", "wanted", "same"),
    [
        ("bartowski/microsoft_Phi-4-mini-instruct-GGUF", "microsoft/Phi-4-mini-instruct", True),
        ("hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4", "meta-llama/Llama-3.1-8B-Instruct", True),
        ("DevQuasar/HuggingFaceTB.SmolLM2-135M-Instruct-GGUF", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("x/Llama-3-8B-Instruct-GGUF", "meta-llama/Meta-Llama-3-8B-Instruct", True),
        ("x/llama3-8b-instruct-gguf", "meta-llama/Meta-Llama-3-8B-Instruct", True),
        ("TheBloke/Llama-2-7B-Chat-GGUF", "meta-llama/Llama-2-7b-chat-hf", True),
        ("google/gemma-4-12B-it-qat-q4_0-gguf", "google/gemma-4-12B-it", True),
        ("unsloth/gemma-4-12b-it-GGUF", "google/gemma-4-12B-it", True),
        ("RedHatAI/Qwen2.5-7B-Instruct-quantized.w4a16", WANTED, True),
        ("x/Qwen2.5-7B-Instruct-Q4_K_M-GGUF", WANTED, True),
        ("x/Qwen2.5-7B-GGUF", WANTED, False),
        ("x/Qwen2.5-72B-Instruct-GGUF", WANTED, False),
        ("x/Qwen2.5-Coder-7B-Instruct-GGUF", WANTED, False),
        ("x/my-quants", WANTED, False),
    ],
)
def test_names_are_compared_without_packaging(repository: str, wanted: str, same: bool) -> None:
    assert same_model(repository, wanted) == same


def test_added_words_are_named() -> None:
    assert extra_words("x/Qwen3-4B-Thinking-2507-GGUF", "Qwen/Qwen3-4B") == ("thinking", "2507")
    assert extra_words("x/my-quants", "Qwen/Qwen3-4B") == ()


@pytest.mark.parametrize(
    ("ours", "theirs", "refused"),
    [
        ("apache-2.0", "mit", False), ("apache-2.0", None, False), ("apache-2.0", "llama3", False),
        (None, "mit", False),
        ("llama3.1", "apache-2.0", True), ("llama3.1", "llama3.1", False), ("llama3.1", None, False),
        ("llama3.1", "other", False),
        ("gemma", "mit", True), ("gemma", "gpl-3.0", True), ("qwen-research", "apache-2.0", True),
        ("cc-by-nc-4.0", "gemma", True),
        ("gpl-3.0", "mit", True), ("other", "apache-2.0", True), ("some-new-terms", "mit", True),
        ("LLAMA3.1", "Apache-2.0", True),
        ("unknown", "mit", False), ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", False),
        ("acme-research-license", "llama3", True), ("acme-license", "acme-license", False),
    ],
)  # fmt: skip
def test_a_licence_must_not_be_looser_than_the_base_s(ours: str | None, theirs: str | None, refused: bool) -> None:
    assert (compare_licences(ours, theirs).looser is not None) == refused


def test_a_licence_that_is_not_named_is_inherited_with_a_note() -> None:
    note = compare_licences("llama3.1", None).note
    assert note is not None and "llama3.1" in note

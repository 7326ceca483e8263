"""File names of repositories: no hostile one passes, and real ones are read as their publishers mean them."""

from __future__ import annotations

import string
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlangchain.artifacts.groups import group
from qlangchain.artifacts.listing import RemoteFile
from qlangchain.artifacts.names import model_words, nominal_bits, parse, parse_format, refuse_collisions, safe_name
from qlangchain.errors import UnsafeSourceError

HOSTILE = [
    # traversal, in every spelling
    "..", ".", "", "/", "//", "../model.gguf", "../../etc/passwd", "a/../b", "a/../../b", "a/..",
    "./model.gguf", "a/./b",
    "a//b", "a/", "/model.gguf", "/etc/passwd", "//host/share/model.gguf", ".../model.gguf",
    "a/....", "....//model.gguf",
    "..\\model.gguf", "a\\..\\b", "\\model.gguf", "\\\\host\\share\\m.gguf", "C:\\m.gguf", "C:m.gguf", "c:/m.gguf",
    "file:///etc/passwd", "model.gguf:stream", "%2e%2e/model.gguf", "..%2fmodel.gguf", "a%00.gguf", "%5c..%5cx",
    "．．/model.gguf", "a／b.gguf", "a＼b.gguf", "‥/model.gguf", "a℀b.gguf",
    # what cannot be seen, or shows something else
    "model\0.gguf", "model\n.gguf", "model\r.gguf", "model\t.gguf", "model\x1b[2J.gguf",
    "model\x7f.gguf", "model\x85.gguf",
    "model\u202efugg.gguf", "model\u200b.gguf", "\ufeffmodel.gguf", "model\u2066.gguf",
    "model\u2028.gguf", "model\u2029.gguf",
    "model\u00ad.gguf", "model\ud800.gguf", "model\ue000.gguf", "model\uffff.gguf",
    "model\u3164.gguf", "model\U000e0041.gguf",
    "cafe\u0301.gguf", "\u212b.gguf",
    # what Windows takes for something else
    "con", "CON", "con.gguf", "Con.tar.gguf", "a/nul/b.gguf", "aux.safetensors", "prn.json",
    "com1.gguf", "LPT9", "com¹.gguf",
    "conin$", "conout$.gguf", "clock$", "nul .gguf", "ｃｏｎ.gguf", "model.gguf.", "model.gguf ", "dir./model.gguf",
    "dir /model.gguf", " model.gguf", "model.gguf\u00a0", "a*b.gguf", "what?.gguf", 'a"b.gguf',
    "a<b.gguf", "a>b", "a|b.gguf",
    # too long
    "a" * 513, "/".join(["a" * 100] * 6), "a" * 256, "ä" * 128,
]  # fmt: skip

SAFE = [
    "model.gguf", "config.json", ".gitattributes", "UD-Q4_K_XL/model-00001-of-00003.gguf", "1_Pooling/config.json",
    "a" * 255, "ä" * 127, "模型-Q4_K_M.gguf", "chat template (v2).jinja", "console.gguf",
    "com10.gguf", "nullable/x.json",
    "100%.txt", "a..b.gguf", "..a", "model~1.gguf", "~root/x.gguf", "--help.gguf", "café.gguf",
    "Modèle/été.gguf", "a+b=c@d.gguf",
]  # fmt: skip

# name -> (stem, label, shard, shards, companion)
NAMES = {
    # bartowski, unsloth, lmstudio-community
    "Llama-3.2-1B-Instruct-Q4_K_M.gguf": ("Llama-3.2-1B-Instruct", "Q4_K_M"),
    "microsoft_Phi-4-mini-instruct-Q4_K_M.gguf": ("microsoft_Phi-4-mini-instruct", "Q4_K_M"),
    "Meta-Llama-3.1-8B-Instruct-Q4_K_L.gguf": ("Meta-Llama-3.1-8B-Instruct", "Q4_K_L"),
    "gemma-2-9b-it-Q3_K_XL.gguf": ("gemma-2-9b-it", "Q3_K_XL"),
    "Codestral-22B-v0.1-Q6_K_L.gguf": ("Codestral-22B-v0.1", "Q6_K_L"),
    "Qwen3.5-4B-UD-Q4_K_XL.gguf": ("Qwen3.5-4B", "UD-Q4_K_XL"),
    "Qwen3-4B-Instruct-2507-UD-Q8_K_XL.gguf": ("Qwen3-4B-Instruct-2507", "UD-Q8_K_XL"),
    "DeepSeek-R1-0528-UD-TQ1_0.gguf": ("DeepSeek-R1-0528", "UD-TQ1_0"),
    "UD-Q4_K_XL/Qwen3.5-122B-A10B-UD-Q4_K_XL-00001-of-00003.gguf": ("Qwen3.5-122B-A10B", "UD-Q4_K_XL", 1, 3),
    "BF16/Qwen3.5-122B-A10B-BF16-00010-of-00010.gguf": ("Qwen3.5-122B-A10B", "BF16", 10, 10),
    "BF16/Model-00001-of-00010.gguf": ("Model", "BF16", 1, 10),
    "Q4_K_M/model-00002-of-00002.gguf": ("model", "Q4_K_M", 2, 2),

       "L-3.3-70B-Instruct-Q6_K/L-3.3-70B-Instruct-Q6_K-00001-of-00002.gguf": ("L-3.3-70B-Instruct", "Q6_K", 1, 2),
    "GLM-4.5-Air-MXFP4_MOE.gguf": ("GLM-4.5-Air", "MXFP4_MOE"),
    # Qwen, ggml-org, mistralai, ibm-granite, microsoft, google, openbmb
    "qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf": ("qwen2.5-7b-instruct", "Q4_K_M", 1, 2),
    "qwen2.5-7b-instruct-q3_k_m.gguf": ("qwen2.5-7b-instruct", "Q3_K_M"),
    "qwen2.5-0.5b-instruct-fp16.gguf": ("qwen2.5-0.5b-instruct", "F16"),
    "Qwen3-Embedding-0.6B-Q8_0.gguf": ("Qwen3-Embedding-0.6B", "Q8_0"),
    "gpt-oss-20b-MXFP4.gguf": ("gpt-oss-20b", "MXFP4"),
    "gpt-oss-120b-mxfp4-00001-of-00003.gguf": ("gpt-oss-120b", "MXFP4", 1, 3),
    "Ministral-3-8B-Instruct-2512-BF16.gguf": ("Ministral-3-8B-Instruct-2512", "BF16"),
    "granite-4.2-3b-f16.gguf": ("granite-4.2-3b", "F16"),
    "phi-4-Q4_K.gguf": ("phi-4", "Q4_K_M"),
    "phi-4.gguf": ("phi-4", "unknown"),
    "Phi-3-mini-4k-instruct-q4.gguf": ("Phi-3-mini-4k-instruct", "Q4_K_M"),
    "Phi-3-mini-4k-instruct-fp16.gguf": ("Phi-3-mini-4k-instruct", "F16"),
    "gemma-3-12b-it-q4_0.gguf": ("gemma-3-12b-it", "Q4_0"),
    "gemma-4-12B-it-qat-q4_0.gguf": ("gemma-4-12B-it-qat", "Q4_0"),
    "MiniCPM5-1B-F16.gguf": ("MiniCPM5-1B", "F16"),
    "2b_it_v2.gguf": ("2b_it_v2", "unknown"),
    # TheBloke, mradermacher, MaziyarPanahi: dots
    "mistral-7b-instruct-v0.1.Q4_K_M.gguf": ("mistral-7b-instruct-v0.1", "Q4_K_M"),
    "llama-2-7b-guanaco-qlora.Q5_K_S.gguf": ("llama-2-7b-guanaco-qlora", "Q5_K_S"),
    "Qwen2.5-7B-Instruct.i1-IQ2_XXS.gguf": ("Qwen2.5-7B-Instruct", "i1-IQ2_XXS"),
    "Qwen2.5-7B-Instruct.Q8_0.gguf": ("Qwen2.5-7B-Instruct", "Q8_0"),
    "Mixtral-8x7B-Instruct-v0.1.IQ4_NL.gguf": ("Mixtral-8x7B-Instruct-v0.1", "IQ4_NL"),
    # everybody else
    "ggml-model-f16.gguf": ("ggml-model", "F16"),
    "ggml-model-Q2_K_S.gguf": ("ggml-model", "Q2_K_S"),
    "model.gguf": ("model", "unknown"),
    "Q8_0.gguf": ("", "Q8_0"),
    "MODEL-Q4_K_M.GGUF": ("MODEL", "Q4_K_M"),
    "Model_Q5_1.gguf": ("Model", "Q5_1"),
    "Model-Q4-K-M.gguf": ("Model", "Q4_K_M"),
    "Model-q4km.gguf": ("Model", "Q4_K_M"),
    "Model-Q4_K_M-imat.gguf": ("Model-imat", "Q4_K_M"),
    "Model-IMat-Q4_0.gguf": ("Model", "imat-Q4_0"),
    "Model-FP32.gguf": ("Model", "F32"),
    "Model-NVFP4.gguf": ("Model", "NVFP4"),
    "Model-IQ3_M-f16-embeds.gguf": ("Model-f16-embeds", "IQ3_M"),
    "Model.Q8_0.gguf-00001-of-00002.gguf": ("Model", "Q8_0", 1, 2),
    "Ornith-1.5-9B-MTP-IQ2_M.gguf": ("Ornith-1.5-9B-MTP", "IQ2_M"),
    "Step-3.7-Flash-APEX-I-Compact.gguf": ("Step-3.7-Flash-APEX-I-Compact", "unknown"),
    # models whose names hold what looks like a format
    "Qwen2.5-Q8-Instruct-Q4_K_M.gguf": ("Qwen2.5-Q8-Instruct", "Q4_K_M"),
    "Qwen2.5-Q8-Instruct.gguf": ("Qwen2.5-Q8-Instruct", "unknown"),
    "Q8_0-Tutor-7B-IQ3_XXS.gguf": ("Q8_0-Tutor-7B", "IQ3_XXS"),
    "F16Model.gguf": ("F16Model", "unknown"),
    "F16Model-Q4_0.gguf": ("F16Model", "Q4_0"),
    "eagle-7b-Q4_K_M.gguf": ("eagle-7b", "Q4_K_M"),
    "Draftsman-7B-Q4_K_M.gguf": ("Draftsman-7B", "Q4_K_M"),
    "Clip-Writer-7B-Q4_K_M.gguf": ("Clip-Writer-7B", "Q4_K_M"),
    "SmolLM2-LoRA-merged-Q8_0.gguf": ("SmolLM2-LoRA-merged", "Q8_0"),
    # not models
    "mmproj-F16.gguf": ("mmproj", "F16", None, None, "mmproj"),
    "mmproj-gemma-4-12b-it-BF16.gguf": ("mmproj-gemma-4-12b-it", "BF16", None, None, "mmproj"),
    "Qwen2.5-VL-7B-Instruct-mmproj-f16.gguf": ("Qwen2.5-VL-7B-Instruct-mmproj", "F16", None, None, "mmproj"),
    "llava.mmproj.gguf": ("llava.mmproj", "unknown", None, None, "mmproj"),
    "MMPROJ-model-f16.gguf": ("MMPROJ-model", "F16", None, None, "mmproj"),
    "MTP/mtp-Qwen3.8-27B-Q4_0.gguf": ("mtp-Qwen3.8-27B", "Q4_0", None, None, "mtp"),
    "MTP/Qwen3.8-27B-Q8_0.gguf": ("Qwen3.8-27B", "Q8_0", None, None, "mtp"),
    "mtp-Qwen3.8-27B-Q4_0.gguf": ("mtp-Qwen3.8-27B", "Q4_0", None, None, "mtp"),
    "eagle3-Qwen3-8B-Q8_0.gguf": ("eagle3-Qwen3-8B", "Q8_0", None, None, "eagle3"),
    "Qwen3-8B-EAGLE3.gguf": ("Qwen3-8B-EAGLE3", "unknown", None, None, "eagle3"),
    "dflash-Qwen3-8B-F16.gguf": ("dflash-Qwen3-8B", "F16", None, None, "dflash"),
    "dspark-Qwen3-8B-F16.gguf": ("dspark-Qwen3-8B", "F16", None, None, "dspark"),
    "imatrix_unsloth.gguf": ("imatrix_unsloth", "unknown", None, None, "imatrix"),
    "Qwen3.5-4B.imatrix.gguf": ("Qwen3.5-4B.imatrix", "unknown", None, None, "imatrix"),
    "Qwen3.5-4B-imatrix.dat": ("Qwen3.5-4B-imatrix", "unknown", None, None, "imatrix"),
    "imatrix-Q8_0.gguf": ("imatrix", "Q8_0", None, None, "imatrix"),
    "ggml-vocab-llama-bpe.gguf": ("ggml-vocab-llama-bpe", "unknown", None, None, "vocab"),
    "ggml-lora-shakespeare-f16.gguf": ("ggml-lora-shakespeare", "F16", None, None, "lora"),
    "adapter_model.safetensors": ("adapter_model", "unknown", None, None, "lora"),
    "Model-control-vector-humor.gguf": ("Model-control-vector-humor", "unknown", None, None, "control-vector"),
    "draft/Model-Q4_0.gguf": ("Model", "Q4_0", None, None, "draft"),
    "WavTokenizer-Large-75-F16.gguf": ("WavTokenizer-Large-75", "F16", None, None, "vocoder"),
    # safetensors
    "model-00001-of-000163.safetensors": ("model", "unknown", 1, 163),
}  # fmt: skip

# name -> label, or (label, shard, shards, companion): further habits, of the same publishers and of others
HABITS = {
    # bartowski
    "Qwen_Qwen3-30B-A3B-Q4_K_M.gguf": "Q4_K_M",
    "google_gemma-3-27b-it-qat-Q4_0.gguf": "Q4_0",
    "mistralai_Mistral-Small-3.2-24B-Instruct-2506-IQ4_XS.gguf": "IQ4_XS",
    "DeepSeek-V3-0324-Q4_K_M/DeepSeek-V3-0324-Q4_K_M-00011-of-00011.gguf": ("Q4_K_M", 11, 11, None),
    "mmproj-google_gemma-3-12b-it-bf16.gguf": ("BF16", None, None, "mmproj"),
    "Qwen_Qwen3-8B-imatrix.gguf": ("unknown", None, None, "imatrix"),
    "Qwen_Qwen3-8B.imatrix": ("unknown", None, None, "imatrix"),
    # unsloth
    "UD-IQ1_S/DeepSeek-R1-0528-UD-IQ1_S-00001-of-00004.gguf": ("UD-IQ1_S", 1, 4, None),
    "DeepSeek-R1-UD-IQ2_XXS/DeepSeek-R1-UD-IQ2_XXS-00003-of-00003.gguf": ("UD-IQ2_XXS", 3, 3, None),
    "Qwen3-Coder-480B-A35B-Instruct-1M-UD-Q2_K_XL-00001-of-00004.gguf": ("UD-Q2_K_XL", 1, 4, None),
    "gpt-oss-20b-UD-Q8_K_XL.gguf": "UD-Q8_K_XL",
    "gpt-oss-20b-F16.gguf": "F16",
    "Apriel-1.5-15b-Thinker-UD-IQ3_XXS.gguf": "UD-IQ3_XXS",
    "unsloth.BF16-00001-of-00002.gguf": ("BF16", 1, 2, None),
    "imatrix_unsloth.gguf_file": ("unknown", None, None, "imatrix"),
    "MTP/mtp-Qwen3.6-35B-A3B-F16.gguf": ("F16", None, None, "mtp"),
    # mradermacher, TheBloke, MaziyarPanahi, RichardErkhov
    "Llama-3.3-70B-Instruct.i1-Q4_K_M.gguf": "i1-Q4_K_M",
    "Llama-3.1-8B-Instruct.imatrix.dat": ("unknown", None, None, "imatrix"),
    "MiniCPM-V-2_6.mmproj-f16.gguf": ("F16", None, None, "mmproj"),
    "Phi-3.5-vision-instruct.mmproj.f16.gguf": ("F16", None, None, "mmproj"),
    "mixtral-8x7b-v0.1.Q3_K_M.gguf": "Q3_K_M",
    "tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf": "Q4_K_M",
    "deepseek-coder-6.7b-instruct.Q5_0.gguf": "Q5_0",
    "Mixtral-8x22B-v0.1.Q4_K_M-00001-of-00005.gguf": ("Q4_K_M", 1, 5, None),
    "Llama-3-8B.FP16.gguf": "F16",
    "mistral-7b-instruct-v0.3.fp32.gguf": "F32",
    # Qwen, ggml-org, microsoft, google, ibm-granite, LiquidAI, HuggingFaceTB, nomic-ai
    "qwen1_5-0_5b-chat-q4_k_m.gguf": "Q4_K_M",
    "qwen2.5-coder-32b-instruct-q5_k_m-00002-of-00003.gguf": ("Q5_K_M", 2, 3, None),
    "qwen2.5-72b-instruct-fp16-00040-of-00042.gguf": ("F16", 40, 42, None),
    "Qwen3VL-8B-Instruct-Q4_K_M.gguf": "Q4_K_M",
    "mmproj-Qwen3VL-8B-Instruct-F16.gguf": ("F16", None, None, "mmproj"),
    "ultravox-v0_5-llama-3_2-1b-mmproj-f16.gguf": ("F16", None, None, "mmproj"),
    "moondream2-text-model-f16.gguf": "F16",
    "moondream2-mmproj-f16.gguf": ("F16", None, None, "mmproj"),
    "InternVL3-8B-mmproj-Q8_0.gguf": ("Q8_0", None, None, "mmproj"),
    "gpt-oss-20b-mxfp4.gguf": "MXFP4",
    "phi-4-Q6_K.gguf": "Q6_K",
    "Phi-4-mini-instruct.BF16.gguf": "BF16",
    "gemma-2b.gguf": "unknown",
    "gemma-3-1b-it-qat-q4_0.gguf": "Q4_0",
    "granite-4.0-h-tiny-f16.gguf": "F16",
    "LFM2-VL-450M-Q8_0.gguf": "Q8_0",
    "mmproj-LFM2-VL-450M-Q8_0.gguf": ("Q8_0", None, None, "mmproj"),
    "SmolLM3-Q4_K_M.gguf": "Q4_K_M",
    "SmolLM2.q8.gguf": "Q8_0",
    "nomic-embed-text-v1.5.f16.gguf": "F16",
    "bge-small-en-v1.5-f32.gguf": "F32",
    "Qwen3-Reranker-0.6B-Q8_0.gguf": "Q8_0",
    "stablelm-2-zephyr-1_6b-Q4_0.gguf": "Q4_0",
    "Bonsai-8B-Q1_0.gguf": "Q1_0",
    "BitNet-b1.58-2B-4T-TQ2_0.gguf": "TQ2_0",
    "ggml-vocab-qwen2.gguf": ("unknown", None, None, "vocab"),
    # people's own: directories, blanks, versions behind the format, other words in front
    "grok-1-Q2_K-split-00001-of-00009.gguf": ("Q2_K", 1, 9, None),
    "dolphin-2.9-llama3-8b-q4_K_M.gguf": "Q4_K_M",
    "q4_0/model.gguf": "Q4_0",
    "Qwen3-8B-GGUF/Q5_K_M/model.gguf": "Q5_K_M",
    "F16-models/Llama-7B-Q4_K_M.gguf": "Q4_K_M",
    "Q4_K_M/Q4_K_M.gguf": "Q4_K_M",
    "Q4_K_M-Bench-7B-Q8_0.gguf": "Q8_0",
    "Mistral-7B-Instruct-v0.3-Q4_K_M-GGUF.gguf": "Q4_K_M",
    "Model-Q4_K_M_v2.gguf": "Q4_K_M",
    "Model-Q4_K_M (1).gguf": "Q4_K_M",
    "Model Q4_K_M.gguf": "Q4_K_M",
    "model-q6k.gguf": "Q6_K",
    "Llama-3-8B-FP8.gguf": "unknown",
    "Vocabulary-Coach-1B-Q8_0.gguf": "Q8_0",
    "Llama-3.1-8B-Instruct-EAGLE3-F16.gguf": ("F16", None, None, "eagle3"),
    "lora-adapter-f16.gguf": ("F16", None, None, "lora"),
    "vision-encoder-f16.gguf": ("F16", None, None, "mmproj"),
    "control_vector-happy.gguf": ("unknown", None, None, "control-vector"),
    "tokenizer.gguf": ("unknown", None, None, "vocab"),
}


@pytest.mark.parametrize("name", HOSTILE, ids=[f"{number}" for number in range(len(HOSTILE))])
def test_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(UnsafeSourceError) as caught:
        safe_name(name)
    assert caught.value.hint
    str(caught.value).encode()  # the message itself can be printed


@pytest.mark.parametrize("name", HOSTILE, ids=[f"{number}" for number in range(len(HOSTILE))])
def test_a_hostile_segment_is_refused_anywhere(name: str) -> None:
    for around in ("{}/model.gguf", "dir/{}", "dir/{}/model.gguf"):
        with pytest.raises(UnsafeSourceError):
            safe_name(around.format(name))


@pytest.mark.parametrize("name", SAFE)
def test_a_harmless_name_passes_unchanged(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize("name", [None, 3, b"model.gguf", ["a"]])
def test_what_is_no_text_is_refused(name: object) -> None:
    with pytest.raises(UnsafeSourceError, match="no text"):
        safe_name(name)  # type: ignore[arg-type]


@given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "a", "", "con", "a b", "\\"])).map("/".join))
def test_what_passes_stays_inside_a_directory(name: str) -> None:
    try:
        safe_name(name)
    except UnsafeSourceError:
        return
    path = PurePosixPath("/store", name)
    assert path.is_relative_to("/store") and ".." not in path.parts
    assert str(path) == f"/store/{name}"


@pytest.mark.parametrize(
    "names",
    [
        ["a.gguf", "A.gguf"], ["a.gguf", "a.gguf"], ["dir/a", "DIR/A"], ["a", "a/b"], ["a/b", "A"],
        ["straße", "STRASSE"],
        ["a/b/c", "x", "A/B"],
    ],
)  # fmt: skip
def test_names_that_would_meet_are_refused(names: list[str]) -> None:
    with pytest.raises(UnsafeSourceError, match="one file on some systems"):
        refuse_collisions(names)


def test_names_that_differ_are_no_collision() -> None:
    refuse_collisions(["BF16/a.gguf", "bf16/b.gguf", "a.gguf", "a.gguf.md"])


@pytest.mark.parametrize("name", NAMES, ids=list(NAMES))
def test_a_real_name_is_read(name: str) -> None:
    found = parse(name)
    expected = (*NAMES[name], None, None, None)[:5]
    assert (found.stem, found.label, found.shard, found.shards, found.companion) == expected
    assert found.refused is None and found.part is None
    assert safe_name(name) == name


@pytest.mark.parametrize("name", HABITS, ids=list(HABITS))
def test_a_habit_is_read(name: str) -> None:
    found, expected = parse(name), HABITS[name]
    read = (found.label, found.shard, found.shards, found.companion)
    assert read == ((expected, None, None, None) if isinstance(expected, str) else expected)
    assert found.refused is None and found.part is None and safe_name(name) == name


@pytest.mark.parametrize(
    ("name", "format", "word"),
    [
        ("Model-Q4_0_4_4.gguf", "Q4_0_4_4", "Arm"), ("Model-Q4_0_8_8.gguf", "Q4_0_8_8", "Arm"),
        ("Model.IQ4_NL_4_4.gguf", "IQ4_NL_4_4", "Arm"), ("Model-IQ4_KSS.gguf", "IQ4_KSS", "ik_llama"),
        ("smol-IQ2_KS/X-smol-IQ2_KS-00001-of-00002.gguf", "IQ2_KS", "ik_llama"), ("X-Q4_K_R4.gguf",
        "Q4_K_R4", "ik_llama"),
        ("X-IQ3_XXS_R4.gguf", "IQ3_XXS_R4", "ik_llama"), ("X-Q4_2.gguf", "Q4_2", "2023"),
    ],
)  # fmt: skip
def test_a_format_that_llama_cpp_does_not_read_is_named_and_refused(name: str, format: str, word: str) -> None:
    found = parse(name)
    assert found.format == format
    assert found.refused and word in found.refused


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("Model.Q6_K.gguf.part1of2", 1), ("Model.i1-Q6_K.gguf.part2of2", 2), ("Model.Q8_0.gguf-split-a", 1),
        ("Model.Q8_0.gguf-split-b", 2), ("Model.Q8_0.part3of3.gguf", 3), ("Model.Q8_0.gguf.001", 1),
    ],
)  # fmt: skip
def test_pieces_of_bytes_are_no_shards(name: str, part: int) -> None:
    found = parse(name)
    assert (found.part, found.shards, found.stem, found.extension) == (part, None, "Model", "gguf")


@given(st.text())
def test_any_text_can_be_read(name: str) -> None:
    assert parse(name) == parse(name)
    parse(f"{name}.gguf")
    parse_format(name)
    model_words(name)


@given(
    st.text(string.ascii_letters + string.digits, min_size=1, max_size=8).map(lambda text: f"Model{text}"),
    st.sampled_from(["Q4_K_M", "IQ2_XXS", "Q8_0", "BF16", "Q3_K_XL", "MXFP4_MOE", "TQ2_0", "Q5_1"]),
    st.sampled_from(["", "UD", "i1"]),
    st.sampled_from(["-", "."]),
    st.integers(1, 40),
    st.booleans(),
)
def test_what_is_written_by_the_rules_is_read_back(
    stem: str, format: str, attribute: str, separator: str, shards: int, lower: bool
) -> None:
    token = f"{attribute}-{format}" if attribute else format
    tail = f"-{shards:05}-of-{shards:05}" if shards > 1 else ""
    found = parse(f"{stem}{separator}{token.lower() if lower else token}{tail}.gguf")
    assert (found.stem, found.label, found.shards or 1) == (stem, token, shards)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Q4_K_M", (None, "Q4_K_M")), ("q4_k_m", (None, "Q4_K_M")), ("UD-Q4_K_XL", ("UD",
        "Q4_K_XL")), ("q4", (None, "Q4_K_M")),
        ("fp16", (None, "F16")), ("Q4_K", (None, "Q4_K_M")), ("latest", None), ("", None),
        ("Model-Q4_0", None), ("AWQ", None),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_read(text: str, expected: object) -> None:
    assert parse_format(text) == expected


def test_nominal_bits() -> None:
    formats = {
        "Q4_K_M": 4,
        "IQ2_XXS": 2,
        "TQ1_0": 1,
        "MXFP4": 4,
        "NVFP4": 4,
        "FP8": 8,
        "BF16": 16,
        "W4A16": 4,
        "INT8": 8,
    }
    assert {name: nominal_bits(name) for name in formats} == formats
    assert nominal_bits(None) is None and nominal_bits("unknown") is None


@pytest.mark.parametrize(
    "name",
    [
        "Qwen2.5-7B-Instruct", "Qwen2.5-7B-Instruct-GGUF", "Qwen2.5-7B-Instruct-AWQ",
        "Qwen2.5-7B-Instruct-GPTQ-Int4",
        "qwen2.5-7b-instruct-q4_k_m", "Qwen2.5-7B-Instruct-i1-GGUF", "Qwen2.5-7B-Instruct-quantized.w4a16",
        "Qwen2.5-7B-Instruct-FP8-dynamic", "Qwen2.5-7B-Instruct-4bit-128g", "Qwen2.5-7B-Instruct-UD-Q4_K_XL",
    ],
)  # fmt: skip
def test_words_of_packaging_are_not_the_model_s(name: str) -> None:
    assert model_words(name) == ("qwen2.5", "7b", "instruct")


def files(*names: str, size: int = 1000) -> list[RemoteFile]:
    return [RemoteFile(name, size) for name in names]


def test_shards_are_grouped_in_order_and_companions_apart() -> None:
    names = [f"Q8_0/M-Q8_0-0000{number}-of-00003.gguf" for number in (3, 1, 2)]
    found = group(files("mmproj-F16.gguf", *names, "M-Q4_0.gguf", "imatrix.gguf", "README.md", "M-UD-Q4_0.gguf"))
    assert [file.name for file in found.variants[0].files] == sorted(names)
    assert [one.name.label for one in found.variants] == ["Q8_0", "Q4_0", "UD-Q4_0"]
    assert [one.name.companion for one in found.companions] == ["mmproj", "imatrix"]
    assert found.problems == ()


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["M-Q4_0-00001-of-00003.gguf", "M-Q4_0-00003-of-00003.gguf"], "number 2 is missing"),
        (["M-Q4_0-00002-of-00002.gguf"], "number 1 is missing"),
        (["M-Q4_0-00001-of-00009.gguf"], "numbers 2, 3, 4, 5, 6 and 3 more are missing"),
        (["M-Q4_0-00000-of-00002.gguf", "M-Q4_0-00001-of-00002.gguf", "M-Q4_0-00002-of-00002.gguf"], "out of range"),
        (["M-Q4_0-00001-of-00000.gguf"], "out of range"),
        (["M-Q4_0-1-of-2.gguf", "M-Q4_0-2-of-2.gguf"], "is not named as llama.cpp expects"),
        (["M-Q4_0-00001-of-00002.gguf", "m-q4_0-00001-of-00002.gguf", "M-Q4_0-00002-of-00002.gguf"], "listed twice"),
        (["M-Q4_0-000001-of-999999.gguf"], "missing"),
        (["M.Q4_0.00001-of-00002.gguf", "M.Q4_0.00002-of-00002.gguf"], "is not named as llama.cpp expects"),
        (["M-Q4_0-1-of-00002.gguf", "M-Q4_0-2-of-00002.gguf"], "is not named as llama.cpp expects"),
        (["M-Q4_0_00001_of_00002.gguf", "M-Q4_0_00002_of_00002.gguf"], "is not named as llama.cpp expects"),
        (["M-Q4_0-00001-of-00001.GGUF"], "is not named as llama.cpp expects"),
        (["M.Q4_0.gguf.part1of2", "M.Q4_0.gguf.part2of2"], "concatenated"),
        (["M-Q4_0_4_4.gguf"], "Arm"),
        (["M-Q4_0.gguf", "M.q4_0.gguf"], "not clear which is meant"),
    ],
)
def test_what_is_not_whole_is_a_problem_with_a_reason(names: list[str], reason: str) -> None:
    found = group(files(*names))
    assert found.variants == ()
    assert reason in found.problems[0].reason
    assert len(found.problems) == 1


def test_counts_that_differ_are_different_variants() -> None:
    whole = ["M-Q4_0-00001-of-00002.gguf", "M-Q4_0-00002-of-00002.gguf"]
    found = group(files(*whole, "M-Q4_0-00002-of-00003.gguf", "M-Q4_0.gguf"))
    assert [len(one.files) for one in found.variants] == [2, 1]
    assert "numbers 1, 3 are missing" in found.problems[0].reason


def test_a_size_that_is_not_known_is_a_problem() -> None:
    assert "size" in group(files("M-Q4_0.gguf", size=0)).problems[0].reason


@pytest.mark.parametrize(
    ("projectors", "variant", "expected"),
    [
        (["mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"], "M-Q4_0.gguf", "mmproj-F16.gguf"),
        (["mmproj-F16.gguf", "a/mmproj-Q8_0.gguf"], "a/M-Q4_0.gguf", "a/mmproj-Q8_0.gguf"),
        (["mmproj-F16.gguf"], "Q4_0/M-Q4_0.gguf", "mmproj-F16.gguf"),
        (["b/mmproj-F16.gguf"], "a/M-Q4_0.gguf", None),
        (["mmproj/model-F16.gguf"], "M-Q4_0.gguf", "mmproj/model-F16.gguf"),
        (["mmproj-Other-7B-F16.gguf", "mmproj-Mine-7B-Q8_0.gguf"], "Mine-7B-Q4_0.gguf", "mmproj-Mine-7B-Q8_0.gguf"),
        (["imatrix.gguf"], "M-Q4_0.gguf", None),
    ],
)
def test_a_variant_gets_the_projector_that_belongs_to_it(
    projectors: list[str], variant: str, expected: str | None
) -> None:
    (one,) = group(files(*projectors, variant)).variants
    assert (one.projector.name if one.projector else None) == expected


@given(st.lists(st.sampled_from([*NAMES, "x-Q4_0-00001-of-00002.gguf", "a.gguf.part1of2", "b.txt"]), unique=True))
def test_every_gguf_file_ends_in_exactly_one_place(names: list[str]) -> None:
    found = group(files(*names))
    placed = [file.name for one in found.variants for file in one.files]
    placed += [one.file.name for one in found.companions]
    assert len(placed) == len(set(placed))
    assert set(placed) <= set(names)
    assert not any(parse(file.name).companion for one in found.variants for file in one.files)

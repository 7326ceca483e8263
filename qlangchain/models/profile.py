"""What a model can do, for LangChain's `ModelProfile`: read from its files, without starting an engine."""

from __future__ import annotations

from langchain_core.language_models import ModelProfile

from qlangchain import pipeline
from qlangchain.selection.costing import DEFAULT_CONTEXT


def profile_of(model: str, context_length: int | None) -> ModelProfile:
    """Return the profile of a model on this machine.

    The input may take as many tokens as the context has, and so may the output. Tools can be forced on any
    model by the grammar; that it calls them well by itself is claimed only where its template knows of tools.
    """
    # A profile is asked for often and early: the hub is not asked for it.
    found = pipeline.source_of(model, offline=True)
    context = min(context_length or DEFAULT_CONTEXT, found.facts.max_context)
    template = found.chat_template or ""
    return ModelProfile(
        name=found.facts.name,
        open_weights=True,
        max_input_tokens=context,
        max_output_tokens=context,
        text_inputs=True,
        text_outputs=True,
        image_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        pdf_inputs=False,
        tool_calling="tools" in template,
        tool_choice=True,
        tool_call_streaming=True,
        structured_output=True,
        reasoning_output="<think>" in template or "reasoning_content" in template,
        temperature=True,
    )

"""Choose a quantization: by the table, and for this machine with the reasons."""

from qlangchain import choose_quantization_method, plan

for hardware in ("cpu", "gpu", "hybrid"):
    choice = choose_quantization_method("production", hardware, precision_required=True)
    print(f"{hardware:>6}: {choice['method']} {choice['format']} with {choice['library']}: {', '.join(choice['pros'])}")

chosen = plan("demo", hardware="cpu", precision_required=False)
print(f"\nHere: {chosen.format}, {chosen.context_length} tokens of context, {chosen.slots} requests at once")
for reason in chosen.reasons:
    print("-", reason)
for rejection in chosen.rejected:
    print("- not", rejection.choice, "because", rejection.reason)

"""The embedded demo model: its files, its card, its corpus, and the scripts that trained and measure it.

    model/       the weights in bf16, a Q4_K_M file made from them, tokenizer and chat template
    card.md      what it is, and the measured figures; written by train.py
    corpus/      question-answer pairs, with the phrasings that are held out
    phrases.toml the words and sentence forms of the generated exercises

    train.py     python -m qlangchain.demo.train --out DIR
    evaluate.py  python -m qlangchain.demo.evaluate [DIR]

Nothing here is imported by the rest of the package, which knows only where the model lies.
"""

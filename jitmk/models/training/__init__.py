"""How the bundled model was made: text -> tokenizer -> network -> Hugging Face folder.

Run it with `python -m jitmk.models.training --text kjv.txt --out FOLDER`. It needs `torch`, `transformers`,
`tokenizers`, `safetensors` and `tqdm`; nothing else in jitmk imports it.

The modules in reading order: `recipe` (every number that decides the result), `corpus` (text and its held-out
chapters), `bpe` (the tokenizer), `network` (the Llama model and its regularisation), `windows` (training batches),
`loop` (optimisation), `evaluate` (held-out loss), `export` and `card` (the folder that is shipped).
"""

"""Records what independent implementations make of our texts and templates.

    python tests/golden/record.py tokens MODEL.gguf      # needs llama-cpp-python, gguf, tokenizers
    python tests/golden/record.py templates MODEL.gguf   # needs transformers, gguf

MODEL.gguf is the catalogue's default model. `tokens` asks llama.cpp: for the default model's own
vocabulary, and for two small ones that this script trains on its own texts and writes as
vocabulary-only GGUF files, one file for each pre-tokenizer. The byte-level vocabulary is trained
without any pre-tokenizer, so that its merges reach over every border a pre-tokenizer may draw and
a wrong border shows. `templates` asks transformers to render.

The answers go to JSON files beside this script. Tests read those; only recording needs the peers.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from chats import conversations
from texts import texts

HERE = Path(__file__).parent
PRE_TOKENIZERS = [
    "default", "gpt-2", "smollm", "llama-bpe", "glm4", "dbrx", "qwen2", "qwen35", "tekken",
    "gpt-4o", "seed-coder", "deepseek-llm", "deepseek-coder", "deepseek-v3",
]  # fmt: skip
WHOLE_WORDS = [" quick", "JUMPS", "return", "日本語", " lazy", " мир", "quoted"]
"""Ordinary tokens that no merge leads to: found only where whole words come before merges."""
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<s>", "</s>"]
USER_DEFINED = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
NORMAL, UNKNOWN, CONTROL_TYPE, USER_TYPE, BYTE = 1, 2, 3, 4, 6


def main(arguments: list[str]) -> None:
    what, model = arguments
    if what == "tokens":
        record_tokens(Path(model))
    elif what == "templates":
        record_templates(Path(model))
    else:
        sys.exit(__doc__)


def record_tokens(model: Path) -> None:
    byte_level, scored = byte_level_vocabulary(), scored_vocabulary()
    write_json("vocabulary_byte_level.json", byte_level)
    write_json("vocabulary_scored.json", scored)
    write_json("tokens_default_model.json", ask_llama_cpp(model))
    with tempfile.TemporaryDirectory() as folder:
        for pre in PRE_TOKENIZERS:
            path = Path(folder) / f"{pre}.gguf"
            write_gguf(path, "gpt2", byte_level, pre=pre)
            write_json(f"tokens_{pre}.json", ask_llama_cpp(path))
        for has_prefix in (True, False):
            path = Path(folder) / f"spm-{has_prefix}.gguf"
            write_gguf(path, "llama", scored, add_space_prefix=has_prefix)
            name = "with" if has_prefix else "without"
            write_json(f"tokens_scored_{name}_prefix.json", ask_llama_cpp(path))


def byte_level_vocabulary() -> dict[str, Any]:
    """Tokens, merges and types as a GGUF has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=10,
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts() * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    ordinary = sorted(model["vocab"], key=model["vocab"].get)
    ordinary += [word for word in map(spell, WHOLE_WORDS) if word not in model["vocab"]]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {
        "tokens": [*CONTROL, *USER_DEFINED, *ordinary],
        "token_type": [CONTROL_TYPE] * len(CONTROL)
        + [USER_TYPE] * len(USER_DEFINED)
        + [NORMAL] * len(ordinary),
        "merges": merges,
    }


def spell(word: str) -> str:
    """As byte-level vocabularies spell it."""
    from tokenizers import pre_tokenizers

    ((spelling, _),) = pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(word)
    return spelling


def scored_vocabulary() -> dict[str, Any]:
    """Tokens, scores and types as a GGUF has them."""
    from tokenizers import Tokenizer, models, trainers

    lines = ["▁" + text.replace(" ", "▁") for text in training_texts()]
    counts = Counter("".join(lines))
    # The trainer breaks ties by chance, so the alphabet is chosen here.
    alphabet = sorted(counts, key=lambda character: (-counts[character], character))[:150]
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=10,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    # As in SentencePiece: the earlier a piece was learnt, the better; single characters come last.
    learnt = [piece for piece in pieces if len(piece) > 1]
    characters = [piece for piece in pieces if len(piece) == 1]
    named = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*named, *bytes_, *USER_DEFINED, *learnt, *characters]
    return {
        "tokens": tokens,
        "scores": [0.0] * (len(named) + 256 + len(USER_DEFINED))
        + [-float(rank) for rank in range(len(learnt) + len(characters))],
        "token_type": [UNKNOWN]
        + [CONTROL_TYPE] * (len(named) - 1)
        + [BYTE] * 256
        + [USER_TYPE] * len(USER_DEFINED)
        + [NORMAL] * (len(learnt) + len(characters)),
    }


def training_texts() -> list[str]:
    """Without markers, which must not be learnt as ordinary tokens too, and without NUL, which
    llama.cpp takes for the end of a token."""
    lines = texts()
    for marker in ["<unk>", "<0x0A>", "<0x41>", "\0", *CONTROL, *USER_DEFINED]:
        lines = [line.replace(marker, "") for line in lines]
    return lines


def write_gguf(
    path: Path,
    model: str,
    vocabulary: dict[str, Any],
    *,
    pre: str | None = None,
    add_space_prefix: bool | None = None,
) -> None:
    """A GGUF with a vocabulary and no weights, of the least that llama.cpp reads."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    if add_space_prefix is not None:
        writer.add_add_space_prefix(add_space_prefix)
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["token_type"])
    if "scores" in vocabulary:
        writer.add_token_scores(vocabulary["scores"])
    if "merges" in vocabulary:
        writer.add_token_merges(vocabulary["merges"])
    writer.add_bos_token_id(vocabulary["tokens"].index("<s>"))
    writer.add_eos_token_id(vocabulary["tokens"].index("</s>"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def ask_llama_cpp(path: Path) -> dict[str, Any]:
    """Token ids of every text, without and with control tokens; the bytes of tokens; the ends."""
    import llama_cpp

    peer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    encoded = [text.encode() for text in texts()]
    count = peer.n_vocab()
    vocab = llama_cpp.llama_model_get_vocab(peer.model)
    return {
        "recorded_with": f"llama-cpp-python {llama_cpp.__version__}",
        "plain": [peer.tokenize(text, add_bos=False, special=False) for text in encoded],
        "special": [peer.tokenize(text, add_bos=False, special=True) for text in encoded],
        "ends": [token for token in range(count) if llama_cpp.llama_vocab_is_eog(vocab, token)],
        "bytes": [piece(llama_cpp, vocab, token).hex() for token in range(min(count, 2000))],
    }


def piece(llama_cpp: Any, vocab: Any, token: int) -> bytes:
    buffer = ctypes.create_string_buffer(256)
    length = llama_cpp.llama_token_to_piece(vocab, token, buffer, 256, 0, False)
    return buffer.raw[:length]


def record_templates(model: Path) -> None:
    """Every template with every conversation; a refusal is recorded as its message."""
    from gguf import GGUFReader

    fields = GGUFReader(model).fields
    sources = {path.stem: path.read_text() for path in sorted(HERE.glob("templates/*.jinja"))}
    sources["default_model"] = fields["tokenizer.chat_template"].contents()
    write_json(
        "renderings.json",
        {name: [ask_transformers(source, case) for case in conversations()]
         for name, source in sources.items()},
    )  # fmt: skip


def ask_transformers(source: str, case: dict[str, Any]) -> dict[str, str]:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template(
            [case["messages"]],
            tools=case.get("tools"),
            chat_template=source,
            add_generation_prompt=case.get("add_generation_prompt", True),
            bos_token="<s>",
            eos_token="</s>",
            **case.get("variables", {}),
        )
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"text": text}


def write_json(name: str, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    (HERE / name).write_text(text.replace("],[", "],\n[") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

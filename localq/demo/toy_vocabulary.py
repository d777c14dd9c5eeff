"""The toys' tokenizers and chat templates, trained, and written as Hugging Face folders have them.

`write_llama_vocabulary` makes a byte-level BPE as Llama 3 has it; `write_phi_vocabulary` a SentencePiece BPE
as Phi-3 has it, as `tokenizer.model` and as the equivalent `tokenizer.json`. Neither knows the network.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

CONTEXT_LENGTH = 1024

LLAMA_VOCABULARY_SIZE = 512
LLAMA_SPECIAL_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

PHI_PIECES = 600
PHI_ADDED_TOKENS = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
PHI_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and message['content'] %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON with a newline at the end."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _flags(token: AddedToken) -> dict[str, Any]:
    """Return the token as `added_tokens_decoder` in tokenizer_config.json describes it."""
    return {
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
        "special": token.special,
    }


def _added_tokens_decoder(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    decoder = tokenizer.get_added_tokens_decoder()
    return {str(token_id): _flags(decoder[token_id]) for token_id in sorted(decoder)}


def _begin_with(token: str, tokenizer: Tokenizer) -> processors.TemplateProcessing:
    """Return a post-processor that puts `token` before every text."""
    return processors.TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token}:1 $B:1",
        special_tokens=[(token, tokenizer.token_to_id(token))],
    )


def write_llama_vocabulary(texts: list[str], folder: Path) -> Tokenizer:
    """Train a byte-level BPE with Llama 3's pre-tokenizer on `texts`; write its files into `folder`."""
    tokenizer = Tokenizer(BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=LLAMA_VOCABULARY_SIZE - len(LLAMA_SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in LLAMA_SPECIAL_TOKENS])
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), _begin_with("<|begin_of_text|>", tokenizer)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    marks = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    write_json(folder / "special_tokens_map.json", marks)
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": _added_tokens_decoder(tokenizer),
            **marks,
            "chat_template": LLAMA_CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": True,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": CONTEXT_LENGTH,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    return tokenizer


def _train_sentencepiece(texts: list[str]) -> bytes:
    """Train a SentencePiece BPE with the settings that Llama 2 and Phi-3 have; return the model file."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts for line in text.splitlines() if line]),
        model_writer=model,
        model_type="bpe",
        vocab_size=PHI_PIECES,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _merges(pieces: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return the merges of a SentencePiece BPE: every split of a piece into two, best piece first."""
    merges: list[tuple[str, str, float]] = []
    for piece, score in scores.items():
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        splits = [(left, right) for left, right in halves if left in pieces and right in pieces]
        splits.sort(key=lambda split: (pieces[split[0]], pieces[split[1]]))
        merges += [(left, right, score) for left, right in splits]
    merges.sort(key=lambda merge: -merge[2])
    return [(left, right) for left, right, _ in merges]


def _phi_tokenizer(model: bytes, *, strip_after_roles: bool) -> Tokenizer:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(processor.get_piece_size())
    pieces = {processor.id_to_piece(i): i for i in ids}
    scores = {
        processor.id_to_piece(i): processor.get_score(i)
        for i in ids
        if not (processor.is_byte(i) or processor.is_control(i) or processor.is_unknown(i))
    }
    tokenizer = Tokenizer(BPE(pieces, _merges(pieces, scores), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    plain = {"normalized": False, "special": True}
    roles = {**plain, "rstrip": strip_after_roles}
    tokenizer.add_tokens(
        [
            AddedToken("<unk>", **plain),
            AddedToken("<s>", **plain),
            AddedToken("</s>", rstrip=strip_after_roles, normalized=False, special=False),
            AddedToken(PHI_ADDED_TOKENS[0], **plain),
            *(AddedToken(token, **roles) for token in PHI_ADDED_TOKENS[1:]),
        ]
    )
    tokenizer.post_processor = _begin_with("<s>", tokenizer)
    return tokenizer


def write_phi_vocabulary(texts: list[str], folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """Train a SentencePiece BPE on `texts` and write its files into `folder`.

    Returns the tokenizer of tokenizer.json, and one that keeps the line break after a role's token: some
    runtimes do, so the network learns to read both.
    """
    model = _train_sentencepiece(texts)
    (folder / "tokenizer.model").write_bytes(model)
    tokenizer = _phi_tokenizer(model, strip_after_roles=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "added_tokens.json", {token: tokenizer.token_to_id(token) for token in PHI_ADDED_TOKENS})
    marks = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"}
    marks["pad_token"] = marks["eos_token"]
    write_json(folder / "special_tokens_map.json", marks)
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": _added_tokens_decoder(tokenizer),
            **marks,
            "chat_template": PHI_CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "model_max_length": CONTEXT_LENGTH,
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            "use_default_system_prompt": False,
        },
    )
    return tokenizer, _phi_tokenizer(model, strip_after_roles=False)

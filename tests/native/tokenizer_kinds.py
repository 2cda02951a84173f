"""Small tokenizers of every kind, made with the tokenizers package; each is the same in every run."""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tokenwire import _native

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's a test, isn't it? Yes!",
    "Once upon a time there was a model that read 1234 tokens and wrote 5678 more.",
    "def main() -> None:\n    print('hello world')\n\n\treturn 0\n",
    "Der Fuchs läuft über die Straße; être ou ne pas être, voilà la question.",
    "日本語のテキストと中文文本。 Привет, мир! 😀🎉 naïve café",
    "<tag> [INST] system user assistant | im_start im_end eot s unk </s> do not can't we've you're",
] * 4

CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


@dataclass(frozen=True)
class Pair:
    """The same tokenizer.json twice: ours and the reference."""

    name: str
    native: _native.Tokenizer
    reference: Tokenizer


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=CHAT_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # As in Qwen: markers that are no control tokens, and stay readable in any text.
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return tokenizer


def _byte_level_trimmed() -> Tokenizer:
    tokenizer = _byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 0)]),
        ]
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True), AddedToken("word", single_word=True)])
    tokenizer.enable_padding(length=16, pad_id=2, pad_token="<|endoftext|>")
    tokenizer.enable_truncation(4)
    return tokenizer


def _split_byte_level() -> Tokenizer:
    tokenizer = _byte_level()
    tokenizer.normalizer = normalizers.NFC()
    pattern = Regex(r"\p{N}{1,3}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _byte_fallback(alphabet: str = "".join(map(chr, range(33, 127))) + "▁") -> Tokenizer:
    specials = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=list(alphabet),
        # A smaller limit would drop characters of the alphabet in the order of a hash map, another one in each run.
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained.train_from_iterator(CORPUS[:3], trainer)
    vocab = trained.get_vocab(with_added_tokens=False)
    pieces = specials + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [piece for piece, _ in sorted(vocab.items(), key=lambda item: item[1]) if piece not in specials]
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    model = models.BPE(
        {piece: index for index, piece in enumerate(pieces)},
        merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in specials + CHAT_TOKENS])
    return tokenizer


def _words(tokenizer: Tokenizer) -> list[str]:
    """The words of the corpus after the tokenizer's first two stages, in alphabetical order."""
    normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    split = tokenizer.pre_tokenizer.pre_tokenize_str
    return sorted({word for line in CORPUS for word, _ in split(normalize(line))})


# Three vocabularies are put together here, for the trainers of their kinds order ties by hash: other ids in every run.


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *CHAT_TOKENS]
    words = _words(tokenizer)
    # Every character, with and without a start of a word, the words' first three characters and their last two.
    characters = sorted({character for word in words for character in word})
    pieces = [*specials, *characters, *(f"##{character}" for character in characters)]
    pieces += [piece for word in words for piece in (word[:3], f"##{word[-2:]}") if len(word) > 2]
    tokenizer.model = models.WordPiece(
        {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"
    )
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.add_tokens([AddedToken("Fuchs", normalized=True)])
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    specials = ["<unk>", "<s>", "</s>", *CHAT_TOKENS]
    words = _words(tokenizer)
    counts = Counter(
        word[start : start + length]
        for word in words
        for length in (1, 2, 3)
        for start in range(len(word) - length + 1)
    )
    pieces = [(piece, round(math.log(count / counts.total()), 6)) for piece, count in sorted(counts.items())]
    tokenizer.model = models.Unigram([*((special, 0.0) for special in specials), *pieces], unk_id=0)
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = ["[UNK]", *CHAT_TOKENS]
    trainer = trainers.WordLevelTrainer(vocab_size=100, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _end_of_word() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    specials = ["<unk>", *CHAT_TOKENS]
    # Each word grows from its first character, one by one, to its end.
    words = [[*word[:-1], f"{word[-1]}</w>"] for word in _words(tokenizer)]
    merges = dict.fromkeys(
        ("".join(word[:end]), word[end]) for word in words for end in range(1, len(word)) if len(word) < 6
    )
    characters = sorted({character for word in words for character in word})
    pieces = dict.fromkeys([*specials, *characters, *(left + right for left, right in merges)])
    tokenizer.model = models.BPE(
        {piece: index for index, piece in enumerate(pieces)}, list(merges), unk_token="<unk>", end_of_word_suffix="</w>"
    )
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _odd_decoder(*chain: object, **arguments: str) -> Callable[[], Tokenizer]:
    def build() -> Tokenizer:
        tokenizer = _byte_fallback(**arguments)
        tokenizer.decoder = decoders.Sequence(list(chain))
        return tokenizer

    return build


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": _byte_level,
    "byte-level-trimmed": _byte_level_trimmed,
    "byte-level-split": _split_byte_level,
    "byte-fallback": _byte_fallback,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
    "word-level": _word_level,
    "end-of-word": _end_of_word,
    "gemma-decoder": _odd_decoder(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()),
    "strip-both-ends": _odd_decoder(
        decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " "), decoders.Strip(" ", 2, 1)
    ),
    "cleanup-after-fuse": _odd_decoder(decoders.Replace("▁", " "), decoders.Fuse(), decoders.WordPiece(cleanup=True)),
    "regex-after-fuse": _odd_decoder(decoders.Fuse(), decoders.Replace(Regex("▁+"), " ")),
    "regex-before-fuse": _odd_decoder(decoders.Replace(Regex("▁+"), " "), decoders.ByteFallback(), decoders.Fuse()),
    "ctc": _odd_decoder(decoders.CTC("<s>", "▁", cleanup=True)),
    "metaspace-after-fallback": _odd_decoder(decoders.ByteFallback(), decoders.Metaspace()),
    # No entry for the space's sign, which therefore comes as three bytes and leaves the decoder as one.
    "metaspace-of-bytes": _odd_decoder(decoders.ByteFallback(), decoders.Metaspace(), alphabet="abcdehilnorstuw.,!"),
}


def make_pair(name: str) -> Pair:
    reference = KINDS[name]()
    native = _native.Tokenizer.from_json(reference.to_str())
    # What a file says about padding and truncation must not act, so the reference goes without.
    reference.no_padding()
    reference.no_truncation()
    return Pair(name, native, reference)

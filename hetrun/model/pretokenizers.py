"""How text is cut into words before byte-level BPE: one `PreTokenizer` for each value of `tokenizer.ggml.pre`.

A pre-tokenizer is a sequence of regular expressions in Oniguruma's syntax, the engine of the `tokenizers` library. Each
expression cuts every piece that the ones before it left, and both its matches and what lies between them are pieces.
The expressions are those of the models' own tokenizer.json, as far as llama.cpp reads them the same way; where it does
not (see the comments), llama.cpp is followed: the ids of a GGUF file are its ids.
"""

from __future__ import annotations

from typing import NamedTuple

from hetrun.errors import UnsupportedModelError


class PreTokenizer(NamedTuple):
    """family: names the expressions.   ignore_merges: a word that is a token is that token, whatever the merges say.
    add_bos: where the file does not say (tokenizer.ggml.add_bos_token).   has_default_bos: false if such models have
    no beginning-of-sequence token unless the file names one.
    """

    family: str
    ignore_merges: bool = False
    add_bos: bool = False
    has_default_bos: bool = True

    @property
    def patterns(self) -> tuple[str, ...]:
        return _FAMILIES[self.family]


# Letters, numbers, marks, punctuation and symbols that Unicode 16 added, with the unassigned code points between them
# (Unicode 16, DerivedAge.txt). llama.cpp's tables are those of Unicode 15.1, and the models were trained with no later.
_ADDED_IN_UNICODE_16 = (
    r"\x{897}\x{1B4E}-\x{1B4F}\x{1B7F}\x{1C89}-\x{1C8A}\x{2427}-\x{2429}\x{31E4}-\x{31E5}\x{A7CB}-\x{A7CD}"
    r"\x{A7DA}-\x{A7DC}\x{105C0}-\x{105F3}\x{10D40}-\x{10D8F}\x{10EC2}-\x{10EFC}\x{11380}-\x{113E2}\x{116D0}-\x{116E3}"
    r"\x{11BC0}-\x{11BF9}\x{11F5A}\x{13460}-\x{143FA}\x{16100}-\x{16139}\x{16D40}-\x{16D79}\x{18CFF}\x{1CC00}-\x{1CEB3}"
    r"\x{1E5D0}-\x{1E5FF}\x{1F8B2}-\x{1F8C1}\x{1FA89}-\x{1FA8F}\x{1FABE}\x{1FAC6}\x{1FADC}-\x{1FADF}\x{1FAE9}"
    r"\x{1FBCB}-\x{1FBEF}"
)
_L, _N, _M, _P, _S = (rf"[\p{{{name}}}&&[^{_ADDED_IN_UNICODE_16}]]" for name in "LNMPS")

# Case by case and not (?i:...), which would also take the long s and the Kelvin sign for s and k.
_CONTRACTIONS = r"'[sStTmMdD]|'[rR][eE]|'[vV][eE]|'[lL][lL]"
_LOWER_CONTRACTIONS = r"'[stmd]|'re|'ve|'ll"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = rf"{_LOWER_CONTRACTIONS}| ?{_L}+| ?{_N}+| ?[^\s{_L}{_N}]+|\s+(?!\S)|\s+"
_CHINESE_TO_HANGUL = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}&&\S]+"  # llama.cpp: a space is in no range
_CHINESE_AND_KANA = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
_ALPHABETS = (  # DeepSeek LLM: letters of the scripts with cases
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}"
    r"\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}"
    r"\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}"
    r"\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}"
    r"\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}"
    r"\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}"
    r"\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}"
    r"\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}"
    r"\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}"
    r"\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}"
    r"\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}"
    r"\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)

_FAMILIES = {
    "default": (rf"[{_P}\$\+<=>\^~\|]+", _GPT2, rf"{_N}+", "[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "smollm": (_N, _GPT2),
    "falcon": (rf"[{_P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "llama3": (rf"{_CONTRACTIONS}|[^\r\n{_L}{_N}]?{_L}+|{_N}{{1,3}}| ?[^\s{_L}{_N}]+[\r\n]*|{_SPACES}",),
    "qwen2": (rf"{_CONTRACTIONS}|[^\r\n{_L}{_N}]?{_L}+|{_N}| ?[^\s{_L}{_N}]+[\r\n]*|{_SPACES}",),
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?[{_ALPHABETS}]+",
        r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}-\x{3002}]+",
        r"(?<!\s)\s+\z",  # the model's is \s+$; looking back keeps a long run of spaces from costing its square
        _CHINESE_TO_HANGUL,
        rf"{_N}+",
    ),
    "deepseek-coder": (r"[\r\n]", rf"\s?{_L}+", rf"\s?{_P}+", _CHINESE_TO_HANGUL, _N),
    "deepseek-v3": (
        rf"{_N}{{1,3}}",
        _CHINESE_AND_KANA,
        r"[!-/:-@\[-`{-~][A-Za-z]+"
        rf"|[^\r\n{_L}{_P}{_S}]?[{_L}{_M}]+| ?[{_P}{_S}]+[\r\n]*|{_SPACES}",
    ),
}

_PRE_TOKENIZERS = {
    "default": PreTokenizer("default"),
    "gpt-2": PreTokenizer("gpt-2"),
    "smollm": PreTokenizer("smollm"),
    "falcon": PreTokenizer("falcon"),
    "llama-bpe": PreTokenizer("llama3", ignore_merges=True, add_bos=True),
    "dbrx": PreTokenizer("llama3"),
    "chatglm-bpe": PreTokenizer("llama3", has_default_bos=False),
    "glm4": PreTokenizer("llama3", ignore_merges=True, has_default_bos=False),
    "qwen2": PreTokenizer("qwen2"),
    "deepseek-llm": PreTokenizer("deepseek-llm"),
    "deepseek-coder": PreTokenizer("deepseek-coder"),
    "deepseek-v3": PreTokenizer("deepseek-v3"),
}

# The other names under which llama.cpp reads exactly one of the above.
_ALIASES = {
    "gpt-2": "phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion "
    "granite-docling",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    "dbrx": "smaug-bpe",
    "glm4": "glm5",
    "qwen2": "deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
    "deepseek-v3": "hunyuan-dense joyai-llm",
}
_NAMES = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer that a file names. UnsupportedModelError, with the supported names, if hetrun has none."""
    found = _PRE_TOKENIZERS.get(_NAMES.get(name, name))
    if found is None:
        raise UnsupportedModelError(
            f"pre-tokenizer {name[:80]!r} (tokenizer.ggml.pre) is not supported",
            remedy=f"supported are {', '.join(sorted({*_PRE_TOKENIZERS, *_NAMES}))}",
        )
    return found

"""Text that tokenizers disagree about: fixed strings, and random ones from a seed."""

from __future__ import annotations

import random
import unicodedata
from functools import cache

STRINGS = [
    "",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n\n",
    "\r\n",
    "\r\n\r\n x",
    "\t",
    " \t \n \r\n  y",
    "a",
    " a",
    "  a",
    "a ",
    "a  ",
    "a   b    c     d",
    "\u00a0a\u00a0b",
    "a\u3000b\u2003c\u2028d\u2029e\u0085f\u1680g",
    "\u3000\u3000!\u3000\u4e2d",
    "\x0b\x0c\x1c\x1d\x1e\x1f.",
    "hello world",
    "Hello, World! How are you today?",
    "Hello  World ?  !  .",
    "The quick brown fox jumps over the lazy dog.",
    "THE QUICK BROWN FOX",
    "tokenization tokenizer untokenizable retokenized",
    "I'm you're he's we've they'll I'd can't don't o'clock",
    "I'M YOU'RE HE'S WE'VE THEY'LL I'D CAN'T DON'T",
    "'s't're've'm'll'd'S'T'RE'Ve'lL",
    "\u017f'\u017f '\u212a it'\u017fx",
    "'' ''' 'x' '' s' '",
    "'THE 'That 'REad 'LLAMA 'STOP 'Mine 'Dog 'VEry 'the 'some 'dance 'really",
    "it\u2019s \u2018quoted\u2019 \u201cdouble\u201d",
    "0 1 12 123 1234 12345 123456 1234567890",
    "3.14159 -42 +7 1e-10 0x1F 1,000,000 50% $9.99 \u20ac5",
    "x1y22z333w4444",
    "\u0660\u0661\u0662\u0663 \u0966\u0967\u0968 \u00b2\u00b3\u00b9 \u00bd \u2167 \u3007 \U0001d7d8\U0001d7d9",
    "def f(x, *, y=1):\n    if x > 0:\n        return x ** y\n\n    return None  # done\n",
    'int main(void) {\n\tprintf("%d\\n", 1 << 4);\n\treturn 0;\n}\n',
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
    "<html><body class='x'>a &amp; b</body></html>",
    "SELECT * FROM t WHERE a >= 3 AND b <> 'c';",
    "https://example.org/a/b?c=d&e=f#g user@example.org",
    "a_b_c snake_case camelCase PascalCase kebab-case",
    "!!! ??? ... --- === +++ *** ~~~ ^^^ ||| \\\\\\ ``` $$$ <<< >>>",
    "!a #b .c (d [e {f /g \\h @i ~j `k $l +m <n =o >p ^q |r",
    "a!\nb?\r\n\r\nc.\n\n\nd",
    "---\n\n...\r\r+++\n ",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u8fd9\u662f\u4e00\u4e2a\u6d4b\u8bd5\u3002",
    "\u4e2d\u3000\u6587\u3000\u4e2d\u2003\u6587 \u4e2d",
    "\u4e2d\u6587abc\u4e2d\u6587123\u4e2d\u6587 \u4e2d\u6587",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c \u30ab\u30bf\u30ab\u30ca \uff76\uff80\uff76\uff85",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4 \u1112\u1161\u11ab",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0401\u0436\u0438\u043a",
    "\u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1 \u03ba\u03cc\u03c3\u03bc\u03b5",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u060c \u061f",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u05be",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0964",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0 \u0531\u0580\u0587 \u1230\u120b\u121d",
    "Ti\u1ebfng Vi\u1ec7t c\u00f3 d\u1ea5u; na\u00efve caf\u00e9 stra\u00dfe \u00c5ngstr\u00f6m \u0142\u00f3d\u017a",
    "e\u0301 n\u0303 a\u0308\u0323 \u0301x \u0301\u0301",
    "\u01c5 \u01c8 \u02b0 \u0294 \u01bb \u1f88 \u2c7c",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f44d\U0001f3fd \u2764\ufe0f \U0001f1eb\U0001f1f7",
    "\U0001f600\U0001f600\U0001f600abc\U0001f600123\U0001f600",
    "\u200b\u200c\u200d\u2060\ufeff\u00ad x\u200by",
    "\u2192 \u2200x\u2208\u2115: x\u00b2\u22650 \u222b \u221e \u2260 \u00b1",
    "\u2500\u2502\u2588\u2591 \u2605\u2606 \u266a \u20bf \u2122 \u00a9 \u00a7 \u00b6",
    "\u1c89\u1c8a \U000105c0 \U00016d40\U0001e5f1 \U0001ccf0\U0001ccf1 \U0001fae9 \u0897",
    "\u0378 \ue000\uf8ff \U000e0001 \U0010ffff \ufffe\uffff",
    "\ufffd\ufffdx\ufffd",
    "nul\x00inside\x00\x00",
    "a\x01b \x01 ab\x01\x01the\x01 the",
    "\x7f\x80\x9f",
    "\U00020000\U0002a6df \uf900 \u3400 \U0002ebf0",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> c",
    "<|im_start|",
    "<|im_start|><|im_start|>",
    " <|im_end|> \n <|im_end|>\t",
    "<tool><tool_call>x</tool_call> <tool_calls> < tool_call>",
    "<unk> <s> </s> <s>x</s>",
    "<s><s>a",
    "[unused1] [unused2]",
    "aba<ab><aba>bab",
    "aaaa aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                                    x",
    "ababababab bababa aabb abba",
    "of the of the in the on the at the of  the of\nthe",
    "queen quick unique qqq iraq q",
    "zzz Zz z zebra",
    "\u2581\u2581a\u2581b \u2581",
    "the\u2581the",
    "\n\n\n\n   \n\n   \t\t\n",
    "Line one.\nLine two.\r\nLine three.\n\n\tIndented.\n",
]

_ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    " \t\n\r\x0b\x0c\u0085\u00a0\u1680\u2003\u2028\u3000",
    " ",
    "\n\r",
    "'stmdreveallSTMDREVELL\u017f\u212a",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "\u4e00\u4e2d\u6587\u9fa5\u9fa6\u3042\u30a2\u30fc\uac00\ud55c\ud7a3\u0800\u3001\u3002\uff01\uff5e\u2018\u201f",
    "\u0430\u0431\u0432\u0410\u03b1\u03a9\u05d0\u0627\u0905\u0e01\u10d0\u1c90\u13a0\uab70\u0294\u00b5\u00aa\u01c5",
    "\u0300\u0301\u0308\u093e\u094d\u0e31\u200d\ufe0f\u20dd",
    "\u00b2\u00bd\u0660\u0966\u2160\u2460\u3007\U0001d7d8",
    "\u20ac\u00a3\u00b1\u2192\u2200\u2500\u2605\u2122\u00a9\U0001f600\U0001f44d\U0001f3fd\U0001f1eb",
    "\x00\x01\x1c\x7f\u00ad\u200b\ufeff\ufffd\ue000\u0378\u1c89\U000105c0\U0001ccf0\U0010ffff",
]
_WORD_TEXT = (
    "the of and to in is that it for on with as was at by be this from or have an they which one you were all her she "
    "there would their we him been has when who will no more if out so what hello world token tokenization queen quick "
    "I'm don't WE'VE it's <|im_start|> <|im_end|> <|endoftext|> <tool> <tool_call> <s> </s> <unk> <ab> <aba> aba \u2581"
)
_WORDS = _WORD_TEXT.split()


def random_strings(seed: int, count: int) -> list[str]:
    """Strings of a few runs each: words, characters of one class, of any class, or any code point at all."""
    chooser = random.Random(seed)
    return ["".join(_run(chooser) for _ in range(chooser.randint(1, 8))) for _ in range(count)]


def _run(chooser: random.Random) -> str:
    kind = chooser.random()
    if kind < 0.3:
        return chooser.choice(("", " ", " ", "  ", "\n")).join(chooser.choices(_WORDS, k=chooser.randint(1, 4)))
    if kind < 0.7:
        return "".join(chooser.choices(chooser.choice(_ALPHABETS), k=chooser.randint(1, 6)))
    if kind < 0.95:
        return "".join(chooser.choice(chooser.choice(_ALPHABETS)) for _ in range(chooser.randint(1, 8)))
    points = (chooser.choice((chooser.randrange(0x3000), chooser.randrange(0x20000))) for _ in range(3))
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


_EMOJI = (
    "\U0001f600",
    "\U0001f44d\U0001f3fd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1eb\U0001f1f7",
    "\u2764\ufe0f",
    "\U0001f9d1\u200d\U0001f680",
    "\U0001f3f4\U000e0067\U000e0062\U000e007f",
    "1\ufe0f\u20e3",
    "\U0001fae8",
    "\u263a",
)
_SPACES = (" ", "  ", "   ", "\n", "\n\n", "\t", " \n", "\r\n", "\u00a0", "\u3000", "\u200b", " " * 17, "\n    ")
_BROKEN = (
    b"\xe4", b"\xe4\xb8", b"\xf0\x9f", b"\xf0\x9f\x98", b"\xc3", b"\x80", b"\xbf\xbf", b"\xff", b"\xfe\xff",
    b"\xc0\xaf", b"\xf8",
)  # fmt: skip


@cache
def scripts() -> dict[str, str]:
    """{name: characters} of every script of Unicode, by the first word of its characters' names."""
    found: dict[str, list[str]] = {}
    for point in range(0x21, 0x32000):
        name = unicodedata.name(chr(point), "")
        if name and unicodedata.category(chr(point))[0] in "LMNP":
            found.setdefault(name.split()[0], []).append(chr(point))
    return {name: "".join(letters) for name, letters in found.items() if len(letters) > 8}


def mixed_strings(seed: int, count: int) -> list[bytes]:
    """Strings of words of any scripts, emoji, spaces, digits and code; every eighth has bytes that are no UTF-8."""
    chooser = random.Random(seed)
    alphabets = list(scripts().values())

    def run() -> bytes:
        kind = chooser.random()
        if kind < 0.35:
            letters = chooser.choice(alphabets)
            return "".join(chooser.choices(letters, k=chooser.randint(1, 12))).encode()
        if kind < 0.5:
            return " ".join(chooser.choices(_WORDS, k=chooser.randint(1, 6))).encode()
        if kind < 0.6:
            return "".join(chooser.choices(_EMOJI, k=chooser.randint(1, 3))).encode()
        if kind < 0.85:
            return chooser.choice(_SPACES).encode()
        if kind < 0.93:
            return "".join(chooser.choices("0123456789.,+-*/=()[]{}<>_'\"", k=chooser.randint(1, 10))).encode()
        return chooser.choice(STRINGS).encode()

    texts = []
    for i in range(count):
        runs = [run() for _ in range(chooser.randint(1, 9))]
        if i % 8 == 7:
            for _ in range(chooser.randint(1, 3)):
                runs.insert(chooser.randint(0, len(runs)), chooser.choice(_BROKEN))
        texts.append(b"".join(runs))
    return texts

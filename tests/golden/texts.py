"""The texts that the golden token files were recorded for, and that tests replay.

Hand-picked edges first, then seeded mixtures of fragments. Changing anything here means recording
again (`record.py`).
"""

# ruff: noqa: E501, RUF001 - look-alike characters are the point, and some are wide.

from __future__ import annotations

import random

_EDGES = [
    " ", "  ", "   ", "\n", "\n\n", "\n \n", " \n", "\t", "\t\t", "\r\n", "\r\n\r\n", "\n\n\n\n",
    "a", " a", "  a", "a ", "a  ", "a\n", "\na", "a\n\nb", "a \n b", "a\tb", "a  b", "a   b",
    "a    b", "    a", "\ta", "\t a", " \ta", "a\u00a0b", "a\u2003b", "a\u3000b", "\u00a0", "\u2028",
    "a\u200bb", "\ufeffa", "a\u0301", "e\u0301\u0323", "\u0301", "x\u00adx", "a\x0bb\x0cc", "a\x85b",
    "0", "1", "12", "123", "1234", "12345", "1234567890", "1 2 3", "3.14159", "1,234,567.89", "-7",
    "2024-02-29T12:34:56Z", "v1.2.3-rc4", "0x1F", "1e-9", "٣٤٥", "①②③", "Ⅷ", "½", "x²", "१२३४",
    "a1b22c333d4444", "100%", "$5", "€1.000,00", "5€", "#1", "No. 5", "1st 2nd 3rd 4th",
    "I'm", "you're", "it's", "don't", "we'll", "they've", "he'd", "I'M", "YOU'RE", "IT'S", "'Tis",
    "rock'n'roll", "o'clock", "'s", "'S", "s'", "''s", "'re'", "x'sy", "naïve's", "’s", "it’s",
    "Hello, world!", "Hello,world", "Hello , world !", "hello world", "HELLO WORLD", "HelloWorld",
    "helloWorldFooBar", "snake_case_name", "kebab-case-name", "camelCase123", "XMLHttpRequest",
    "ÉCOLE école École", "ÀÉÎõü", "straße STRASSE", "ΑΒΓ αβγ", "Привет, мир!", "привет МИР",
    "日本語のテキスト", "漢字とかな交じり文。", "你好，世界！", "中文 English 混合", "한국어 문장입니다.",
    "안녕", "ᄒ\u1161\u11ab", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก", "ภาษาไทย",
    "Tiếng Việt có dấu", "Tiê\u0301ng", "Ǆ ǅ ǆ", "ﬁ ﬂ ﬀ", "ＡＢＣ　ａｂｃ", "Ａ！／：～。", "ſtop 'ſ",
    "😀", "😀😃", " 😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "a😀b", "☃★", "→⇒", "∑∞≠≤", "…", "“quoted”",
    "𝒳𝓎", "𠜎𠜱", "\U0001f9d1\u200d\U0001f680", "\U000e0041", "\U0010ffff", "\ufffd", "\x00", "a\x00b",
    "\x01\x02\x7f", "\x1b[31mred\x1b[0m",
    "!", "!!", "!!!", "?!", "...", "....", ". . .", "--", "---", "-----", "==", "===", "!=", "->",
    "=>", "::", ";;", "()", "(())", "[]", "{}", "<>", "</div>", "<b>bold</b>", "&amp;", "@user",
    "#tag", "a@b.cc", "https://example.org/path?q=1&r=2#x", "C:\\dir\\file.txt", "~/x/../y", "`code`",
    "**bold** _it_", "| a | b |", "/* c */", "// x\n", "\\n", "\\\\", '"', "'", "''", '""', "^~|`$+",
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < 10; ++i) {\n\ta[i] = i;\n}\n",
    "if x:\n        pass\n\n\nelse:\n    y()", "SELECT * FROM t WHERE a='b';", '{"a": [1, 2.5, null]}',
    "#include <stdio.h>\r\nint main() {\r\n}\r\n", "\n\n  \n\t\n", "x\n\n\n\n\ny", "a/\n/b//\n\n",
    "!\n\n?\n", " !\n", ")\r\n\r\n(", "word/\r\nword", ".\n.\n\n.", "- item\n- item\n  - sub\n",
    "<|im_start|>", "<|im_end|>", "<|im_start|>user\nhi<|im_end|>\n", "a<|im_end|>b", "<|im_end|", "<|",
    "<|im_<|im_end|>end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<s>a</s>", "[INST] hi [/INST]",
    "<|eot_id|>", "<think>x</think>", "<tool_call>\n{}\n</tool_call>", "<0x0A>", "<0x41>", "▁", "▁a",
    "a▁b", "Ġ", "Ġa", "Ċ", "<file_sep>a.py<|im_start", "|im_end|>", " <|im_end|> ", "  <think>  ",
    "ab" * 40, "a" * 100, " " * 70, "\n" * 30, "=" * 65, "abc " * 30, "aA" * 20, "1" * 50, "!?" * 25,
    "xyzzy" * 12, "aba" * 15, "the the the the", "ininininin", "anananananas", "ssssss'ssss",
]  # fmt: skip

_FRAGMENTS = [
    "the ", " quick", "brown", " Fox", "JUMPS", " over", "lazy", " dog", "'s", "'LL", "n't", " ", "  ",
    "\n", "\n\n", "\r\n", "\t", "0", "42", "1999", "3.5", "!", "?!", "...", ",", ", ", "-", " - ", "(",
    ")", "[", "]", "{", "}", "<", ">", "/", "\\", '"', "`", "=", "==", " += ", "_", "é", "ß", "É", "Ж",
    "дом", "中", "文字", "かな", "한글", "ع", "ربي", "न", "मस", "😀", "🏽", "\u200d", "\ufe0f", "\u0301",
    "\u00a0", "\u3000", "▁", "x", "X", "aa", "Bb", "cC", "def ", "return", "import os", "<|im_end|>",
    "<s>", "</s>", "<think>", "&", "#", "@", "€", "²", "½", "①", "ǅ", "ʼ", "ª", "·", "—", "“", "”",
]  # fmt: skip


def texts() -> list[str]:
    """All texts, in a fixed order."""
    dice = random.Random(20240229)
    mixtures = ["".join(dice.choices(_FRAGMENTS, k=dice.randint(2, 25))) for _ in range(200)]
    long = "".join(dice.choices(_FRAGMENTS, k=1500))
    return [*_EDGES, *mixtures, long]

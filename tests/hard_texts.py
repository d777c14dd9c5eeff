"""Texts on which tokenizers part ways: scripts, marks, controls, numbers, code and white space of every kind."""

from __future__ import annotations

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\t\n \r\n\n",
    "Hello world",
    " leading and trailing ",
    "  two  spaces   three\tand a tab\t\tand\n\n\nnew lines \n ",
    "Zwölf Boxkämpfer, 3 € und 𝄞 naïve ＡＢＣ",
    "🦙 👩🏽‍💻 👨‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️‍🔥 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "السلام عليكم שלום",
    "e\u0301a\u0308\u0323 Z\u0335\u0321",
    "a\u0000b\u0001\u001b[0m\u007f\u200b\ufeff\ufffd",
    "it's 1234567 o'clock; I'LL go, WE'VE been, 'tis",
    "12345678901234567890 3.14159 1,000,000 ²³ Ⅷ ½ ٣٤",
    "def f(x):\n\treturn {'a': x ** 2}  # comment\r\n\r\n    pass\n",
    'for(i=0;i<10;++i){s+="\\n";} // https://x.y/z?a=b&c=%20#d',
    "CamelCaseWORDS snake_case_words HTTPServer iOS McDonald",
    "<0xE2> is not a byte here, ▁ is no space and Ġ neither",
    "\u00a0\u3000\u2003\u2028 \u0085x",
    "!!! ... --- === *** ((( ))) ///",
]

MARKED_SCRIPTS = ["नमस्ते दुनिया", "สวัสดีชาวโลก", "বাংলা ভাষা", "Ñan\u0303o CAFE\u0301s"]
"""Words with combining marks within."""

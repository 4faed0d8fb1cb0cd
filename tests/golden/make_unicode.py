"""The ranges of characters that eval/unicode.hpp looks up: facts of Python's unicodedata.

    python tests/golden/make_unicode.py        (writes include/peft/eval/unicode_table.inc)
"""

import pathlib
import unicodedata

assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version

OUT = pathlib.Path(__file__).parents[2] / "include" / "peft" / "eval" / "unicode_table.inc"

CJK_NAMES = ("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "HENTAIGANA", "KATAKANA", "HANGUL",
             "BOPOMOFO", "HALFWIDTH KATAKANA", "HALFWIDTH HANGUL", "IDEOGRAPHIC", "VERTICAL IDEOGRAPHIC",
             "HANGZHOU NUMERAL", "COMBINING KATAKANA-HIRAGANA", "VERTICAL KANA", "MASU MARK")


def is_word(c):
    """Letters, their marks, and digits; not the marks that only decorate symbols."""
    code, category = ord(c), unicodedata.category(c)
    if 0xFE00 <= code <= 0xFE0F or 0x20D0 <= code <= 0x20FF or 0xE0100 <= code <= 0xE01EF:
        return False
    raised = category == "No" and unicodedata.decomposition(c).startswith(("<super>", "<sub>"))
    return category[0] in "LM" or category in ("Nd", "Nl") or raised


def is_cjk(c):
    """Letters, numerals and marks of Chinese, Japanese and Korean."""
    return unicodedata.category(c)[0] in "LNM" and unicodedata.name(c, "").startswith(CJK_NAMES)


def ranges(of):
    """Ranges of the characters of a kind; code points that are assigned to nothing do not end one."""
    out, open_range = [], False
    for code in range(0x110000):
        c = chr(code)
        if unicodedata.category(c) == "Cn":
            continue
        if not of(c):
            open_range = False
        elif open_range:
            out[-1][1] = code
        else:
            out.append([code, code])
            open_range = True
    return out


def table(name, rows):
    cells = [f"{{0x{first:X}, 0x{last:X}}}" for first, last in rows]
    lines, line = [], "   "
    for cell in cells:
        if len(line) + len(cell) + 2 > 120:
            lines.append(line)
            line = "   "
        line += f" {cell},"
    return f"inline constexpr CodeRange {name}[] = {{\n" + "\n".join(lines + [line]) + "\n};\n"


cjk = ranges(is_cjk)
assert 0x30000 <= cjk[-1][1] < 0x3FFFD
cjk[-1][1] = 0x3FFFD  # planes 2 and 3 are set aside for ideographs
OUT.write_text(f"// Written by tests/golden/make_unicode.py from Unicode {unicodedata.unidata_version}.\n" +
               table("kWordRanges", ranges(lambda c: is_word(c) and not is_cjk(c))) + table("kCjkRanges", cjk))

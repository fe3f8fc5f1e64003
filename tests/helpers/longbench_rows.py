"""Documents of any length from a formula, so that what upstream made of them can be kept as hashes alone."""

from __future__ import annotations

from typing import Any

_PROSE = (
    "the ferry leaves at dawn", "Mrs. Ito counted 1,204 lamps", "nobody had asked", "a letter from Oslo (1931)",
    "it was, so to speak, over", "rain fell on the café's roof", "\"not again\", he said", "the price rose by 3.5%",
    "we kept {notes} in a box", "under the bridge", "until the 7th of May", "and the dogs slept",
)  # fmt: skip
_CHINESE = (
    "今天的风很大", "渡船在清晨离开了港口", "他们数了一千二百零四盏灯", "没有人回答", "图书馆在桥的另一边",
    "价格上涨了百分之三", "“又来了”,她说", "我们把信放进盒子里", "直到五月七日", "雪豹与麒麟", "一条很长的河",
    "龘靐齉爨",
)  # fmt: skip
_CODE = (
    "def total(values):", "    return sum(value * 2 for value in values)", "", "class Lamp:",
    "    colour = {'red': 1, 'blue': 2}", "    def turn(self, times=3):", "        self.angle += 90 * times  # degrees",
    "x = [i ** 2 for i in range(10)]", "if x[0] != -1 and not done:", "\tprint(f\"{x!r:>8}\")", "import os, sys",
    "text = \"<|endoftext|>\"",
)  # fmt: skip
_PIECES = {"prose": (_PROSE, ". "), "chinese": (_CHINESE, "。"), "code": (_CODE, "\n")}


def document(kind: str, pieces: int, step: int) -> str:
    """Return so many pieces of one kind; ``step`` decides their order."""
    own, end = _PIECES[kind]
    return end.join(own[(place * step + place * place // 5) % len(own)] for place in range(pieces))


def row(kind: str, pieces: int, step: int) -> dict[str, Any]:
    """Return a row as LongBench's files have them."""
    context = document(kind, pieces, step)
    return {
        "input": document(kind, 1 + step % 2, step),
        "context": context,
        "answers": [_PIECES[kind][0][step % 12] or "pass"],
        "length": len(context) if kind == "chinese" else len(context.split()),
        "dataset": kind,
        "language": "zh" if kind == "chinese" else "en",
        "all_classes": None,
        "_id": f"{kind}-{pieces}-{step}",
    }

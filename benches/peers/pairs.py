"""Two builds of outgate side by side: is the later one slower?

Both are measured in turn, each time in a process of its own, so that whatever slows the machine for a while slows both.
The result is the ratio of medians, later to earlier, as cost: rates are inverted, so that above 1 is always worse.
The interval is the one of 95 % confidence, by drawing the same number of pairs repeatedly (bootstrap).
"""

import random
import statistics

import table

DRAWS = 10_000
# The later build is as quick if the lower end of the interval and the ratio are at most these.
LOWEST, MIDDLE = 1.02, 1.05
RATES = ("per_s", "gib_per_s", "answered_kib_per_s")
# How many figures of each load are judged. The rate is one of those of bulk.
FIGURES = 2


def figures(load):
    return table.LOADS[load][1][:FIGURES]


def costs(pairs, figure):
    """Pairs of (earlier, later), both as costs; those that lack the figure are left out."""
    known = [(before.get(figure), after.get(figure)) for before, after in pairs]
    known = [(before, after) for before, after in known if before and after]
    return [(1 / before, 1 / after) for before, after in known] if figure in RATES else known


def ratio(pairs):
    return statistics.median(after for _, after in pairs) / statistics.median(before for before, _ in pairs)


def interval(pairs, draws=DRAWS):
    # The same figures give the same interval.
    draw = random.Random(1)
    ratios = sorted(ratio(draw.choices(pairs, k=len(pairs))) for _ in range(draws))
    return ratios[int(draws * 0.025)], ratios[int(draws * 0.975) - 1]


def judged(load, row, measured):
    """A line of the table for each figure, and whether all of them hold. `measured` are pairs of lines."""
    wrong = [fault for pair in measured for fault in map(table.faults, pair) if fault]
    if wrong:
        return [f"| {load} | {row} | **no result**: {wrong[0][:200]} | | | |"], False
    out, all_hold = [], True
    for figure, heading, digits in figures(load):
        pairs = costs(measured, figure)
        if len(pairs) < 2:
            continue
        middle, (low, high) = ratio(pairs), interval(pairs)
        holds = low <= LOWEST and middle <= MIDDLE
        all_hold &= holds
        medians = [statistics.median(line[figure] for line in lines) for lines in zip(*measured)]
        told = " → ".join(table.number(value, digits) for value in medians)
        verdict = "holds" if holds else "**slower**"
        out.append(f"| {load} | {row} | {heading} {told} | {middle:.3f} | {low:.3f}–{high:.3f} | {verdict} |")
    return out, all_hold


HEADING = "| load | way | earlier → later | ratio of costs | 95 % interval | |\n|---|---|---|---|---|---|"

"""The tables of ``ppinfer bench published``. No torch."""

from __future__ import annotations

from itertools import groupby

from ppinfer.bench.published import OURS, Findings, by_table, table_name, workload
from ppinfer.bench.tables import Table
from ppinfer.planner.published.calibrate import FITTED_COLUMNS, Errors, Judged
from ppinfer.planner.published.figures import GIB, Cell
from ppinfer.planner.published.ours import CHANGES, OWN_SCHEDULE


def tables(found: Findings) -> list[Table]:
    return [
        *(_figures(found, cells) for cells in by_table(found.figures)),
        _errors(found),
        _without(found),
        _parameters(found),
        _memory(found),
        _changes(found),
    ]


def _figures(found: Findings, cells: list[Cell]) -> Table:
    columns = list(dict.fromkeys(cell.column for cell in cells))
    marked = [f"{name}*" if name in FITTED_COLUMNS else name for name in columns]
    table = Table(table_name(cells[0]), ["prompt, new", "output tokens/s", *marked], labels=2)
    for _, group in groupby(cells, key=workload):
        row = list(group)
        table.breaks.append(len(table.rows))
        for index, judged in enumerate(found.judged):
            title = judged.calibrated.system.title
            label = workload(row[0]) if index == 0 else ""
            table.rows.append([label, title, *(_published(judged, cell) for cell in row)])
            table.rows.append(["", "predicted", *(_predicted(judged, cell) for cell in row)])
        table.rows.append(["", f"{OURS}, predicted", *(_own(found, cell) for cell in row)])
    table.notes.append(f"Figures: {found.figures.source}.")
    table.notes.append(
        "A column is batch(micro-batch); * columns are those that parameters were fitted to. "
        f"{OURS} is its schedule alone, all else as in the pipeline; where memory does not hold "
        "the whole batch, so many sequences run at once, and the others follow."
    )
    return table


def _published(judged: Judged, cell: Cell) -> str:
    figure = cell.figures[judged.calibrated.system.name]
    return "OOM" if figure is None else f"{figure:.2f}"


def _predicted(judged: Judged, cell: Cell) -> str:
    calibrated = judged.calibrated
    if not calibrated.fits(cell):
        return "OOM"
    rate = f"{calibrated.rate(cell):.2f}"
    if cell.figures[calibrated.system.name] is None:
        return rate
    return f"{rate} ({calibrated.error(cell):+.1%})"


def _own(found: Findings, cell: Cell) -> str:
    ours = found.ours[found.figures.cells.index(cell)]
    if ours.rate is None:
        return "OOM"
    held = "" if ours.at_once == cell.batch else f" ({ours.at_once} at once)"
    return f"{ours.rate:.2f}{held}"


def _errors(found: Findings) -> Table:
    table = Table(
        "Errors of the predictions",
        ["system", "parameters", "fitted half", "held-out half", "worst held-out cell",
         "worst fitted cell", "out of memory or not, told right"],
    )  # fmt: skip
    for judged in found.judged:
        system, cells = judged.calibrated.system, found.figures.cells
        table.rows.append([
            system.title,
            str(len(system.fitted)),
            _mean(judged.fitted),
            _mean(judged.held_out),
            f"{judged.held_out.worst:+.1%}",
            f"{judged.fitted.worst:+.1%}",
            f"{judged.verdicts} of {len(cells)}",
        ])  # fmt: skip
    table.notes.append(
        f"Mean absolute errors. Fitted to the columns {' and '.join(FITTED_COLUMNS)}, judged on "
        "all others. A sign is that of predicted less published."
    )
    table.notes.append(
        "The worst fitted cells are Hugging Face's in fp32 at 8(4), which ran at the very limit of "
        "memory, where PyTorch's allocator gives back and asks anew, and the pipeline's in fp32 at "
        "2(1), whose products have one row and may take another kernel. These are guesses, and "
        "neither is modelled."
    )
    return table


def _mean(errors: Errors) -> str:
    return f"{errors.mean:.1%} of {errors.cells}"


def _without(found: Findings) -> Table:
    columns = list(dict.fromkeys(cell.column for cell in found.figures.cells))
    table = Table("Errors on a column, fitted to all others", ["system", *columns])
    for judged in found.judged:
        errors = [judged.without.get(column) for column in columns]
        texts = ["" if error is None else _mean(error) for error in errors]
        table.rows.append([judged.calibrated.system.title, *texts])
    table.notes.append("Mean absolute errors, and of how many cells.")
    return table


def _parameters(found: Findings) -> Table:
    device = found.figures.device
    bandwidth = f"of {device.bandwidth / 1e9:.0f} GB/s"
    meanings = {
        "layer_seconds": ("launches of a layer that no work of the device hides", "ms"),
        "bandwidth": ("at which weights and activations move", bandwidth),
        "kv_bandwidth": ("at which the KV cache moves", bandwidth),
        **{
            f"peak_{dtype}": (
                f"that products in {dtype} reach",
                f"of {device.peak[dtype] / 1e12:g} TFLOP/s",
            )
            for dtype in ("fp16", "fp32")
        },
        "start_seconds": ("what the first run of a process costs", "s"),
        "usable_gib": ("memory of a device that is usable", "GiB"),
    }
    titles = [judged.calibrated.system.title for judged in found.judged]
    table = Table("Parameters", ["parameter", "meaning", "unit", *titles], labels=3)
    for name, (meaning, unit) in meanings.items():
        values = []
        for judged in found.judged:
            value = getattr(judged.calibrated.parameters, name)
            scale = 1e3 if unit == "ms" else 1
            given = "" if name in judged.calibrated.system.fitted else " (given)"
            values.append(f"{value * scale:.3g}{given}")
        table.rows.append([name, meaning, unit, *values])
    table.notes += [
        "Shares and times are fitted by least absolute errors. Memory that is fitted is the least "
        f"that holds every fitted cell that ran, from the {found.figures.usable_gib} GiB on that "
        "the source states.",
        "Of two equal rounds the pipeline's first took longer: twice the time of 8(4) or 16(8) is "
        "more than that of 16(4) or 32(8), with the same micro-batches, by 1.7 to 3.0 s. Nothing "
        "was run before it to warm up.",
        "A likely reason for the difference in layer_seconds: Hugging Face's launches go ahead of "
        "the devices during a whole step, while the pipeline's stages wait for an exchange before "
        "each of theirs.",
    ]
    return table


def _memory(found: Findings) -> Table:
    table = Table(
        "Memory: the cells next to each system's limit",
        ["system", "cell", "published", "GiB at most", "of", "in phase"],
        labels=3,
    )
    for judged in found.judged:
        system, parameters = judged.calibrated.system, judged.calibrated.parameters
        table.breaks.append(len(table.rows))
        cells = sorted(found.figures.cells, key=lambda cell: system.peak(cell).most)
        limit = sum(judged.calibrated.fits(cell) for cell in cells)
        for cell in cells[max(limit - 2, 0) : limit + 2]:
            peak = system.peak(cell)
            table.rows.append([
                system.title,
                f"{table_name(cell)}, {workload(cell)}, {cell.column}",
                _published(judged, cell),
                f"{peak.most / GIB:.2f}",
                f"{parameters.usable_gib:.2f}",
                peak.phase,
            ])  # fmt: skip
    return table


def _changes(found: Findings) -> Table:
    names = list(CHANGES)
    table = Table(
        f"From the pipeline to {OURS}, one change after the other",
        ["cell", f"{names[0]}, tokens/s", *names[1:], f"{OURS}, tokens/s"],
    )
    for cells in by_table(found.figures):
        table.breaks.append(len(table.rows))
        for cell in cells:
            ours = found.ours[found.figures.cells.index(cell)]
            if ours.rates:
                label = f"{table_name(cell)}, {workload(cell)}, {cell.column}"
                gains = [f"{gain:+.1%}" for gain in ours.gains]
                rates = [f"{rate:.1f}" for rate in (ours.rates[0], ours.rates[-1])]
                table.rows.append([label, rates[0], *gains, rates[1]])
    table.notes += [f"{name}: {meaning}." for name, meaning in CHANGES.items()]
    table.notes.append(
        f"Down to '{OWN_SCHEDULE}' it is the schedule's difference, and the rows of {OURS} above."
    )
    table.notes.append(
        "'no drain' is a loss where prompts go whole: a micro-batch's last token waits behind the "
        "next one's prompts on the last stage, and with it what follows it in its place. Chunks "
        "and a whole batch at once end that."
    )
    return table
